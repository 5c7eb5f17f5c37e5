"""A local Ray head: on loopback, behind a token, shared by the commands of a storage root, ended by the last of them."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import secrets
import shutil
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from flows.cluster import homes, launch, processes
from flows.cluster.api import Cluster, answers, connect, death
from flows.errors import AskedWrongly, Busy, HeadstartError
from flows.files import write_whole
from flows.processes import lives, mark
from flows.words import Say

MIN_MEMORY_BYTES = int(1.5 * 2**30)
MIN_CPUS = 4


@contextlib.contextmanager
def open_cluster(address: str | None, storage: Path, *, num_cpus: float = 0, say: Say | None = None) -> Iterator[Cluster]:
    """A cluster for the block: the one at `address`, else this storage's local one, which is started if none is alive.

    `num_cpus` is what the largest worker group asks for. The local head is ended with the block, unless another process of
    this storage still uses it. Raises Unreachable, AskedWrongly (no memory, no port), Busy if a local head that others use is
    too small, and HeadstartError if it does not start.
    """
    folder = storage.absolute() / "ray"
    if address is not None:
        yield connect(address, token=_token(folder, address))
        return
    folder.mkdir(parents=True, exist_ok=True)
    cluster = _join(folder, num_cpus, say or (lambda _: None))
    try:
        yield cluster
    finally:
        _leave(folder)


def reopen(storage: Path, *, num_cpus: float = 0, say: Say | None = None) -> Cluster:
    """This storage's local head, started again if it is dead, for a process inside `open_cluster`. Raises as that does."""
    return _join(storage.absolute() / "ray", num_cpus, say or (lambda _: None))


def find_cluster(address: str | None, storage: Path) -> Cluster | None:
    """The cluster at `address`, else this storage's local one, None if that is not alive; starts none. Raises Unreachable."""
    folder = storage.absolute() / "ray"
    if address is not None:
        return connect(address, token=_token(folder, address))
    record = _read(folder)
    return _cluster(folder, record) if record and _is_alive(folder, record) else None


def _join(folder: Path, num_cpus: float, say: Say) -> Cluster:
    with _locked(folder):
        record = _read(folder)
        if record and not _is_alive(folder, record):
            _end(folder, record)
            record = None
        if record and record["num_cpus"] < num_cpus:
            if _users(record):
                raise Busy(
                    f"the local Ray of {folder.parent} has {record['num_cpus']} logical CPUs and another command uses it; "
                    f"this plan's workers ask for {num_cpus:g}: wait for that command, or lower workers.count"
                )
            _end(folder, record)
            record = None
        is_new = record is None
        if record is None:
            say("Starting a local Ray")
            record = _start(folder, num_cpus)
        try:
            say(f"{'Local Ray' if is_new else 'Using the local Ray'} at {record['address']}")
            _write(folder, record | {"users": [*_users(record), mark()]})
        except BaseException:
            if not _users(record):
                _end(folder, record)
            raise
        return _cluster(folder, record)


def _leave(folder: Path) -> None:
    me = mark()
    with _locked(folder):
        record = _read(folder)
        if record is None:
            return
        users = _users(record)
        if me in users:
            users.remove(me)
        try:
            if users:
                _write(folder, record | {"users": users})
        except OSError:  # as on a full disk: another process that ends is no user by itself, this one has failed and ends soon
            users = [user for user in users if user != me]
        if not users:
            _end(folder, record)


def _start(folder: Path, num_cpus: float) -> dict[str, Any]:
    available = processes.available_memory_bytes()
    if available < MIN_MEMORY_BYTES:
        raise AskedWrongly(
            f"a local Ray needs {MIN_MEMORY_BYTES / 2**30:.1f} GiB of free memory and this machine has "
            f"{available / 2**30:.1f} GiB: end other programs, or set HEADSTART_RAY_ADDRESS to a cluster elsewhere"
        )
    gcs, dashboard, agent, client, metrics, autoscaler = processes.free_ports(6)
    _make_token(folder)
    homes.sweep()
    home = homes.make()
    record: dict[str, Any] = {
        "address": f"http://127.0.0.1:{dashboard}",
        "gcs_address": f"127.0.0.1:{gcs}",
        "home": str(home),
        "num_cpus": max(MIN_CPUS, int(num_cpus) + 2, os.cpu_count() or 1),
        "started_by": mark(),
        "session": None,
        "vital": [],
        "users": [],
    }
    # Written before the first process is started: after a crash in between, the next command can end what was started.
    _write(folder, record)
    ports = {"port": gcs, "dashboard-port": dashboard, "dashboard-agent-listen-port": agent, "ray-client-server-port": client}
    environment = launch.environment(folder, home) | {
        "DASHBOARD_METRIC_PORT": str(metrics),
        "AUTOSCALER_METRIC_PORT": str(autoscaler),
    }
    try:
        with launch.launched(launch.command(home, record["num_cpus"], ports), environment, home) as started:
            record["session"] = started.pid
            _write(folder, record)
        _wait_until_it_answers(_cluster(folder, record), home)
        record["vital"] = [mark(p.pid) for p in processes.members(record["home"]) if launch.is_vital(p.cmdline())]
        _write(folder, record)
    except BaseException:
        _end(folder, record)
        raise
    return record


def _wait_until_it_answers(cluster: Cluster, home: Path) -> None:
    end_at = time.monotonic() + launch.START_SECONDS
    while not answers(cluster):
        if time.monotonic() > end_at:
            raise HeadstartError(f"a local Ray was started, but its Jobs API does not answer:\n{launch.tail(home)}")
        time.sleep(0.1)


def _make_token(folder: Path) -> None:
    if not (folder / "token").exists():
        write_whole(folder / "token", secrets.token_hex(32), mode=0o600)


def _token(folder: Path, address: str) -> str | None:
    """The token of this storage's own head, if the address is its, else None."""
    record = _read(folder)
    ours = record is not None and record["address"] == address.rstrip("/")
    return (folder / "token").read_text().strip() if ours else None


def _cluster(folder: Path, record: dict[str, Any]) -> Cluster:
    token = (folder / "token").read_text().strip()
    return Cluster(record["address"], owned=True, token=token, vital=tuple(record.get("vital", ())))


def _is_alive(folder: Path, record: dict[str, Any]) -> bool:
    cluster = _cluster(folder, record)
    # The vital processes come first: a half-dead head lets the question wait for its whole timeout.
    return death(cluster) is None and bool(processes.members(record["home"])) and answers(cluster, timeout_seconds=30)


def _users(record: dict[str, Any]) -> list[str]:
    # Earlier versions wrote a pid and a start time for each user.
    users = [user if isinstance(user, str) else f"{user['pid']}:{user['created']}" for user in record["users"]]
    return [user for user in users if lives(user)]


def _end(folder: Path, record: dict[str, Any]) -> None:
    processes.end(record["home"], record.get("session"))
    shutil.rmtree(record["home"], ignore_errors=True)
    with contextlib.suppress(OSError):  # gone already, or read-only by now: it tells of nobody who lives
        (folder / "cluster.json").unlink()


def _read(folder: Path) -> dict[str, Any] | None:
    try:
        record: dict[str, Any] = json.loads((folder / "cluster.json").read_text())
        return record
    except (OSError, ValueError):
        return None


def _write(folder: Path, record: dict[str, Any]) -> None:
    write_whole(folder / "cluster.json", json.dumps(record, indent=1))


@contextlib.contextmanager
def _locked(folder: Path) -> Iterator[None]:
    try:
        lock = os.open(folder / "lock", os.O_RDWR | os.O_CREAT, 0o666)
    except OSError:  # read-only by now: what was started there is ended all the same
        lock = os.open(folder / "lock", os.O_RDONLY | os.O_CREAT, 0o666)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield
    finally:
        os.close(lock)
