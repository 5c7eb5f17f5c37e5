"""A check, within seconds, that a server is MLflow and accepts the credentials that MLflow's client would send."""

from __future__ import annotations

import base64
import configparser
import os
from pathlib import Path

from flows import addresses
from flows.errors import Unreachable

START = "Start it (`headstart up` starts one), or set HEADSTART_TRACKING_ADDRESS to where it is."
LOG_IN = "Set MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD, or MLFLOW_TRACKING_TOKEN, or write ~/.mlflow/credentials."
# Ways to log in that only MLflow's own client can use: we cannot try them here.
_MLFLOWS_OWN = ("MLFLOW_TRACKING_AUTH", "MLFLOW_TRACKING_AWS_SIGV4", "MLFLOW_TRACKING_CLIENT_CERT_PATH")
_ASKED = "/api/2.0/mlflow/experiments/search?max_results=1"


def check_access(address: str) -> None:
    """Check that an MLflow server answers at `address` and accepts our credentials.

    Raises Unreachable, within ten seconds, if nothing answers, the server is not MLflow, credentials are missing, or it
    refuses them.
    """
    # With MLflow's own basic auth /health needs no login; behind a gateway it does.
    code, body = _get(address, "/health")
    if code in addresses.REFUSALS:
        return _tell(address, code)
    if code != 200 or body.strip() != b"OK":
        what = f"/health gave {code}" if code != 200 else "/health gave something else than OK"
        raise Unreachable(f"{address} answers, but not as MLflow does ({what}). {START}")
    code, _ = _get(address, _ASKED)
    if code in addresses.REFUSALS:
        _tell(address, code)
    return None


def probe_version(address: str) -> tuple[int, bytes]:
    """The HTTP status and the answer of the server's page of its version."""
    return _get(address, "/version")


def _tell(address: str, code: int) -> None:
    if any(os.environ.get(name) for name in _MLFLOWS_OWN):
        return
    whose, header = _credentials()
    if not header:
        raise Unreachable(f"{address} asks for credentials ({code}), and none are set. {LOG_IN}")
    raise Unreachable(f"{address} refuses the credentials of {whose} ({code}). {LOG_IN}")


def _get(address: str, path: str) -> tuple[int, bytes]:
    _, header = _credentials()
    return addresses.probe("MLflow", address, path, {"Authorization": header} if header else {}, START)


def _credentials() -> tuple[str, str]:
    """The credentials that MLflow's client would send: their owner in words, and the header; both '' if it sends none."""
    written = _written()
    name, password = (
        os.environ.get(variable) or written.get(variable.lower(), "")
        for variable in ("MLFLOW_TRACKING_USERNAME", "MLFLOW_TRACKING_PASSWORD")
    )
    if name and password:
        return f"user {name!r}", "Basic " + base64.b64encode(f"{name}:{password}".encode()).decode()
    token = os.environ.get("MLFLOW_TRACKING_TOKEN")
    return ("the token MLFLOW_TRACKING_TOKEN", f"Bearer {token}") if token else ("", "")


def _written() -> dict[str, str]:
    """The entries of the person's ~/.mlflow/credentials; none if it is missing or damaged."""
    config = configparser.ConfigParser()
    try:
        config.read(Path.home() / ".mlflow" / "credentials", encoding="utf-8")
        return dict(config["mlflow"]) if "mlflow" in config else {}
    except (configparser.Error, OSError, RuntimeError, UnicodeError):
        return {}
