"""What a killed command leaves behind."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil

from flows.cluster.processes import free_ports
from flows.settings import OWNER, child_environment, read_settings
from flows.stack.orphans import end_orphans
from flows.stack.servers import Program, Server, free_port


def _server(storage: Path, owner: int) -> "subprocess.Popen[bytes]":
    env = os.environ | child_environment(read_settings(storage)) | {OWNER: str(owner)}
    return subprocess.Popen(
        [sys.executable, "-c", "import time; time.sleep(60)", "prefect.server.api.server:create_app"], env=env
    )


def test_a_server_whose_owner_was_killed_is_ended_and_every_other_one_lives_on(tmp_path: Path) -> None:
    here, elsewhere = tmp_path / "here", tmp_path / "elsewhere"
    gone = subprocess.Popen([sys.executable, "-c", ""])
    gone.wait()
    orphan, owned, foreign = _server(here, gone.pid), _server(here, os.getpid()), _server(elsewhere, gone.pid)
    try:
        assert end_orphans(read_settings(here)) == [orphan.pid]
        assert orphan.wait(10) != 0
        assert owned.poll() is None
        assert foreign.poll() is None
    finally:
        for process in (orphan, owned, foreign):
            process.kill()
            process.wait()


STUBBORN = """
import signal, socket, sys, time
listening = socket.create_server(("127.0.0.1", 0))
signal.signal(signal.SIGTERM, lambda *_: (time.sleep(2), sys.exit(0)))
print(listening.getsockname()[1], flush=True)
time.sleep(60)
"""


def test_the_port_of_an_orphan_that_takes_its_time_is_free_afterwards_and_runs_are_told_of(tmp_path: Path) -> None:
    gone = subprocess.Popen([sys.executable, "-c", ""])
    gone.wait()
    env = os.environ | child_environment(read_settings(tmp_path)) | {OWNER: str(gone.pid)}
    command = [sys.executable, "-c", STUBBORN]
    with (
        subprocess.Popen([*command, "prefect.server.api.server:create_app"], env=env, stdout=subprocess.PIPE) as server,
        subprocess.Popen([*command, "prefect.engine"], env=env, stdout=subprocess.PIPE) as run,
    ):
        assert server.stdout is not None
        assert run.stdout is not None
        port, _ = int(server.stdout.readline()), run.stdout.readline()
        told: list[str] = []
        try:
            assert set(end_orphans(read_settings(tmp_path), told.append)) == {server.pid, run.pid}
            assert free_port(port) == port
            assert server.wait(0.1) == run.wait(0.1) == 0, "asked, and given the time that they took"
        finally:
            server.kill()
            run.kill()
    assert "1 server and 1 run," in told[0]


def test_a_program_that_was_killed_says_how_and_all_of_its_session_ends_with_it(tmp_path: Path) -> None:
    (tmp_path / "parent.py").write_text(
        "import subprocess\nprint(subprocess.Popen(['sleep', '60']).pid, flush=True)\nimport time; time.sleep(60)\n"
    )
    program = Program("MLflow", ["parent"], {"PYTHONPATH": str(tmp_path)}, log=tmp_path / "log")
    program.start()
    try:
        while not (words := (tmp_path / "log").read_text().split()):
            time.sleep(0.05)
        child = int(words[0])
        os.kill(program.pid, signal.SIGKILL)
        assert program.wait(5)
        assert program.status() == -9
        assert psutil.pid_exists(child)
    finally:
        program.stop()
    deadline = time.monotonic() + 10
    while psutil.pid_exists(child) and psutil.Process(child).status() != psutil.STATUS_ZOMBIE:
        assert time.monotonic() < deadline, "it outlived its session's end"
    assert program.status() == -9


SERVER = """
import http.server, socketserver, sys, time
time.sleep(float(sys.argv[2]))
class Well(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200)
        self.end_headers()
    def log_message(self, *_): ...
socketserver.TCPServer.allow_reuse_address = True
socketserver.TCPServer(("127.0.0.1", int(sys.argv[1])), Well).serve_forever()
"""


def test_a_server_whose_port_another_one_took_meanwhile_starts_on_another_port_and_not_on_the_others_word(tmp_path: Path) -> None:
    (tmp_path / "server.py").write_text(SERVER)
    (port,) = free_ports(1)
    pages = {"url": "http://127.0.0.1:{port}", "page": "http://127.0.0.1:{port}/health"}
    env = {"PYTHONPATH": str(tmp_path)}
    theirs = Server("Theirs", ["server", "{port}", "0"], env, tmp_path / "theirs.log", port=port, **pages)
    ours = Server("Ours", ["server", "{port}", "2"], env, tmp_path / "ours.log", port=port, **pages)
    try:
        ours.start()
        theirs.start()
        theirs.wait_healthy()
        assert not ours.answers()
        ours.wait_healthy()
        assert ours.port != port
        assert ours.address == f"http://127.0.0.1:{ours.port}"
        assert ours.answers()
        assert theirs.answers()
    finally:
        ours.stop()
        theirs.stop()
