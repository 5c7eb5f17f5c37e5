"""The settings: addresses and folders from the environment, else of a running local stack, else inside the workspace."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from pydantic import ByteSize, ValidationError, field_validator
from pydantic_settings import BaseSettings, SettingsConfigDict

from flows import addresses, environment, processes
from flows.errors import AskedWrongly
from flows.roots import Root, as_root

# The variable with the mark of a process's owner: if that was killed, the next command ends it (`flows.stack.orphans`).
OWNER = "HEADSTART_OWNER"

# What each setting takes, for the message when something else was given.
TAKES = {
    "workspace": "a folder of this machine, such as /srv/pets",
    "storage_root": "a folder of this machine, or one that it mounts, such as /mnt/shared/pets, or s3://bucket/prefix",
    "tracking_address": "MLflow's address: http(s)://host:5000, or a database such as sqlite:////srv/mlflow.db or "
    "postgresql+psycopg2://host/name; its credentials go in MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD",
    "ray_address": "the address of a cluster's Jobs API, which is its dashboard's, such as http://host:8265; its token goes in "
    "RAY_AUTH_TOKEN",
    "prefect_address": "the address of Prefect's API, such as http://host:4200/api; its credentials go in "
    "PREFECT_API_AUTH_STRING or PREFECT_API_KEY",
    "features_max_bytes": "bytes or such as 50GB",
    "features_root": "a folder of this machine, or such as s3://bucket/prefix",
}

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
    # A folder, or s3://bucket/prefix.
    storage_root: Root | None = None
    tracking_address: str | None = None
    ray_address: str | None = None
    prefect_address: str | None = None
    # A number of bytes, or such as 50GB; the least recently used features go first. None: half of the room left on the disk.
    features_max_bytes: ByteSize | None = None
    # A folder, or s3://bucket/prefix.
    features_root: str | None = None

    @field_validator("workspace", mode="before")
    @classmethod
    def _check_folder(cls, value: str | Path) -> Path:
        return addresses.folder(value)

    @field_validator("storage_root", mode="before")
    @classmethod
    def _check_storage_root(cls, value: Root | None) -> Root | None:
        if isinstance(value, str) and value.startswith("s3:"):
            return as_root(addresses.folder_or_bucket(value))
        return None if value is None else addresses.folder(value)

    @field_validator("features_root")
    @classmethod
    def _check_features_root(cls, value: str | None) -> str | None:
        return value and addresses.folder_or_bucket(value)

    @field_validator("ray_address", "prefect_address")
    @classmethod
    def _check_server(cls, value: str | None) -> str | None:
        return value and addresses.server(value)

    @field_validator("tracking_address")
    @classmethod
    def _check_tracking_address(cls, value: str | None) -> str | None:
        return value and addresses.server_or_database(value)

    @property
    def storage(self) -> Path:
        """The folder of this machine with the embedded servers' files, and, unless that is in a bucket, with all below `root`."""
        folder = self.storage_root if isinstance(self.storage_root, Path) else self.workspace / ".headstart"
        return folder.resolve()

    @property
    def root(self) -> Root:
        """The folder, or the address in a bucket, of finished work, checkpoints, scores, jobs and the ledger."""
        return self.storage_root if isinstance(self.storage_root, str) else self.storage

    @property
    def features(self) -> Path | str:
        """The feature store's folder, or its address in an object store."""
        if self.features_root is None:
            return f"{self.root}/features" if isinstance(self.root, str) else self.root / "features"
        return self.features_root.rstrip("/") if "://" in self.features_root else Path(self.features_root).resolve()

    @property
    def tracking(self) -> str:
        """The MLflow address: a server's, or a SQLite file's under the storage root."""
        return self.tracking_address or addresses.sqlite(self.storage / "mlflow.db")

    @property
    def prefect(self) -> str | None:
        """The Prefect server's address, from Prefect's own variable first; None if there is no standing server."""
        return os.environ.get("PREFECT_API_URL") or self.prefect_address

    @property
    def artifacts(self) -> Path:
        """The folder in which the embedded MLflow keeps artifacts."""
        return self.storage / "artifacts"

    @property
    def stack_file(self) -> Path:
        """The file in which a running local stack writes its addresses."""
        return self.storage / "stack.json"


def read_settings(workspace: Path | None = None) -> Settings:
    """The settings of a workspace (of `HEADSTART_WORKSPACE`, else the current folder, if none is named).

    Raises AskedWrongly on a variable with a value that it does not take.
    """
    try:
        settings = Settings() if workspace is None else Settings(workspace=workspace)
    except ValidationError as error:
        raise AskedWrongly(_refusal(error.errors()[0], workspace)) from None
    settings = settings.model_copy(update={"workspace": settings.workspace.resolve()})
    for folder in (settings.workspace, settings.storage):
        addresses.check_path(folder)
    running = read_stack(settings)
    left_out = {
        name: value for name, value in running.items() if name in Settings.model_fields and getattr(settings, name) is None
    }
    return settings.model_copy(update=left_out)


def _refusal(wrong: Any, workspace: Path | None) -> str:
    name = str(wrong["loc"][0])
    given = addresses.without_password(str(wrong["input"]))
    fault = str(wrong["msg"]).removeprefix("Value error, ")
    if name == "workspace" and workspace is not None:
        return f"workspace {given}: {fault}; give {TAKES[name]}"
    return f"HEADSTART_{name.upper()}={given}: {fault}; give {TAKES[name]}, or unset it"


def read_stack(settings: Settings) -> dict[str, str]:
    """The stack file of this storage root; empty if no stack runs, or one of its servers is dead."""
    stack = stack_words(settings)
    return stack if all(map(processes.lives, stack.get("parts", "").split())) else {}


def stack_words(settings: Settings) -> dict[str, str]:
    """The stack file of a living `headstart up`, whether or not its servers live; empty if there is none."""
    try:
        stack: dict[str, str] = json.loads(settings.stack_file.read_text())
        return stack if processes.lives(stack.get("owner") or stack["pid"]) else {}
    except (OSError, ValueError, KeyError, AttributeError):
        return {}


def child_environment(settings: Settings) -> dict[str, str]:
    """The environment variables that a process started for this workspace needs, beside those of its parent."""
    env = dict(QUIET)
    env[OWNER] = processes.mark()
    env["HEADSTART_WORKSPACE"] = str(settings.workspace)
    env["HEADSTART_STORAGE_ROOT"] = str(settings.root)
    if settings.features_root:
        env["HEADSTART_FEATURES_ROOT"] = str(settings.features)
    if settings.tracking_address:
        env["HEADSTART_TRACKING_ADDRESS"] = settings.tracking_address
    if settings.ray_address:
        env["HEADSTART_RAY_ADDRESS"] = settings.ray_address
    if settings.prefect_address:
        env["PREFECT_API_URL"] = settings.prefect_address
        if read_stack(settings).get("prefect_address") == settings.prefect_address:
            env |= _login()
    elif "PREFECT_API_URL" not in os.environ:
        env |= _own_prefect(settings)
    return env


def _own_prefect(settings: Settings) -> dict[str, str]:
    home = settings.storage / "prefect"
    env = {
        "PREFECT_HOME": str(home),
        "PREFECT_SERVER_EPHEMERAL_ENABLED": "true",
        "PREFECT_SERVER_EPHEMERAL_STARTUP_TIMEOUT_SECONDS": "120",
        "PREFECT_SERVER_LOGGING_LEVEL": "ERROR",
    }
    database = addresses.sqlite(home / "prefect.db", "sqlite+aiosqlite")
    if database != f"sqlite+aiosqlite:///{home}/prefect.db" and "PREFECT_SERVER_DATABASE_CONNECTION_URL" not in os.environ:
        env["PREFECT_API_DATABASE_CONNECTION_URL"] = database
    return env | _login()


def _login() -> dict[str, str]:
    """The login that clients must send to our own Prefect server, if this environment makes it ask for one."""
    asked = os.environ.get("PREFECT_SERVER_API_AUTH_STRING")
    return {"PREFECT_API_AUTH_STRING": asked} if asked else {}


def prepare_process(settings: Settings) -> list[str]:
    """Set this process's environment for the tools that it will import; variables that the caller set for them stay.

    Returns warnings, in words, on the caller's variables that had to be changed or ignored.
    """
    for name, value in child_environment(settings).items():
        if name.startswith("HEADSTART_"):  # `settings` were read from the environment, so these agree with it
            os.environ[name] = value
        else:
            os.environ.setdefault(name, value)
    return environment.adapt(os.environ, settings.storage)


def enter(workspace: Path | None = None) -> tuple[Settings, list[str]]:
    """The settings of a workspace, with this process's environment set for them, and the warnings of `prepare_process`."""
    settings = read_settings(workspace)
    return settings, prepare_process(settings)
