"""A Prefect server of our own: started before Prefect is loaded, on a database from this machine's template."""

from __future__ import annotations

import os
import shutil
import sqlite3
import subprocess
import sys
from contextlib import closing
from pathlib import Path

import pytest

from flows import prefect_database, prefect_private, prefect_server
from flows.errors import HeadstartError

SECONDS = "PREFECT_SERVER_EPHEMERAL_STARTUP_TIMEOUT_SECONDS"
# A flow run on the server that was started for the block, and what is loaded and set meanwhile.
RUN = """
import os, sys
from pathlib import Path
from flows import prefect_server

def load():
    from prefect import flow
    globals()["flow"] = flow

with prefect_server.of_its_own(load, Path(os.environ["PREFECT_HOME"])):
    from prefect.client.orchestration import get_client
    flow(name="counted")(lambda: 1)()
    with get_client(sync_client=True) as client:
        print([run.state.name for run in client.read_flow_runs()], len(client.read_block_types()) > 9)
    print("prefect.server.api.server" in sys.modules, "PREFECT_API_URL" in os.environ)
"""


def _environment(home: Path, cache: Path, seconds: str = "120") -> dict[str, str]:
    env = {name: value for name, value in os.environ.items() if not name.startswith("PREFECT_")}
    env |= {"PREFECT_HOME": str(home), "PREFECT_SERVER_EPHEMERAL_ENABLED": "true", SECONDS: seconds}
    return env | {"XDG_CACHE_HOME": str(cache), "PREFECT_LOGGING_LEVEL": "CRITICAL", "PREFECT_SERVER_ANALYTICS_ENABLED": "false"}


def _run(code: str, home: Path, cache: Path, seconds: str = "120") -> str:
    env = _environment(home, cache, seconds)
    done = subprocess.run([sys.executable, "-c", code], env=env, cwd=cache, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def first(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path, str]:
    """A first home whose database Prefect made by itself, the cache in which its template is, and what its flow run printed."""
    home, cache = tmp_path_factory.mktemp("home"), tmp_path_factory.mktemp("cache")
    # What a standing server's user may have around is no module of the server's.
    (cache / "uvicorn.py").write_text("raise SystemExit('this is not uvicorn')")
    (cache / "sqlalchemy.py").write_text("raise SystemExit('this is not sqlalchemy')")
    code = f"import sys; sys.path.remove('')\n{RUN}"
    return home, cache, _run(code, home, cache)


@pytest.fixture
def cache(first: tuple[Path, Path, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of the cache with the template, which is this process's cache."""
    shutil.copytree(first[1], tmp_path / "cache")
    for name in [name for name in os.environ if name.startswith("PREFECT_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache"


def _template(cache: Path) -> Path:
    return cache / "headstart" / "prefect" / f"{prefect_private.version()}.db"


def _rows(file: Path, query: str) -> list[tuple[object, ...]]:
    with closing(sqlite3.connect(file)) as database:
        return database.execute(query).fetchall()


SCHEMA = "SELECT type, name, sql FROM sqlite_master ORDER BY type, name"


@pytest.mark.slow
def test_a_server_starts_before_prefect_is_loaded_and_flows_run_on_it(first: tuple[Path, Path, str]) -> None:
    assert first[2] == "['Completed'] True\nFalse False\n"


@pytest.mark.slow
def test_a_new_database_is_the_template_and_the_same_as_one_that_prefect_makes(
    first: tuple[Path, Path, str], cache: Path, tmp_path: Path
) -> None:
    home = tmp_path / "second"
    assert prefect_database.lay(home)
    assert _rows(home / "prefect.db", SCHEMA) == _rows(first[0] / "prefect.db", SCHEMA)
    assert (home / "memo_store.toml").read_bytes() == (first[0] / "memo_store.toml").read_bytes()
    assert _run(RUN, home, cache) == "['Completed'] True\nFalse False\n"
    assert _rows(home / "prefect.db", "SELECT name FROM flow") == [("counted",)]


@pytest.mark.slow
def test_a_template_holds_nothing_of_the_workspace_that_it_comes_from(first: tuple[Path, Path, str], cache: Path) -> None:
    filled = {
        name
        for (name,) in _rows(_template(cache), "SELECT name FROM sqlite_master WHERE type = 'table'")
        if _rows(_template(cache), f'SELECT 1 FROM "{name}" LIMIT 1')
    }
    assert filled == prefect_private.CATALOGUE
    assert b"counted" not in _template(cache).read_bytes()
    assert sorted(file.name for file in _template(cache).parent.iterdir()) == [
        f"{prefect_private.version()}.db",
        f"{prefect_private.version()}.toml",
    ]


@pytest.mark.slow
@pytest.mark.parametrize(
    "spoil",
    [
        "UPDATE alembic_version SET version_num = 'b9aafc3ab936'",
        "INSERT INTO configuration VALUES ('1', '2026-01-01', '2026-01-01', 'ENCRYPTION_KEY', '{}')",
        "DROP TABLE alembic_version",
        None,
    ],
)
def test_a_template_that_is_damaged_or_older_or_filled_is_removed_and_made_again(
    first: tuple[Path, Path, str], cache: Path, tmp_path: Path, spoil: str | None
) -> None:
    template = _template(cache)
    if spoil:
        with closing(sqlite3.connect(template)) as database:
            database.execute(spoil)
            database.commit()
    else:
        template.write_bytes(template.read_bytes()[:300_000])
    assert not prefect_database.lay(tmp_path / "home")
    assert not template.exists()
    assert list((tmp_path / "home").iterdir()) == []
    # The first home has a flow run now, and so it is no template.
    assert not prefect_database.keep(first[0])
    _make_new(first[0], tmp_path / "other")
    assert prefect_database.keep(tmp_path / "other")
    assert prefect_database.lay(tmp_path / "home")


def _make_new(home: Path, other: Path) -> None:
    """Another home with a copy of a database, in which there are no flows and runs, but an installation's key."""
    other.mkdir()
    shutil.copy(home / "memo_store.toml", other)
    with closing(sqlite3.connect(home / "prefect.db")) as database:
        database.execute("VACUUM INTO ?", (str(other / "prefect.db"),))
    with closing(sqlite3.connect(other / "prefect.db")) as database:
        names = [name for (name,) in database.execute("SELECT name FROM sqlite_master WHERE type = 'table'")]
        for name in set(names) - prefect_private.CATALOGUE:
            database.execute(f'DELETE FROM "{name}"')
        database.execute("INSERT INTO configuration VALUES ('1', '2026-01-01', '2026-01-01', 'ENCRYPTION_KEY', '{}')")
        database.commit()


@pytest.mark.slow
def test_a_database_that_is_there_or_whose_log_is_or_that_stands_elsewhere_stays_as_it_is(
    cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("prefect.db", "prefect.db-wal"):
        home = tmp_path / name
        home.mkdir()
        (home / name).write_bytes(b"mine")
        assert not prefect_database.lay(home)
        assert [file.read_bytes() for file in home.iterdir()] == [b"mine"]
    monkeypatch.setenv("PREFECT_SERVER_DATABASE_CONNECTION_URL", "postgresql+asyncpg://db/prefect")
    with prefect_database.from_template(tmp_path / "elsewhere"):
        assert not (tmp_path / "elsewhere").exists()


@pytest.mark.slow
def test_a_server_that_ends_is_told_with_its_log_and_says_nothing_beside(cache: Path, tmp_path: Path) -> None:
    code = f"""
import os
from flows import prefect_private, prefect_server
from flows.errors import Unreachable
prefect_server.SERVER_PROGRAM = "raise SystemExit('no such table')"
try:
    exec({RUN!r})
except Unreachable as error:
    print(error)
"""
    home = tmp_path / "home"
    done = subprocess.run(
        [sys.executable, "-c", code], env=_environment(home, cache), cwd=cache, capture_output=True, text=True, check=True
    )
    assert f"(it ended with status 1; see {home / 'server.log'}): run this again" in done.stdout
    assert (home / "server.log").read_text() == "no such table\n"
    assert done.stderr == ""


@pytest.mark.slow
def test_a_server_that_is_late_is_told_with_what_to_do(cache: Path, tmp_path: Path) -> None:
    code = f"""
from flows.errors import Unreachable
try:
    exec({RUN!r})
except Unreachable as error:
    print(error)
"""
    said = _run(code, tmp_path / "home", cache, seconds="0")
    assert said.startswith("the server that Prefect starts for itself did not answer within 0 seconds: run this again")
    assert SECONDS in said


@pytest.mark.parametrize(("free", "told"), [(0, "No space left on device"), (10**9, r"failed; .*server\.log says of what")])
def test_a_server_of_our_own_that_fails_is_told_with_its_log_or_as_a_full_disk(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, free: int, told: str
) -> None:
    from httpx import Request, Response
    from prefect.exceptions import PrefectHTTPStatusError

    def answer(status: int) -> None:
        request = Request("POST", "http://127.0.0.1:1/api/flow_runs/")
        raise PrefectHTTPStatusError("refused", request=request, response=Response(status, request=request))

    monkeypatch.setattr(shutil, "disk_usage", lambda _: shutil._ntuple_diskusage(10**9, 10**9 - free, free))
    with pytest.raises((OSError, HeadstartError), match=told), prefect_server.of_its_own(home=tmp_path):
        answer(500)
    with pytest.raises(PrefectHTTPStatusError), prefect_server.of_its_own(home=tmp_path):
        answer(404)
    with pytest.raises(PrefectHTTPStatusError), prefect_server.of_its_own():
        answer(500)


def test_prefect_starts_its_server_itself_where_a_file_or_a_variable_may_say_how(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(sys.modules, "prefect", None)
    monkeypatch.delitem(sys.modules, "prefect")
    env = _environment(tmp_path / "home", tmp_path)
    assert prefect_server.is_plain(env, tmp_path / "home")
    assert not prefect_server.is_plain(env, tmp_path / "another")
    for name, value in [("PREFECT_PROFILE", "mine"), (SECONDS, "soon"), ("PREFECT_API_URL", "http://127.0.0.1:4200/api")]:
        assert not prefect_server.is_plain(env | {name: value}, tmp_path / "home")
    for name, text, plain in [
        (".env", "PREFECT_API_URL=http://host:4200/api", False),
        (".env", "COLOR=blue", True),
        ("pyproject.toml", "[tool.prefect]", False),
        ("prefect.toml", "", False),
    ]:
        (tmp_path / name).write_text(text)
        assert prefect_server.is_plain(env, tmp_path / "home") is plain
        (tmp_path / name).unlink()


def test_prefects_private_names_that_we_use_are_there() -> None:
    import prefect

    assert prefect.__file__
    root = Path(prefect.__file__).parent
    server, app = prefect_private.SERVER_APP.replace(".", "/").split(":")
    text = (root.parent / f"{server}.py").read_text()
    assert f"def {app}(" in text
    assert all(f'"{name}": "{value}"' in text for name, value in prefect_private.SERVER_ENVIRONMENT.items())
    settings = "".join(file.read_text() for file in (root / "settings").rglob("*.py"))
    assert prefect_private.DATABASE in settings
    assert prefect_private.MEMO in settings
    from alembic.config import Config
    from alembic.script import ScriptDirectory

    config = Config()
    config.set_main_option("path_separator", "os")
    config.set_main_option("script_location", str(root / "server" / "database" / "_migrations"))
    config.set_main_option("version_locations", str(root / "server" / "database" / "_migrations" / "versions" / "sqlite"))
    assert ScriptDirectory.from_config(config).get_heads() == [prefect_private.head()]
