"""Prefect's server: a check that a standing one answers and accepts our credentials, and the start of one of its own."""

from __future__ import annotations

import base64
import contextlib
import contextvars
import os
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor

from flows import addresses
from flows.errors import Unreachable

START = "Start it (`headstart up` starts one), set HEADSTART_PREFECT_ADDRESS to http://host:4200/api, or unset it."
LOG_IN = "Set PREFECT_API_AUTH_STRING to user:password for a server of your own, or PREFECT_API_KEY for Prefect Cloud."
CLOUD = "prefect.cloud/"
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
def of_its_own(meanwhile: Callable[[], None] | None = None) -> Iterator[None]:
    """For a block in which Prefect may start a server for itself. Raises Unreachable if that does not answer in time.

    If something can be done `meanwhile`, the server is started before the block, and that done while it is waited for.
    """
    try:
        if meanwhile:
            _start_beside(meanwhile)
        yield
    except RuntimeError as error:
        if not str(error).startswith(_TOO_LATE):
            raise
        more = str(error).removeprefix(_TOO_LATE).strip(". \n")
        raise Unreachable(
            f"the server that Prefect starts for itself did not answer within {os.environ.get(_SECONDS, 'its')} seconds"
            f"{f' ({more[-500:]})' if more else ''}: run this again, give a slow machine more of them in {_SECONDS}, or start "
            "`headstart up`, whose server stands"
        ) from error


def _start_beside(meanwhile: Callable[[], None]) -> None:
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
