"""Repairs of an environment that lacks what our tools need: a way past proxies, a user name, a home, short paths."""

from __future__ import annotations

import contextlib
import importlib.util
import os
import pwd
import re
import tempfile
from collections.abc import Mapping, MutableMapping
from ipaddress import ip_address
from pathlib import Path
from urllib.parse import urlsplit
from urllib.request import OpenerDirector, ProxyHandler, build_opener

from flows.errors import AskedWrongly

THIS_MACHINE = ("127.0.0.1", "localhost", "::1")
# The longest path of a Unix socket, in bytes (sockaddr_un's 108 less the terminating zero).
SOCKET_BYTES = 107
# The longest path of a socket under the temporary folder: /headstart-work-<8>/pymp-<8>/listener-<8>.
_BELOW_TEMPORARY = 56
_OURS, _BELOW_OURS = "/headstart-", 32
# And the longest one of Ray's: /headstart-ray-<8>/session_<date, 26>_<pid, 7>/sockets/dash_UsageStatsHead.
_BELOW_RAY = 94
_SHORT_FOLDERS = ("/tmp", "/var/tmp", "/dev/shm")
_PROXIES = ("http_proxy", "https_proxy", "all_proxy")


def adapt(environ: MutableMapping[str, str], storage: Path) -> list[str]:
    """Change an environment so that every tool works in it; returns warnings, in words, on what was left out.

    This machine is always reached without a proxy. A user id without a name gets one, and a home that is missing becomes a
    folder under `storage`. A temporary folder that cannot be used, or is too long for sockets, is replaced by the system's.
    """
    environ.update(direct(environ) | whose(environ, storage))
    # So that no process fails because its encoding lacks a letter that it prints.
    encoding, _, handler = environ.get("PYTHONIOENCODING", "").partition(":")
    environ["PYTHONIOENCODING"] = f"{encoding}:{handler or 'backslashreplace'}"
    return [*_drop_proxies(environ), *_mend_temporary(environ)]


def direct(environ: Mapping[str, str]) -> dict[str, str]:
    """NO_PROXY and no_proxy with this machine added to what the person set; `*` stays alone, as tools know it only so."""
    lower, upper = environ.get("no_proxy", ""), environ.get("NO_PROXY", "")
    return {"no_proxy": _with_this_machine(lower or upper), "NO_PROXY": _with_this_machine(upper or lower)}


def whose(environ: Mapping[str, str], storage: Path) -> dict[str, str]:
    """USER, LOGNAME and HOME for an environment in which they are missing or of no use."""
    try:
        home = pwd.getpwuid(os.getuid()).pw_dir
    except KeyError:
        home = ""
    known = environ.get("LOGNAME") or environ.get("USER") or user_name()
    home = environ.get("HOME") or home
    variables = {key: known for key in ("USER", "LOGNAME") if not environ.get(key)}
    # A home that is there may hold credentials and stays; the root folder, which a container gives to strangers, holds none.
    serves = os.path.isabs(home) and os.path.isdir(home) and (os.path.realpath(home) != "/" or os.access(home, os.W_OK))
    variables["HOME"] = home if serves else str(storage / "home")
    return variables


def user_name() -> str:
    """The name of this process's user, or `user` and the number of one that has no name."""
    try:
        return pwd.getpwuid(os.getuid()).pw_name
    except KeyError:
        return f"user{os.getuid()}"


def ray_folder() -> Path:
    """A folder for the home of a Ray head, short enough for its sockets' paths. Raises AskedWrongly if there is none."""
    folder = short_folder(SOCKET_BYTES - _BELOW_RAY)
    if folder is None:
        raise AskedWrongly(
            f"no folder for a local Ray's sockets: {tempfile.gettempdir()} is too long ({SOCKET_BYTES - _BELOW_RAY} letters at "
            f"most), and none of {', '.join(_SHORT_FOLDERS)} can be written; set TMPDIR to a shorter folder"
        )
    return folder


def short_folder(num_bytes: int) -> Path | None:
    """A folder for temporary files whose path has at most so many bytes: the person's, else the system's, None if neither."""
    folders = (tempfile.gettempdir(), *_SHORT_FOLDERS)
    return next((Path(folder) for folder in folders if len(os.fsencode(folder)) <= num_bytes and _can_write(folder)), None)


def opener(address: str) -> OpenerDirector:
    """An opener for an http(s) address: without a proxy on this machine, else with those of the environment."""
    return build_opener(ProxyHandler({})) if urlsplit(address).hostname in THIS_MACHINE else build_opener()


def _with_this_machine(listed: str) -> str:
    entries = [entry for part in re.split(r"[,\s]+", listed) if (entry := _entry(part))]
    if entries == ["*"]:
        return "*"
    return ",".join([*entries, *(name for name in THIS_MACHINE if name not in entries)])


def _entry(given: str) -> str:
    """An entry of NO_PROXY as all tools understand it; '' for one that none of them uses and httpx fails at."""
    with contextlib.suppress(ValueError):
        return str(ip_address(given.strip("[]")))
    host, colon, port = given.rpartition(":")
    return "" if colon and "://" not in given and (":" in host or not port.isdigit()) else given


def _drop_proxies(environ: MutableMapping[str, str]) -> list[str]:
    """Remove the proxy variables of a kind that our tools cannot use: one of the tools fails if they are merely set."""
    takes = {"http", "https"} | ({"socks5", "socks5h"} if importlib.util.find_spec("socksio") else set())
    names = [name for name in environ if name.lower() in _PROXIES and _scheme(environ[name]) not in takes]
    for name in names:
        scheme = _scheme(environ.pop(name))
    if not names:
        return []
    return [
        f"{', '.join(names)} is left out of account: the tools here speak to HTTP proxies only, not to one of {scheme}://; "
        "name one in HTTPS_PROXY and HTTP_PROXY where the world is behind it"
    ]


def _scheme(proxy: str) -> str:
    return proxy.partition("://")[0].lower() if "://" in proxy else "http"


def _mend_temporary(environ: MutableMapping[str, str]) -> list[str]:
    given = environ.get("TMPDIR")
    if not given:
        return []
    folder = tempfile.gettempdir()
    if os.path.abspath(given) != folder:
        why = "cannot be written"
    elif len(os.fsencode(folder)) > (most := SOCKET_BYTES - (_BELOW_OURS if _OURS in folder else _BELOW_TEMPORARY)):
        why = f"is too long for the paths of sockets ({len(os.fsencode(folder))} letters, {most} at most)"
        folder = str(short_folder(most) or folder)
    else:
        return []
    environ["TMPDIR"] = folder
    if environ is os.environ:
        tempfile.tempdir = None  # asked for anew
    return [f"TMPDIR={given} {why}; temporary files go to {folder}"] if folder != given else []


def _can_write(folder: str) -> bool:
    try:
        with tempfile.TemporaryFile(dir=folder):
            return True
    except OSError:
        return False
