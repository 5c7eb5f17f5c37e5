"""The Prefect and MLflow servers of a local stack: their addresses, their start, and their end."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from dataclasses import dataclass
from pathlib import Path

import psutil

from flows.errors import AskedWrongly, HeadstartError
from flows.settings import Settings, child_environment

READY_SECONDS = 120
STOP_SECONDS = 15


@dataclass
class Program:
    """A process of the stack: its start, its status and its end. It has a session of its own, so that Ctrl-C is only ours."""

    name: str
    command: list[str]
    env: dict[str, str]
    log: Path | None = None
    stdin: bytes = b""
    process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Start it; its output goes to its log, or, without one, to ours."""
        with contextlib.ExitStack() as held:
            sink = held.enter_context(self.log.open("ab")) if self.log else None
            self.process = subprocess.Popen(
                [sys.executable, "-m", *self.words()],
                stdout=sink,
                stderr=sink,
                stdin=subprocess.PIPE,
                start_new_session=True,
                env={**os.environ, **self.variables()},
            )
        assert self.process.stdin is not None, "asked for"
        with contextlib.suppress(BrokenPipeError), self.process.stdin as stream:
            stream.write(self.stdin)

    def words(self) -> list[str]:
        """The arguments of `python -m` that start it."""
        return self.command

    def variables(self) -> dict[str, str]:
        """The variables of its environment beside ours."""
        return self.env

    @property
    def pid(self) -> int:
        """Its pid, which is also the number of its session."""
        assert self.process is not None, "not started"
        return self.process.pid

    def status(self) -> int | None:
        """The status that it ended with, as `subprocess` counts it, or None while it lives.

        It is left a zombie, so that no other process can get its pid.
        """
        assert self.process is not None, "not started"
        if self.process.returncode is not None:
            return self.process.returncode
        end = os.waitid(os.P_PID, self.process.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT)
        if end is None:
            return None
        return end.si_status if end.si_code == os.CLD_EXITED else -end.si_status

    def stop(self, seconds: float = STOP_SECONDS) -> None:
        """Ask all of its session to end; after so many seconds, or once it is dead, kill what is left of the session."""
        if self.process is None or self.process.returncode is not None:
            return
        self.ask(signal.SIGTERM)
        self.wait(seconds)
        self.ask(signal.SIGKILL)
        self.process.wait()

    def ask(self, sign: signal.Signals) -> None:
        """Send a signal to all of its session."""
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self.pid, sign)

    def wait(self, seconds: float) -> bool:
        """Whether it ends within so many seconds."""
        deadline = time.monotonic() + seconds
        while self.status() is None and time.monotonic() < deadline:
            time.sleep(0.05)
        return self.status() is not None


@dataclass
class Server(Program):
    """A server on a port, with the setting that its address fills, and a health page.

    `{port}` stands for the port in its command, its environment, its address (`url`) and that of its health page (`page`).
    """

    setting: str = ""
    url: str = ""
    page: str = ""
    port: int = 0

    def words(self) -> list[str]:
        """The arguments of `python -m` that start it, with the port filled in."""
        return [self._filled(word) for word in self.command]

    def variables(self) -> dict[str, str]:
        """The variables of its environment beside ours, with the port filled in."""
        return {name: self._filled(value) for name, value in self.env.items()}

    @property
    def address(self) -> str:
        """The address at which it answers."""
        return self._filled(self.url)

    def _filled(self, text: str) -> str:
        return text.replace("{port}", str(self.port))

    def answers(self, seconds: float = 2.0) -> bool:
        """Whether its health page answers, and from this server, not from another one that has its port."""
        try:
            with urllib.request.urlopen(self._filled(self.page), timeout=seconds):
                return self._listens()
        except OSError:
            return False

    def _listens(self) -> bool:
        """Whether a process of its session holds the port."""
        for process in psutil.process_iter():
            try:
                if os.getsid(process.pid) == self.pid and any(
                    one.laddr.port == self.port and one.status == psutil.CONN_LISTEN for one in process.net_connections("inet")
                ):
                    return True
            except (psutil.Error, OSError):
                continue
        return False

    def wait_healthy(self) -> None:
        """Return once it answers. Raises HeadstartError if it ends first, or is silent for two minutes.

        If another program took its port while it started, it is started again on another port.
        """
        deadline = time.monotonic() + READY_SECONDS
        while not self.answers():
            if (status := self.status()) is not None:
                if self.port == (free := free_port(self.port)):
                    raise HeadstartError(f"{self.name} ended with status {status}; the end of its log:\n{self.tail()}")
                self.stop()
                self.port = free
                self.start()
            if time.monotonic() > deadline:
                raise HeadstartError(f"{self.name} did not answer at {self.address} within {READY_SECONDS} s; see {self.log}")
            time.sleep(0.3)

    def tail(self, num_lines: int = 15) -> str:
        """The last lines of its log."""
        return "\n".join(self.log.read_text(errors="replace").splitlines()[-num_lines:]) if self.log else ""


def mlflow(settings: Settings) -> Server:
    """MLflow's server on the database of these settings."""
    # Artifacts are not proxied, so that runs written with and without the server keep them at the same paths.
    store = ["--backend-store-uri", settings.tracking, "--default-artifact-root", settings.artifacts.as_uri()]
    listen = ["--host", "127.0.0.1", "--port", "{port}", "--workers", "1"]
    return Server(
        "MLflow",
        ["mlflow", "server", *store, "--no-serve-artifacts", *listen],
        child_environment(settings) | {"MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"},
        settings.storage / "logs" / "mlflow.log",
        setting="tracking_address",
        url="http://127.0.0.1:{port}",
        page="http://127.0.0.1:{port}/health",
        port=free_port(5000),
    )


def prefect(settings: Settings) -> Server:
    """Prefect's server, with its database under the storage root."""
    url = "http://127.0.0.1:{port}/api"
    return Server(
        "Prefect",
        ["prefect", "server", "start", "--host", "127.0.0.1", "--port", "{port}"],
        child_environment(settings) | {"PREFECT_API_URL": url, "PREFECT_UI_API_URL": url},
        settings.storage / "logs" / "prefect.log",
        setting="prefect_address",
        url=url,
        page=f"{url}/health",
        port=free_port(4200),
    )


def free_port(wanted: int) -> int:
    """The wanted port if it is free on loopback, else any free one. Raises AskedWrongly if there is none."""
    for port in (wanted, 0):
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                continue
            return int(probe.getsockname()[1])
    raise AskedWrongly("no free port on 127.0.0.1; end another server first")
