"""The connection to MLflow: check that it answers, connect, and turn its errors into ours."""

from __future__ import annotations

import fcntl
import functools
import logging
import os
import re
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Concatenate, ParamSpec, Protocol, TypeVar
from urllib.parse import urlsplit

from flows import addresses
from flows.errors import AskedWrongly, HeadstartError, Unreachable
from flows.mlflow_access import LOG_IN, check_access, probe_version
from flows.words import start_of

if TYPE_CHECKING:
    from mlflow.tracking import MlflowClient

SCHEMES = ("sqlite", "postgresql", "mysql", "mssql", "http", "https")
# MLflow takes these from the environment only. Its own defaults hang for minutes on a dead server.
CLIENT_SETTINGS = {
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "2",
    "MLFLOW_HTTP_REQUEST_BACKOFF_FACTOR": "1",
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "20",
    "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
    "MLFLOW_LOGGING_LEVEL": "CRITICAL",
    "MLFLOW_ALLOW_PICKLE_DESERIALIZATION": "false",
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "DO_NOT_TRACK": "1",
}


def check(address: str) -> None:
    """Check that MLflow can be reached at `address`: a server answers, or the file of a SQLite database can be written.

    Raises Unreachable, within 10 s, if it cannot, and AskedWrongly on an address that MLflow does not take or that holds a
    password.
    """
    _refuse_password(address)
    scheme = address.partition(":")[0].partition("+")[0]
    if scheme not in SCHEMES or "://" not in address:
        raise AskedWrongly(
            f"MLflow's address {address!r} is not understood: it keeps runs in a database. "
            "Set HEADSTART_TRACKING_ADDRESS to sqlite:///<file>, postgresql+psycopg2://… or http(s)://<server>."
        )
    if scheme in ("http", "https"):
        check_access(address)
    elif (file := database_file(address)) and not _can_hold(file):
        advice = "Free its folder, or set HEADSTART_TRACKING_ADDRESS."
        raise Unreachable(f"MLflow's database {file} can not be made or written. {advice}")


def server_version(address: str) -> str:
    """The version that an MLflow server tells of itself, '' if it tells none."""
    code, body = probe_version(address)
    return body.decode(errors="replace").strip() if code == 200 else ""


def _refuse_password(address: str) -> None:
    if urlsplit(address).password:
        raise AskedWrongly(
            "HEADSTART_TRACKING_ADDRESS holds a password, which would enter logs and job files; leave it out and give it in "
            "MLFLOW_TRACKING_PASSWORD, for a database in its own place (~/.pgpass, ~/.my.cnf)"
        )


def database_file(address: str) -> Path | None:
    """The file of an embedded database, or None for any other address."""
    kind, _, path = address.partition(":///")
    if not kind.startswith("sqlite") or not path:
        return None
    if "%" not in path:
        return Path(path.partition("?")[0])
    from sqlalchemy.engine import make_url

    return Path(make_url(address).database or path)


def _can_hold(file: Path) -> bool:
    if file.exists():
        return file.is_file() and os.access(file, os.W_OK)
    folder = next(parent for parent in file.absolute().parents if parent.exists())
    return folder.is_dir() and os.access(folder, os.W_OK)


def connect(address: str) -> MlflowClient:
    """A client of `address`, which becomes this process's MLflow address; an embedded database is made if it is missing.

    Raises AskedWrongly on an address that holds a password.
    """
    _refuse_password(address)
    for name, value in CLIENT_SETTINGS.items():
        os.environ.setdefault(name, value)
    logging.getLogger("alembic").setLevel(logging.WARNING)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # MLflow's own imports and tables warn about SQLAlchemy
        import mlflow

        with _alone(database_file(address)):
            # Creating a version looks its model up through the process-wide address, whatever the client's own.
            mlflow.set_tracking_uri(address)
            mlflow.set_registry_uri(address)
            return mlflow.MlflowClient(address, address)


@contextmanager
def _alone(file: Path | None) -> Iterator[None]:
    """Hold a lock for the block: MLflow makes its tables without one, and two processes that start at once would both try."""
    if file is None:
        yield
        return
    file.parent.mkdir(parents=True, exist_ok=True)
    with file.with_name(file.name + ".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def experiment(client: MlflowClient, name: str, artifacts: Path | None) -> str:
    """The id of the experiment called `name`, which is made if there is none, and restored if someone deleted it."""
    existing = client.get_experiment_by_name(name)
    if existing is None:
        try:
            return str(client.create_experiment(name, artifact_location=addresses.local(artifacts / name) if artifacts else None))
        except Exception:
            existing = client.get_experiment_by_name(name)  # made by another process just now
            if existing is None:
                raise
    if existing.lifecycle_stage == "deleted":
        client.restore_experiment(existing.experiment_id)
    return str(existing.experiment_id)


class Addressed(Protocol):
    @property
    def address(self) -> str: ...


S = TypeVar("S", bound=Addressed)
P = ParamSpec("P")
R = TypeVar("R")


def asking(method: Callable[Concatenate[S, P], R]) -> Callable[Concatenate[S, P], R]:
    """A decorator for methods that call MLflow: it turns errors of MLflow and of the network into ours."""

    @functools.wraps(method)
    def call(self: S, /, *args: P.args, **kwargs: P.kwargs) -> R:
        try:
            return method(self, *args, **kwargs)
        except Exception as error:
            ours = _ours(self.address, error)
            if ours is error:
                raise
            raise ours from error

    return call


def _ours(address: str, error: Exception) -> Exception:
    from mlflow.exceptions import MlflowException

    if isinstance(error, (HeadstartError, AskedWrongly)) or not isinstance(error, (MlflowException, OSError)):
        return error
    text = start_of(str(error).strip().splitlines()[0], 500) if str(error).strip() else type(error).__name__
    if re.search(r"\b(401|403)\b", text) and address.startswith("http"):
        return Unreachable(f"MLflow at {address} refused the credentials. {LOG_IN}")
    if address.startswith("http") and ("failed with exception" in text or "Max retries" in text or "too many 5" in text):
        return Unreachable(f"MLflow does not answer at {address} ({text}). Start it, or set HEADSTART_TRACKING_ADDRESS.")
    return HeadstartError(f"MLflow at {address} failed: {text}")


def every(search: Callable[..., Any], *asked: Any) -> Iterator[Any]:
    """All results of a search of MLflow's client, page after page."""
    token = None
    while True:
        page = search(*asked, page_token=token)
        yield from page
        token = page.token
        if not token:
            return


def is_missing(error: Exception) -> bool:
    """Whether MLflow says that what was asked for does not exist."""
    return getattr(error, "error_code", None) == "RESOURCE_DOES_NOT_EXIST"
