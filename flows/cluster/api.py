"""A client of Ray's Jobs API over HTTP, without importing Ray, which takes longer than a submission."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.error import HTTPError, URLError
from urllib.parse import quote, urlsplit
from urllib.request import Request

from flows import environment, processes
from flows.errors import AskedWrongly, HeadstartError, Unreachable
from flows.words import end_of

CONNECT_SECONDS = 8.0
REQUEST_SECONDS = 60.0


@dataclass(frozen=True)
class Cluster:
    """A Ray cluster by its Jobs API: the address, whether we started it (`owned`), its token, and the Python that jobs run.

    `vital` are the marks (`flows.processes`) of the processes of a local head without which it is dead.
    """

    address: str
    owned: bool
    token: str | None = field(default=None, repr=False)
    python: str = "python"
    vital: tuple[str, ...] = field(default=(), repr=False, compare=False)


def connect(address: str, token: str | None = None) -> Cluster:
    """The cluster that answers at `http(s)://host:port`; if `token` is None, the person's own is used, as Ray finds it.

    Raises Unreachable if it does not answer within ten seconds, AskedWrongly if it refuses the token.
    """
    parts = urlsplit(address)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise AskedWrongly(f"the Ray address {address!r} is not of the form http://host:8265 (the address of its Jobs API)")
    cluster = Cluster(address.rstrip("/"), owned=False, token=token or _own_token())
    version = call(cluster, "GET", "/api/version", timeout_seconds=CONNECT_SECONDS)
    if not isinstance(version, dict) or "ray_version" not in version:
        raise Unreachable(f"{cluster.address} answers, but it is not Ray's Jobs API: give the address of the dashboard")
    call(cluster, "GET", "/api/jobs/", timeout_seconds=CONNECT_SECONDS)
    return cluster


def death(cluster: Cluster) -> str | None:
    """What a local head died of, in words, None while its processes live; always None for a cluster that is not local."""
    dead = [mark for mark in cluster.vital if not processes.lives(mark)]
    return f"{len(dead)} of its {len(cluster.vital)} main processes have ended" if dead else None


def answers(cluster: Cluster, timeout_seconds: float = 3.0) -> bool:
    """Whether the Jobs API of this cluster answers us."""
    try:
        call(cluster, "GET", "/api/jobs/", timeout_seconds=timeout_seconds)
    except HeadstartError:
        return False
    return True


def call(
    cluster: Cluster,
    method: str,
    path: str,
    body: Mapping[str, Any] | bytes | None = None,
    *,
    timeout_seconds: float = REQUEST_SECONDS,
) -> Any:
    """The answer to a request, decoded from JSON, or None for 404.

    Raises Unreachable if there is none, AskedWrongly if the token is refused, HeadstartError on any other error.
    """
    data = body if isinstance(body, bytes) or body is None else json.dumps(body).encode()
    request = Request(cluster.address + path, data=data, method=method)
    request.add_header("Content-Type", "application/octet-stream" if isinstance(body, bytes) else "application/json")
    if cluster.token:
        request.add_header("Authorization", f"Bearer {cluster.token}")
    try:
        with environment.opener(cluster.address).open(request, timeout=timeout_seconds) as answer:
            text = answer.read()
    except HTTPError as error:
        return _refusal(cluster, path, error)
    except (URLError, OSError, TimeoutError) as error:
        reason = getattr(error, "reason", error)
        raise Unreachable(
            f"Ray at {cluster.address} does not answer ({reason}): is it running, and is the address right "
            "(HEADSTART_RAY_ADDRESS; leave it unset for a local cluster)?"
        ) from error
    try:
        return json.loads(text) if text else {}
    except ValueError:
        return {}


def job_path(submission_id: str) -> str:
    """The path of a job in the Jobs API."""
    return f"/api/jobs/{quote(submission_id, safe='')}"


def _refusal(cluster: Cluster, path: str, error: HTTPError) -> None:
    if error.code == 404:
        return
    text = end_of(error.read().decode(errors="replace"), 2000)
    if error.code in (401, 403):
        raise AskedWrongly(
            f"Ray at {cluster.address} refuses our token ({error.code}): set RAY_AUTH_TOKEN_PATH to the file that holds "
            "the cluster's token, or RAY_AUTH_TOKEN"
        ) from error
    raise HeadstartError(f"Ray at {cluster.address} answered {error.code} to {path}: {text}") from error


def _own_token() -> str | None:
    """The person's Ray token, from the places where Ray itself looks."""
    if token := os.environ.get("RAY_AUTH_TOKEN"):
        return token
    path = Path(os.environ.get("RAY_AUTH_TOKEN_PATH") or Path.home() / ".ray" / "auth_token")
    try:
        return path.read_text().strip() or None
    except OSError:
        return None
