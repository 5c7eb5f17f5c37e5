"""What a person's environment may lack or say too much of: proxies, a name, a home, a temporary folder."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from pathlib import Path
from urllib.request import proxy_bypass_environment

import pytest

from flows import environment
from flows.errors import AskedWrongly

LOCAL = ["127.0.0.1", "localhost", "::1"]
NOBODY = 54321


@pytest.mark.parametrize(
    ("given", "entries"),
    [
        ({}, LOCAL),
        ({"NO_PROXY": "corp.example, 10.0.0.0/8"}, ["corp.example", "10.0.0.0/8", *LOCAL]),
        ({"no_proxy": ".corp.example localhost"}, [".corp.example", "localhost", "127.0.0.1", "::1"]),
        ({"NO_PROXY": "*"}, ["*"]),
        ({"NO_PROXY": "[::1],host:8080,fe80::/10,localhost:*"}, ["::1", "host:8080", "127.0.0.1", "localhost"]),
    ],
)
def test_this_machine_is_reached_past_every_proxy_and_what_the_person_set_stays(
    given: dict[str, str], entries: list[str]
) -> None:
    found = environment.direct(given)
    assert found["no_proxy"].split(",") == found["NO_PROXY"].split(",") == entries
    for name in ("127.0.0.1", "localhost"):
        assert proxy_bypass_environment(name, {"no": found["no_proxy"]})


def test_each_spelling_of_no_proxy_keeps_its_own(tmp_path: Path) -> None:
    found = environment.direct({"NO_PROXY": "upper.example", "no_proxy": "lower.example"})
    assert found == {"NO_PROXY": ",".join(["upper.example", *LOCAL]), "no_proxy": ",".join(["lower.example", *LOCAL])}


@pytest.mark.parametrize("name", ["ALL_PROXY", "all_proxy", "HTTP_PROXY", "https_proxy"])
@pytest.mark.parametrize("proxy", ["socks5://127.0.0.1:9", "socks://127.0.0.1:9/", "socks4a://h:1"])
def test_a_proxy_that_no_tool_can_speak_to_is_left_out_and_said(tmp_path: Path, name: str, proxy: str) -> None:
    env = {name: proxy, "HTTPS_PROXY": "http://kept.example:3128"} if name != "https_proxy" else {name: proxy}
    (said,) = environment.adapt(env, tmp_path)
    assert name not in env
    assert name in said
    assert proxy.partition(":")[0] + "://" in said
    assert name == "https_proxy" or env["HTTPS_PROXY"] == "http://kept.example:3128"


def test_prefects_client_can_be_made_with_what_is_left_of_the_proxies(tmp_path: Path) -> None:
    env = {**os.environ, "ALL_PROXY": "socks5://127.0.0.1:9", "HTTP_PROXY": "http://127.0.0.1:9", "NO_PROXY": "[::1],fe80::/10"}
    environment.adapt(env, tmp_path)
    program = (
        "import http.server, threading, httpx, urllib.request\n"
        "server = http.server.HTTPServer(('127.0.0.1', 0), http.server.SimpleHTTPRequestHandler)\n"
        "threading.Thread(target=server.serve_forever, daemon=True).start()\n"
        "address = f'http://127.0.0.1:{server.server_port}/'\n"
        "print(httpx.Client().get(address).status_code, urllib.request.urlopen(address).status)\n"
    )
    done = subprocess.run([sys.executable, "-c", program], env=env, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.stdout.split() == ["200", "200"], done.stderr


def test_a_user_id_without_a_name_gets_one_and_a_home_under_the_storage(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "getuid", lambda: NOBODY)
    monkeypatch.setattr(os, "access", lambda *_: False)  # as the root folder is to everyone but root
    nameless = {"USER": f"user{NOBODY}", "LOGNAME": f"user{NOBODY}", "HOME": str(tmp_path / "home")}
    for given in ({}, {"HOME": "/"}, {"HOME": ""}, {"HOME": "/nonexistent"}, {"HOME": "relative"}, {"USER": ""}):
        assert environment.whose(given, tmp_path) == nameless
    assert environment.whose({"HOME": str(tmp_path), "USER": "ann"}, tmp_path / "x") == {"LOGNAME": "ann", "HOME": str(tmp_path)}


def test_a_person_whom_the_system_knows_keeps_the_home_it_says(tmp_path: Path) -> None:
    home = os.path.expanduser("~")
    assert environment.whose({"HOME": home, "USER": "ann", "LOGNAME": "ann"}, tmp_path) == {"HOME": home}


def _told_temporary(tmpdir: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> tuple[dict[str, str], list[str]]:
    monkeypatch.setenv("TMPDIR", str(tmpdir))
    monkeypatch.setattr(tempfile, "tempdir", None)
    env = dict(os.environ)
    return env, environment.adapt(env, tmp_path)


def test_a_temporary_folder_that_is_missing_or_too_long_for_sockets_is_the_systems(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(environment, "_SHORT_FOLDERS", ("/nonexistent", "/tmp"))
    env, said = _told_temporary(tmp_path / "missing", monkeypatch, tmp_path)
    assert env["TMPDIR"] != str(tmp_path / "missing")
    assert "cannot be written" in said[0]
    long = tmp_path / ("batch-job-" + "1" * 60)
    long.mkdir()
    env, said = _told_temporary(long, monkeypatch, tmp_path)
    assert env["TMPDIR"] == "/tmp"
    assert "too long for the paths of sockets" in said[0]


def test_a_local_ray_lies_where_the_paths_of_its_sockets_fit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    long = tmp_path / "local-scratch-of-a-batch-job-12345678"
    long.mkdir()
    monkeypatch.setenv("TMPDIR", str(long))
    monkeypatch.setattr(tempfile, "tempdir", None)
    folder = environment.ray_folder()
    home = folder / "headstart-ray-12345678" / "session_2026-11-27_04-37-19_123456_4194304" / "sockets" / "dash_UsageStatsHead"
    assert len(os.fsencode(home)) <= 107
    monkeypatch.setattr(environment, "_SHORT_FOLDERS", ("/nonexistent",))
    with pytest.raises(AskedWrongly, match="set TMPDIR to a shorter folder"):
        environment.ray_folder()
