"""Starting a local Ray head: its command line, its environment, and its vital processes."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

from flows.cluster import homes, processes
from flows.cluster.ray_patches import LEAN_START
from flows.errors import HeadstartError

OBJECT_STORE_BYTES = 256 * 2**20
START_SECONDS = 120.0


def command(home: Path, num_cpus: int, ports: dict[str, int]) -> list[str]:
    """The command line that starts a head on the loopback."""
    options = {
        "node-ip-address": "127.0.0.1",
        "dashboard-host": "127.0.0.1",
        "include-dashboard": "true",
        "include-log-monitor": "false",
        "min-worker-port": 0,
        "max-worker-port": 0,
        "temp-dir": home,
        "num-cpus": num_cpus,
        "object-store-memory": OBJECT_STORE_BYTES,
        **ports,
    }
    start = [sys.executable, "-c", LEAN_START, "start", "--head", "--disable-usage-stats"]
    return [*start, *(f"--{name}={value}" for name, value in options.items())]


def environment(folder: Path, home: Path) -> dict[str, str]:
    """The environment of the head and of all its child processes."""
    inherited = {k: v for k, v in os.environ.items() if not k.startswith("RAY_")}
    temporary = homes.temporary(home)
    return (
        inherited
        | ({"TMPDIR": str(temporary)} if temporary else {})
        | {
            processes.MARK: str(home),
            # Jobs are started as `python`, which has to be the one of this environment.
            "PATH": os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", os.defpath)]),
            "RAY_AUTH_MODE": "token",
            "RAY_AUTH_TOKEN_PATH": str(folder / "token"),
            # Made for other systems; on Linux it keeps every port on the loopback.
            "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",
            "RAY_USAGE_STATS_ENABLED": "0",
            # Idle workers that no job of ours can use would only compete with the start.
            "RAY_prestart_worker_first_driver": "0",
            "RAY_enable_worker_prestart": "0",
        }
    )


@contextlib.contextmanager
def launched(command: list[str], environment: dict[str, str], home: Path) -> Iterator[subprocess.Popen[bytes]]:
    """Run `ray start`, in a session of its own, beside the block; at the block's end, wait for it.

    Raises HeadstartError, with the end of its log, if it fails or takes more than START_SECONDS.
    """
    with (home / "start.log").open("wb") as output:
        start = subprocess.Popen(
            command, env=environment, stdin=subprocess.DEVNULL, stdout=output, stderr=subprocess.STDOUT, start_new_session=True
        )
    try:
        yield start
        status = start.wait(START_SECONDS)
    except subprocess.TimeoutExpired as error:
        raise HeadstartError(f"a local Ray did not start within {START_SECONDS:.0f} s:\n{tail(home)}") from error
    finally:
        start.kill()
        start.wait()
    if status != 0:
        raise HeadstartError(f"a local Ray did not start:\n{tail(home)}")


def is_vital(command: list[str]) -> bool:
    """Whether this command is a process without which a head is dead: the GCS, the raylet or the dashboard."""
    return any(Path(word).name in ("gcs_server", "raylet", "dashboard.py") for word in command[:2])


def tail(home: Path, num_lines: int = 25) -> str:
    """The last lines of the logs of the head's start and of its dashboard."""
    logs = [home / "start.log", *home.glob("session_2*/logs/dashboard.err")]
    lines = [line for log in logs if log.exists() for line in log.read_text(errors="replace").splitlines()]
    return "\n".join(lines[-num_lines:])
