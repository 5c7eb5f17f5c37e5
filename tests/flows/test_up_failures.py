"""`headstart up` where a server does not start or ends, and beside another one."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psutil
import pytest

from flows import cluster, stack, temporary_folders
from flows.cluster.processes import free_ports
from flows.errors import AskedWrongly, HeadstartError
from flows.settings import Settings
from flows.stack import servers
from flows.stack.servers import Server

PROGRAM = """
import http.server, sys, time
port, deed = int(sys.argv[1]), sys.argv[2]
print("line 1\\nline 2\\nthe database is locked", flush=True)
if deed == "ends":
    sys.exit(3)
if deed == "is silent":
    time.sleep(600)
class Well(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(503 if deed == "is ill" else 200)
        self.end_headers()
    def log_message(self, *_): ...
http.server.HTTPServer(("127.0.0.1", port), Well).serve_forever()
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "program.py").write_text(PROGRAM)
    return tmp_path


def server(folder: Path, name: str, deed: str, setting: str = "") -> Server:
    (port,) = free_ports(1)
    return Server(
        name,
        ["program", "{port}", deed],
        {"PYTHONPATH": str(folder)},
        folder / f"{name}.log",
        setting=setting,
        url="http://127.0.0.1:{port}",
        page="http://127.0.0.1:{port}/health",
        port=port,
    )


def test_a_server_that_ends_while_it_starts_is_told_with_its_status_and_last_words(folder: Path) -> None:
    asked = server(folder, "MLflow", "ends")
    asked.start()
    try:
        with pytest.raises(HeadstartError) as told:
            asked.wait_healthy()
    finally:
        asked.stop()
    assert str(told.value) == "MLflow ended with status 3; the end of its log:\nline 1\nline 2\nthe database is locked"


@pytest.mark.parametrize("deed", ["is silent", "is ill"])
def test_a_server_that_does_not_say_that_it_is_well_is_waited_for_in_vain(
    folder: Path, deed: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(servers, "READY_SECONDS", 2)
    asked = server(folder, "Prefect", deed)
    asked.start()
    try:
        words = f"Prefect did not answer at {asked.address} within 2 s; see {asked.log}"
        with pytest.raises(HeadstartError, match=re.escape(words)):
            asked.wait_healthy()
        assert asked.status() is None, "it lives"
    finally:
        asked.stop()


@pytest.fixture
def _signals() -> Iterator[None]:
    """A stack takes Ctrl-C for itself."""
    before = {sign: signal.getsignal(sign) for sign in (signal.SIGINT, signal.SIGTERM)}
    yield
    for sign, handler in before.items():
        signal.signal(sign, handler)


@contextmanager
def no_ray(*_: Any, **__: Any) -> Iterator[cluster.Cluster]:
    """In the place of a Ray head, which takes long to start."""
    yield cluster.Cluster("http://127.0.0.1:1", owned=True)


@pytest.mark.usefixtures("_signals")
def test_a_stack_of_which_a_server_does_not_start_ends_the_others_and_says_its_last_words(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    well, ill = server(folder, "MLflow", "is well", "tracking_address"), server(folder, "Prefect", "ends", "prefect_address")
    monkeypatch.setattr(stack, "mlflow", lambda _: well)
    monkeypatch.setattr(stack, "prefect", lambda _: ill)
    monkeypatch.setattr(cluster, "open_cluster", no_ray)
    settings, told = Settings(storage_root=folder / "storage"), list[str]()
    with pytest.raises(HeadstartError, match=r"(?s)Prefect ended with status 3; .*the database is locked"):
        stack.run(settings, [], cron="0 2 * * *", source=None, say=told.append)
    assert told == [f"Starting {one.name} (log: {one.log})" for one in (well, ill)]
    assert well.status() == -signal.SIGTERM
    assert not psutil.pid_exists(well.pid)
    assert not settings.stack_file.exists()


def write_stack(settings: Settings, **words: str) -> None:
    settings.storage.mkdir(parents=True)
    settings.stack_file.write_text(json.dumps(words))


def test_a_second_stack_of_a_storage_is_refused_and_the_first_stays(tmp_path: Path) -> None:
    settings = Settings(storage_root=tmp_path / "storage")
    write_stack(
        settings, pid=str(os.getpid()), owner=temporary_folders.mark(), parts="1:1.0", prefect_address="http://127.0.0.1:1/api"
    )
    before = settings.stack_file.read_text()
    words = f"a stack of {settings.storage} runs already (pid {os.getpid()}); end it with Ctrl-C, or name another --workspace"
    with pytest.raises(AskedWrongly, match=re.escape(words)):
        stack.run(settings, [], cron="0 2 * * *", source=None, say=print)
    assert settings.stack_file.read_text() == before
    assert [file.name for file in settings.storage.iterdir()] == ["stack.json"], "nothing was started or made"


def test_a_stack_that_was_killed_is_in_nobodys_way(tmp_path: Path) -> None:
    gone = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    settings = Settings(storage_root=tmp_path / "storage")
    write_stack(settings, pid=str(gone.pid), owner=temporary_folders.mark(gone.pid))
    with pytest.raises(AskedWrongly, match="runs already"):
        stack.run(settings, [], cron="never", source=None, say=print)
    gone.kill()
    gone.communicate()
    with pytest.raises(AskedWrongly, match="--cron 'never' is no cron"):
        stack.run(settings, [], cron="never", source=None, say=print)
