"""Settings that name what they cannot take, servers that ask for credentials, and letters that a stream cannot write."""

from __future__ import annotations

import base64
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from flows import mlflow_access, prefect_server
from flows.errors import Unreachable
from flows.settings import read_settings
from tests.cli.conftest import Ask

COMMAND = Path(sys.executable).with_name("headstart")
GIVEN = [
    ("STORAGE_ROOT", "s3:///root", "an address without a bucket"),
    ("STORAGE_ROOT", "gs://bucket/root", "folder of this machine"),
    ("STORAGE_ROOT", "file:///srv/root", "folder of this machine"),
    ("STORAGE_ROOT", "https://host/root", "folder of this machine"),
    ("STORAGE_ROOT", "s3:/bucket/root", "folder of this machine"),
    ("STORAGE_ROOT", "a-file", "a file, where a folder is asked for"),
    ("STORAGE_ROOT", "~nobody-of-this-name/x", "folder of this machine"),
    ("WORKSPACE", "s3://bucket/pets", "folder of this machine"),
    ("WORKSPACE", "a-file", "a file, where a folder is asked for"),
    ("TRACKING_ADDRESS", "s3://bucket/runs", "http(s)://host:5000"),
    ("TRACKING_ADDRESS", "file:///srv/mlruns", "sqlite:///"),
    ("TRACKING_ADDRESS", "http://", "without a host"),
    ("RAY_ADDRESS", "ray://127.0.0.1:10001", "http://host:8265"),
    ("RAY_ADDRESS", "127.0.0.1:8265", "http://host:8265"),
    ("RAY_ADDRESS", "auto", "http://host:8265"),
    ("RAY_ADDRESS", "http://host:port", "http://host:8265"),
    ("PREFECT_ADDRESS", "127.0.0.1:4200", "http://host:4200/api"),
    ("PREFECT_ADDRESS", "postgresql://host/prefect", "http://host:4200/api"),
    ("FEATURES_ROOT", "gs://bucket/features", "s3://bucket/prefix"),
    ("FEATURES_ROOT", "s3://", "s3://bucket/prefix"),
    ("FEATURES_ROOT", "s3:/bucket", "s3://bucket/prefix"),
    ("FEATURES_MAX_BYTES", "many", "50GB"),
]


@pytest.mark.parametrize(("name", "value", "takes"), GIVEN)
def test_a_setting_that_names_what_it_cannot_take_is_refused_and_nothing_is_made(
    tmp_path: Path, ask: Ask, name: str, value: str, takes: str
) -> None:
    (tmp_path / "a-file").write_text("mine")
    answer = ask(tmp_path, "models", "list", **{f"HEADSTART_{name}": value})
    assert (answer.status, answer.out) == (2, ""), answer
    assert answer.err.startswith(f"headstart: HEADSTART_{name}={value}: ")
    assert takes in answer.err
    assert "or unset it" in answer.err
    assert [path.name for path in tmp_path.iterdir()] == ["a-file"]


def test_a_password_in_a_refused_address_is_not_told(tmp_path: Path, ask: Ask) -> None:
    for name in ("RAY_ADDRESS", "PREFECT_ADDRESS", "FEATURES_ROOT"):
        answer = ask(tmp_path, "models", "list", **{f"HEADSTART_{name}": "http://ann:hidden@host:1"})
        assert answer.status == 2
        assert "hidden" not in answer.err
        os.environ.pop(f"HEADSTART_{name}")


def test_a_tilde_in_a_folder_is_the_home(tmp_path: Path, ask: Ask) -> None:
    (tmp_path / "home").mkdir()
    answer = ask(tmp_path, "init", "pets", HOME=str(tmp_path / "home"), HEADSTART_STORAGE_ROOT="~/kept")
    assert answer.status == 0, answer
    assert read_settings(tmp_path / "pets").storage == tmp_path / "home/kept"


@contextmanager
def serving(health: bytes, wanted: str | None, *, open_health: bool) -> Iterator[str]:
    """The address of a server with this health page that asks for an Authorization."""

    class Page(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            healthy = self.path.endswith("/health")
            let_in = wanted is None or self.headers["Authorization"] == wanted or (healthy and open_health)
            self.send_response(200 if let_in else 401)
            self.end_headers()
            self.wfile.write(health if let_in else b"")

        def log_message(self, *_: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Page) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_address[1]}"
        server.shutdown()


def basic(login: str) -> str:
    return "Basic " + base64.b64encode(login.encode()).decode()


@pytest.fixture
def no_credentials(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    names = ("USERNAME", "PASSWORD", "TOKEN", "AUTH", "AWS_SIGV4", "CLIENT_CERT_PATH")
    for name in (*(f"MLFLOW_TRACKING_{each}" for each in names), "PREFECT_API_KEY", "PREFECT_API_AUTH_STRING"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("PREFECT_HOME", str(tmp_path / "prefect"))


@pytest.mark.usefixtures("no_credentials")
@pytest.mark.parametrize("open_health", [True, False], ids=["of MLflow's own", "of a gateway"])
def test_mlflow_behind_a_login_tells_missing_credentials_wrong_ones_and_strangers_apart(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, open_health: bool
) -> None:
    with serving(b"OK", basic("ann:right"), open_health=open_health) as address:
        with pytest.raises(Unreachable, match=r"asks for credentials(?s:.*)MLFLOW_TRACKING_USERNAME(?s:.*)MLFLOW_TRACKING_TOKEN"):
            mlflow_access.check_access(address)
        monkeypatch.setenv("MLFLOW_TRACKING_TOKEN", "wrong")
        with pytest.raises(Unreachable, match="refuses the credentials of the token"):
            mlflow_access.check_access(address)
        (tmp_path / ".mlflow").mkdir()
        kept = tmp_path / ".mlflow/credentials"
        kept.write_text("[mlflow]\nmlflow_tracking_username = ann\nmlflow_tracking_password = right\n")
        mlflow_access.check_access(address)
        monkeypatch.setenv("MLFLOW_TRACKING_PASSWORD", "wrong")
        with pytest.raises(Unreachable, match="refuses the credentials of user 'ann'"):
            mlflow_access.check_access(address)
    with serving(b"OK", "Bearer right", open_health=open_health) as address:
        kept.unlink()
        monkeypatch.setenv("MLFLOW_TRACKING_TOKEN", "right")
        mlflow_access.check_access(address)
    with serving(b"<html>", None, open_health=open_health) as address, pytest.raises(Unreachable, match="not as MLflow does"):
        mlflow_access.check_access(address)


@pytest.mark.usefixtures("no_credentials")
def test_prefect_behind_a_login_tells_missing_credentials_from_wrong_ones(monkeypatch: pytest.MonkeyPatch) -> None:
    with serving(b"true", basic("ann:right"), open_health=True) as address:
        with pytest.raises(Unreachable, match=r"asks for credentials(?s:.*)PREFECT_API_AUTH_STRING(?s:.*)PREFECT_API_KEY"):
            prefect_server.check(f"{address}/api")
        monkeypatch.setenv("PREFECT_API_AUTH_STRING", "ann:wrong")
        with pytest.raises(Unreachable, match="refuses the credentials that are set"):
            prefect_server.check(f"{address}/api")
        monkeypatch.setenv("PREFECT_API_AUTH_STRING", "ann:right")
        prefect_server.check(f"{address}/api")
    monkeypatch.delenv("PREFECT_API_AUTH_STRING")
    with pytest.raises(Unreachable, match="asks for a key, and none is set"):
        prefect_server.check("https://api.prefect.cloud/api/accounts/a/workspaces/b")


def test_a_letter_that_a_stream_cannot_write_is_spelled_out(tmp_path: Path) -> None:
    env = {**os.environ, "PYTHONIOENCODING": "ascii"}
    for words in (["init", str(tmp_path / "é")], ["data", "status", "--workspace", str(tmp_path / "ü")]):
        done = subprocess.run([COMMAND, *words], env=env, cwd=tmp_path, capture_output=True, check=False)
        assert b"Traceback" not in done.stderr
        assert rb"\xe9 is a workspace" in done.stderr or rb"\xfc is no workspace" in done.stderr, done.stderr
    program = (
        "import sys; from flows import cli; from flows.cli import screen\n"
        "cli._write_any_letter()\n"
        "screen.show_table('classes', ['class'], [['café']]); screen.note('né'); screen.warn('\\udcff')"
    )
    done = subprocess.run([sys.executable, "-c", program], env=env, capture_output=True, check=False)
    assert (done.returncode, rb"caf\xe9" in done.stdout, rb"n\xe9" in done.stderr) == (0, True, True), done.stderr
