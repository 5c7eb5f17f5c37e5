"""Prefect's server: a check that a standing one answers and accepts our credentials, and the start of one of its own."""

from __future__ import annotations

import atexit
import base64
import contextlib
import contextvars
import errno
import os
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import BinaryIO

from flows import addresses, environment, prefect_database
from flows.errors import HeadstartError, Unreachable
from flows.prefect_private import SERVER_APP, SERVER_ENVIRONMENT, SERVER_PROGRAM
from flows.words import end_of

START = "Start it (`headstart up` starts one), set HEADSTART_PREFECT_ADDRESS to http://host:4200/api, or unset it."
LOG_IN = "Set PREFECT_API_AUTH_STRING to user:password for a server of your own, or PREFECT_API_KEY for Prefect Cloud."
CLOUD = "prefect.cloud/"
# In the PREFECT_HOME of a server of our own.
LOG = "server.log"
MAX_LOG_BYTES = 5_000_000
# A database of Prefect's has no room in these.
FEW_BYTES = 2**20
# How Prefect's message begins when the server that it starts for itself does not answer in time.
_TOO_LATE = "Timed out while attempting to connect to ephemeral Prefect API server"
_SECONDS = "PREFECT_SERVER_EPHEMERAL_STARTUP_TIMEOUT_SECONDS"


def check(address: str) -> None:
    """Check that Prefect's API answers at `address` and accepts our credentials.

    Raises Unreachable, within seconds, if nothing answers, the server is not Prefect, credentials are missing, or it refuses
    them.
    """
    if CLOUD in address:
        if not _headers(os.environ) and not _prefects_own():
            raise Unreachable(f"{address} asks for a key, and none is set. {LOG_IN}")
        return
    code, body = _get(address, "/health", _headers(os.environ))
    if code not in addresses.REFUSALS and (code != 200 or body.strip() != b"true"):
        raise Unreachable(f"{address} answers, but not as Prefect's API does. {START}")
    # /health needs no login, so it does not show whether we have one.
    if not _is_refused(address, _headers(os.environ)):
        return
    known = _prefects_own() | _headers(os.environ)
    if not known:
        raise Unreachable(f"Prefect at {address} asks for credentials, and none are set. {LOG_IN}")
    if _is_refused(address, known):
        raise Unreachable(f"Prefect at {address} refuses the credentials that are set. {LOG_IN}")


def version(address: str) -> str:
    """The version that the server tells of itself, '' if it tells none."""
    code, body = _get(address, "/admin/version", _headers(os.environ) or _prefects_own())
    return body.decode(errors="replace").strip().strip('"') if code == 200 else ""


@contextlib.contextmanager
def of_its_own(meanwhile: Callable[[], None] | None = None, home: Path | None = None) -> Iterator[None]:
    """For a block in which Prefect may start a server for itself. Raises Unreachable if that does not answer in time.

    If something can be done `meanwhile`, the server is started before the block, and that done while it is waited for. `home`
    is the PREFECT_HOME of a server of our own, whose database is laid from this machine's template.
    """
    try:
        if meanwhile:
            _start_beside(meanwhile, home)
        yield
    except RuntimeError as error:
        if not str(error).startswith(_TOO_LATE):
            raise
        raise _unanswered(str(error).removeprefix(_TOO_LATE)) from error
    except Exception as error:
        if home and _is_its_failure(error):
            raise _failed(home) from error
        raise


def _is_its_failure(error: Exception) -> bool:
    """Whether a server of Prefect's told its client that it met an error of its own."""
    if "prefect.exceptions" not in sys.modules:
        return False
    from prefect.exceptions import PrefectHTTPStatusError

    return isinstance(error, PrefectHTTPStatusError) and error.response.status_code >= 500


def _failed(home: Path) -> Exception:
    """What a server of our own failed of: a full disk, of which its log can say nothing, or what the log says."""
    if shutil.disk_usage(home).free < FEW_BYTES:
        return OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(home))
    return HeadstartError(f"the server that Prefect starts for itself failed; {home / LOG} says of what. Then run this again")


def _unanswered(more: str) -> Unreachable:
    more = more.strip(". \n")
    return Unreachable(
        f"the server that Prefect starts for itself did not answer within {os.environ.get(_SECONDS, 'its')} seconds"
        f"{f' ({end_of(more, 500)})' if more else ''}: run this again, give a slow machine more of them in {_SECONDS}, or start "
        "`headstart up`, whose server stands"
    )


def _start_beside(meanwhile: Callable[[], None], home: Path | None) -> None:
    with prefect_database.from_template(home):
        if home and is_plain(os.environ, home):
            _start_now(meanwhile, home)
        else:
            _start_as_prefect_does(meanwhile)


def is_plain(environ: Mapping[str, str], home: Path) -> bool:
    """Whether Prefect would start a server of its own in `home`, with settings that stand in this environment alone.

    Files with settings are only looked for, since Prefect is not loaded to read them.
    """
    names = ("PREFECT_API_URL", "PREFECT_PROFILE", "PREFECT_PROFILES_PATH", "PREFECT_SERVER_ALLOW_EPHEMERAL_MODE")
    files = [home / "profiles.toml", *(Path(name) for name in (".env", "prefect.toml", "pyproject.toml"))]
    return (
        "prefect" not in sys.modules
        and environ.get("PREFECT_HOME") == str(home)
        and environ.get("PREFECT_SERVER_EPHEMERAL_ENABLED") == "true"
        and environ.get(_SECONDS, "").isdecimal()
        and not any(name in environ for name in names)
        and not any(map(_speaks_of_prefect, files))
    )


def _speaks_of_prefect(file: Path) -> bool:
    try:
        return b"prefect" in file.read_bytes().lower() or file.name == "prefect.toml"
    except FileNotFoundError:
        return False
    except OSError:
        return True


def _start_now(meanwhile: Callable[[], None], home: Path) -> None:
    """Start the server as Prefect does, but before Prefect is loaded, which then takes it for one that stands.

    What it says goes to a log in its home: its tracebacks would bury what we say of the same failure.
    """
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        listening.listen()
        address = f"http://127.0.0.1:{listening.getsockname()[1]}/api"
        # `-P`: what lies in the current folder is no module of the server's.
        command = [sys.executable, "-P", "-c", SERVER_PROGRAM, SERVER_APP, str(listening.fileno())]
        env = {**os.environ, **SERVER_ENVIRONMENT}
        with _open_log(home) as log:
            server = subprocess.Popen(command, pass_fds=[listening.fileno()], env=env, stdout=log, stderr=log)
    # Before Prefect registers what it does at the end, which therefore happens first.
    atexit.register(_end, server)
    os.environ["PREFECT_API_URL"] = address
    try:
        # It reads the settings of the process here, once. Nobody else is to take this server for one that stands.
        import prefect.context  # noqa: F401
    finally:
        del os.environ["PREFECT_API_URL"]
    meanwhile()
    _wait(server, address, float(os.environ[_SECONDS]), home / LOG)


def _open_log(home: Path) -> BinaryIO:
    """The log to add to, begun anew where it is long; on a disk that is full or read-only, nowhere."""
    try:
        home.mkdir(parents=True, exist_ok=True)
        log = home / LOG
        is_long = log.exists() and log.stat().st_size > MAX_LOG_BYTES
        return log.open("wb" if is_long else "ab")
    except OSError:
        return Path(os.devnull).open("ab")


def _wait(server: subprocess.Popen[bytes], address: str, seconds: float, log: Path) -> None:
    deadline = time.monotonic() + seconds
    # Its socket listens from the start, so that a request waits for its answer, or for the server's end.
    while (left := deadline - time.monotonic()) > 0 and server.poll() is None:
        with contextlib.suppress(OSError), environment.opener(address).open(f"{address}/health", timeout=left):
            return
        time.sleep(0.1)
    status = server.poll()
    raise _unanswered("" if status is None else f"it ended with status {status}; see {log}")


def _end(server: subprocess.Popen[bytes]) -> None:
    server.terminate()
    try:
        server.wait(timeout=5)
    except subprocess.TimeoutExpired:
        server.kill()
        server.wait()


def _start_as_prefect_does(meanwhile: Callable[[], None]) -> None:
    from prefect.settings import PREFECT_API_URL, PREFECT_SERVER_ALLOW_EPHEMERAL_MODE

    if PREFECT_API_URL.value() or not PREFECT_SERVER_ALLOW_EPHEMERAL_MODE.value():
        meanwhile()
        return
    # The one that Prefect's clients of this process would start, and find started.
    from prefect.server.api.server import SubprocessASGIServer

    with ThreadPoolExecutor(1, thread_name_prefix="prefect") as pool:
        started = pool.submit(contextvars.copy_context().run, SubprocessASGIServer().start)
        meanwhile()
        started.result()


def _is_refused(address: str, headers: Mapping[str, str]) -> bool:
    return _get(address, "/admin/version", headers)[0] in addresses.REFUSALS


def _get(address: str, path: str, headers: Mapping[str, str]) -> tuple[int, bytes]:
    return addresses.probe("Prefect", address, path, headers, START)


def _headers(environ: Mapping[str, str]) -> dict[str, str]:
    return _authorization(environ.get("PREFECT_API_AUTH_STRING"), environ.get("PREFECT_API_KEY"))


def _prefects_own() -> dict[str, str]:
    """The headers that Prefect's client would send, by its environment, profile or files; slow, so read only when needed."""
    from prefect.settings import PREFECT_API_AUTH_STRING, PREFECT_API_KEY, PREFECT_CLIENT_CUSTOM_HEADERS

    return dict(PREFECT_CLIENT_CUSTOM_HEADERS.value()) | _authorization(PREFECT_API_AUTH_STRING.value(), PREFECT_API_KEY.value())


def _authorization(login: str | None, key: str | None) -> dict[str, str]:
    if login:
        return {"Authorization": "Basic " + base64.b64encode(login.encode()).decode()}
    return {"Authorization": f"Bearer {key}"} if key else {}
