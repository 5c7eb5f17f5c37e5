"""The local stack: Prefect and MLflow servers and a Ray head on loopback, held while the plans are served."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path

from flows import cluster
from flows.errors import AskedWrongly, HeadstartError
from flows.plan import Plan
from flows.settings import Settings, child_environment, read_stack

READY_SECONDS = 120
STOP_SECONDS = 15


def run(settings: Settings, plans: Sequence[Plan], *, cron: str, source: str | None, say: Callable[[str], None]) -> None:
    """Start what has no address yet, serve the plans until interrupted, then stop exactly what was started.

    Raises AskedWrongly when a stack of this storage root runs already.
    """
    if running := read_stack(settings):
        raise AskedWrongly(
            f"a stack of {settings.storage} runs already (pid {running['pid']}); end it with Ctrl-C, or name another --workspace"
        )
    settings.storage.mkdir(parents=True, exist_ok=True)
    num_cpus = max((plan.workers.count * plan.workers.cpus_per_worker for plan in plans), default=0)
    with ExitStack() as held:
        tracking = settings.tracking_address or held.enter_context(_mlflow(settings, say))
        prefect = settings.prefect_address or held.enter_context(_prefect(settings, say))
        ray = held.enter_context(cluster.open_cluster(settings.ray_address, settings.storage, num_cpus=num_cpus, say=say))
        # Retrainings of this storage find its Ray, and the token that opens it, by themselves.
        found = {"tracking_address": tracking, "prefect_address": prefect}
        held.enter_context(_written(settings.stack_file, {"pid": str(os.getpid()), **found}))
        say(f"Prefect  {prefect.removesuffix('/api')}\nMLflow   {tracking}\nRay      {ray.address}")
        os.environ.update(child_environment(settings.model_copy(update=found)))
        from flows import pipeline

        pipeline.serve_plans(plans, cron, source)


@contextmanager
def _mlflow(settings: Settings, say: Callable[[str], None]) -> Iterator[str]:
    port = _port(5000)
    # Not proxied: a run written without the server and one written through it keep their artifacts at the same paths.
    command = [
        "mlflow",
        "server",
        "--backend-store-uri",
        settings.tracking,
        "--default-artifact-root",
        settings.artifacts.as_uri(),
    ]
    command += ["--no-serve-artifacts", "--host", "127.0.0.1", "--port", str(port), "--workers", "1"]
    with _server(
        "MLflow", command, f"http://127.0.0.1:{port}/health", settings, {"MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}, say
    ):
        yield f"http://127.0.0.1:{port}"


@contextmanager
def _prefect(settings: Settings, say: Callable[[str], None]) -> Iterator[str]:
    port = _port(4200)
    address = f"http://127.0.0.1:{port}/api"
    command = ["prefect", "server", "start", "--host", "127.0.0.1", "--port", str(port)]
    with _server(
        "Prefect", command, f"{address}/health", settings, {"PREFECT_API_URL": address, "PREFECT_UI_API_URL": address}, say
    ):
        yield address


@contextmanager
def _server(
    name: str, command: Sequence[str], health: str, settings: Settings, env: Mapping[str, str], say: Callable[[str], None]
) -> Iterator[None]:
    """A server in a process group of its own (Ctrl-C is ours to pass on), healthy; stopped on the way out."""
    log = settings.storage / "logs" / f"{name.lower()}.log"
    log.parent.mkdir(parents=True, exist_ok=True)
    say(f"Starting {name} (log: {log})")
    with log.open("ab") as sink:
        process = subprocess.Popen(
            [sys.executable, "-m", *command],
            stdout=sink,
            stderr=sink,
            stdin=subprocess.DEVNULL,
            start_new_session=True,
            env={**os.environ, **child_environment(settings), **env},
        )
    try:
        _wait_healthy(name, process, health, log)
        yield
    finally:
        _stop(process)


def _wait_healthy(name: str, process: subprocess.Popen[bytes], health: str, log: Path) -> None:
    deadline = time.monotonic() + READY_SECONDS
    while time.monotonic() < deadline:
        if process.poll() is not None:
            tail = "\n".join(log.read_text(errors="replace").splitlines()[-15:])
            raise HeadstartError(f"{name} ended with status {process.returncode} while starting; the end of its log:\n{tail}")
        try:
            with urllib.request.urlopen(health, timeout=2):
                return
        except OSError:
            time.sleep(0.3)
    raise HeadstartError(f"{name} did not answer at {health} within {READY_SECONDS} s; see {log}")


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
