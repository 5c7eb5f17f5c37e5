"""The local stack: Prefect and MLflow servers and a Ray head on loopback, held while the plans are served."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

import psutil

from flows import cluster, stages
from flows.errors import AskedWrongly, HeadstartError
from flows.plan import Plan
from flows.settings import OWNER, Settings, child_environment, read_stack

READY_SECONDS = 120
STOP_SECONDS = 15
# Minute, hour, day, month, weekday.
CRON_RANGES = ((0, 59), (0, 23), (1, 31), (1, 12), (0, 7))


def run(settings: Settings, plans: Sequence[Plan], *, cron: str, source: str | None, say: Callable[[str], None]) -> None:
    """Start what has no address yet, serve the plans until interrupted, then stop exactly what was started.

    Raises AskedWrongly when a stack of this storage root runs already, on a wrong cron and on what `check_reach` finds.
    """
    if running := read_stack(settings):
        raise AskedWrongly(
            f"a stack of {settings.storage} runs already (pid {running['pid']}); end it with Ctrl-C, or name another --workspace"
        )
    _check_cron(cron)
    for plan in plans:
        stages.check_reach(settings, plan, prefect=settings.prefect_address)
    settings.storage.mkdir(parents=True, exist_ok=True)
    end_orphans(settings)
    for sign in (signal.SIGINT, signal.SIGTERM):  # a shell starts what runs in its background deaf to Ctrl-C
        signal.signal(sign, signal.default_int_handler)
    num_cpus = max((plan.workers.count * plan.workers.cpus_per_worker for plan in plans), default=0)
    with ExitStack() as held:
        servers = [_mlflow(settings)] if not settings.tracking_address else []
        servers += [_prefect(settings)] if not settings.prefect_address else []
        for server in servers:
            say(f"Starting {server.name} (log: {server.log})")
            held.enter_context(_running(server, settings))
        ray = held.enter_context(cluster.open_cluster(settings.ray_address, settings.storage, num_cpus=num_cpus, say=say))
        for server in servers:
            _wait_healthy(server)
        # Retrainings of this storage find its Ray, and the token that opens it, by themselves.
        found = {server.setting: server.address for server in servers}
        settings = settings.model_copy(update=found)
        held.enter_context(_written(settings.stack_file, {"pid": str(os.getpid()), **found}))
        prefect = str(settings.prefect_address).removesuffix("/api")
        say(f"Prefect  {prefect}\nMLflow   {settings.tracking}\nRay      {ray.address}")
        os.environ.update(child_environment(settings))
        from flows import pipeline

        pipeline.serve_plans(plans, cron, source)


def _check_cron(cron: str) -> None:
    """Refuse what is no cron at a glance; Prefect, which reads it later, has the last word."""
    fields = cron.split()
    numbers = [[int(number) for number in re.findall(r"\d+", field.partition("/")[0])] for field in fields]
    within = all(low <= n <= high for found, (low, high) in zip(numbers, CRON_RANGES, strict=False) for n in found)
    if len(fields) != len(CRON_RANGES) or not within or not re.fullmatch(r"[\w*/,#\- ]+", " ".join(fields)):
        raise AskedWrongly(
            f"--cron {cron!r} is no cron: five fields are expected (minute, hour, day, month, weekday), such as '0 2 * * *'"
        )


def end_orphans(settings: Settings) -> list[int]:
    """The pids of this storage's Prefect and MLflow servers whose owner was killed, ended now."""
    found = []
    for process in psutil.process_iter():
        try:
            env = process.environ()
            if env.get("HEADSTART_STORAGE_ROOT") != str(settings.storage) or not _is_server(process.cmdline()):
                continue
            if not _lives(int(env[OWNER]), process.create_time()):
                process.terminate()
                found.append(process.pid)
        except (psutil.Error, KeyError, ValueError, OSError):
            continue
    return found


def _is_server(words: list[str]) -> bool:
    return "mlflow" in words or any(word == "prefect" or word.startswith("prefect.server") for word in words)


def _lives(owner: int, since: float) -> bool:
    """Whether the process that had this pid before `since` (seconds since 1970) is alive, and not another of its pid."""
    try:
        return bool(psutil.Process(owner).create_time() <= since + 1)
    except psutil.Error:
        return False


@dataclass
class Server:
    """A server to start: what it is called, where it answers, and the setting that its address fills."""

    name: str
    setting: str
    address: str
    health: str
    command: list[str]
    env: dict[str, str]
    log: Path
    process: subprocess.Popen[bytes] | None = None


def _mlflow(settings: Settings) -> Server:
    address = f"http://127.0.0.1:{_port(5000)}"
    # Not proxied: a run written without the server and one written through it keep their artifacts at the same paths.
    command = [
        "mlflow",
        "server",
        "--backend-store-uri",
        settings.tracking,
        "--default-artifact-root",
        settings.artifacts.as_uri(),
    ]
    command += ["--no-serve-artifacts", "--host", "127.0.0.1", "--port", address.rpartition(":")[2], "--workers", "1"]
    env = {"MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}
    return Server(
        "MLflow", "tracking_address", address, f"{address}/health", command, env, settings.storage / "logs" / "mlflow.log"
    )


def _prefect(settings: Settings) -> Server:
    port = _port(4200)
    address = f"http://127.0.0.1:{port}/api"
    command = ["prefect", "server", "start", "--host", "127.0.0.1", "--port", str(port)]
    env = {"PREFECT_API_URL": address, "PREFECT_UI_API_URL": address}
    return Server(
        "Prefect", "prefect_address", address, f"{address}/health", command, env, settings.storage / "logs" / "prefect.log"
    )


@contextmanager
def _running(server: Server, settings: Settings) -> Iterator[None]:
    """The server in a process group of its own (Ctrl-C is ours to pass on); stopped on the way out."""
    server.log.parent.mkdir(parents=True, exist_ok=True)
    with server.log.open("ab") as sink:
        server.process = subprocess.Popen(
            [sys.executable, "-m", *server.command],
            stdout=sink,
            stderr=sink,
            stdin=subprocess.DEVNULL,
            start_new_session=True,
            env={**os.environ, **child_environment(settings), **server.env},
        )
    try:
        yield
    finally:
        _stop(server.process)


def _wait_healthy(server: Server) -> None:
    deadline = time.monotonic() + READY_SECONDS
    while time.monotonic() < deadline:
        if server.process and server.process.poll() is not None:
            tail = "\n".join(server.log.read_text(errors="replace").splitlines()[-15:])
            raise HeadstartError(f"{server.name} ended with status {server.process.returncode}; the end of its log:\n{tail}")
        try:
            with urllib.request.urlopen(server.health, timeout=2):
                return
        except OSError:
            time.sleep(0.3)
    raise HeadstartError(f"{server.name} did not answer at {server.health} within {READY_SECONDS} s; see {server.log}")


def _stop(process: subprocess.Popen[bytes]) -> None:
    for sign in (signal.SIGTERM, signal.SIGKILL):
        try:
            os.killpg(process.pid, sign)
            process.wait(STOP_SECONDS)
            return
        except ProcessLookupError:
            return
        except subprocess.TimeoutExpired:
            continue


@contextmanager
def _written(path: Path, content: Mapping[str, str]) -> Iterator[None]:
    half = path.with_suffix(".tmp")
    half.write_text(json.dumps(content))
    half.replace(path)
    try:
        yield
    finally:
        path.unlink(missing_ok=True)


def _port(wanted: int) -> int:
    """The wanted port where it is free on loopback, else any free one."""
    for port in (wanted, 0):
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                continue
            return int(probe.getsockname()[1])
    raise AskedWrongly("no free port on 127.0.0.1; end another server first")
