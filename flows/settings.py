"""Addresses and folders: from the environment, else from a running local stack, else embedded in the workspace."""

from __future__ import annotations

import json
import os
import re
from pathlib import Path

from pydantic import ByteSize, ValidationError, field_validator
from pydantic_settings import BaseSettings, SettingsConfigDict

from flows.errors import AskedWrongly

# Who a server works for: one whose owner was killed is ended by the next command (`flows.stack.end_orphans`).
OWNER = "HEADSTART_OWNER"

# What a setting of a closed form looks like, for whoever gave another.
EXAMPLES = {"features_max_bytes": "bytes or such as 50GB", "features_root": "a folder or such as s3://bucket/prefix"}

# No tool phones home, and none of them chats on standard output.
QUIET = {
    "DO_NOT_TRACK": "1",
    "DVC_NO_ANALYTICS": "1",
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
    "PREFECT_SERVER_UI_SHOW_PROMOTIONAL_CONTENT": "false",
    "RAY_USAGE_STATS_ENABLED": "0",
    "TQDM_DISABLE": "1",
}


class Settings(BaseSettings):
    """Every setting, read from `HEADSTART_<NAME>`; what is left out is embedded under the workspace's `.headstart/`."""

    model_config = SettingsConfigDict(env_prefix="HEADSTART_", frozen=True, extra="ignore", env_ignore_empty=True)

    workspace: Path = Path(".")
    storage_root: Path | None = None
    tracking_address: str | None = None
    ray_address: str | None = None
    prefect_address: str | None = None
    # As a number or such as 50GB; the least recently used features go first. None: half of what the disk has left for them.
    features_max_bytes: ByteSize | None = None
    # A folder, or s3://bucket/prefix.
    features_root: str | None = None

    @field_validator("features_root")
    @classmethod
    def _check_features_root(cls, given: str | None) -> str | None:
        if given and "://" in given and not re.fullmatch(r"s3://[^/]+(/.*)?", given):
            raise ValueError("it is neither a folder nor an address such as s3://bucket/prefix")
        return given

    @property
    def storage(self) -> Path:
        """The folder of finished work, scores, checkpoints and the embedded servers' files."""
        return (self.storage_root or self.workspace / ".headstart").resolve()

    @property
    def features(self) -> Path | str:
        """The feature store's folder, or its address in an object store."""
        if self.features_root is None:
            return self.storage / "features"
        return self.features_root.rstrip("/") if "://" in self.features_root else Path(self.features_root).resolve()

    @property
    def tracking(self) -> str:
        """The MLflow address: a server's, or a SQLite file's under the storage root."""
        return self.tracking_address or f"sqlite:///{self.storage / 'mlflow.db'}"

    @property
    def prefect(self) -> str | None:
        """The Prefect server's address, Prefect's own variable first; None: one without a standing server."""
        return os.environ.get("PREFECT_API_URL") or self.prefect_address

    @property
    def artifacts(self) -> Path:
        """Where the embedded MLflow keeps artifacts."""
        return self.storage / "artifacts"

    @property
    def stack_file(self) -> Path:
        """Where a running local stack says its addresses."""
        return self.storage / "stack.json"


def read_settings(workspace: Path | None = None) -> Settings:
    """The settings of a workspace (of `HEADSTART_WORKSPACE`, else the current folder, when none is named).

    Raises AskedWrongly on a variable whose value is none of its kind.
    """
    try:
        settings = Settings() if workspace is None else Settings(workspace=workspace)
    except ValidationError as error:
        wrong = error.errors()[0]
        name = f"HEADSTART_{str(wrong['loc'][0]).upper()}"
        advice = EXAMPLES.get(str(wrong["loc"][0]), "another value")
        raise AskedWrongly(f"{name}={wrong['input']}: {wrong['msg']}; give {advice}, or unset it") from None
    settings = settings.model_copy(update={"workspace": settings.workspace.resolve()})
    running = read_stack(settings)
    left_out = {
        name: value for name, value in running.items() if name in Settings.model_fields and getattr(settings, name) is None
    }
    return settings.model_copy(update=left_out)


def read_stack(settings: Settings) -> dict[str, str]:
    """What the running local stack of this storage root wrote down, or nothing where none runs."""
    try:
        stack: dict[str, str] = json.loads(settings.stack_file.read_text())
        os.kill(int(stack["pid"]), 0)
    except (OSError, ValueError, KeyError):
        return {}
    return stack


def child_environment(settings: Settings) -> dict[str, str]:
    """The environment variables that a process started for this workspace needs beside its parent's."""
    env = dict(QUIET)
    env[OWNER] = str(os.getpid())
    env["HEADSTART_WORKSPACE"] = str(settings.workspace)
    env["HEADSTART_STORAGE_ROOT"] = str(settings.storage)
    if settings.features_root:
        env["HEADSTART_FEATURES_ROOT"] = str(settings.features)
    if settings.tracking_address:
        env["HEADSTART_TRACKING_ADDRESS"] = settings.tracking_address
    if settings.ray_address:
        env["HEADSTART_RAY_ADDRESS"] = settings.ray_address
    if settings.prefect_address:
        env["PREFECT_API_URL"] = settings.prefect_address
    elif "PREFECT_API_URL" not in os.environ:
        env["PREFECT_HOME"] = str(settings.storage / "prefect")
        env["PREFECT_SERVER_EPHEMERAL_ENABLED"] = "true"
        env["PREFECT_SERVER_EPHEMERAL_STARTUP_TIMEOUT_SECONDS"] = "120"
        env["PREFECT_SERVER_LOGGING_LEVEL"] = "ERROR"
    return env


def prepare_process(settings: Settings) -> None:
    """Set this process's environment for the tools it will import; what the caller chose of them stays."""
    for name, value in child_environment(settings).items():
        if name.startswith("HEADSTART_"):  # these settings have heard the environment already
            os.environ[name] = value
        else:
            os.environ.setdefault(name, value)
