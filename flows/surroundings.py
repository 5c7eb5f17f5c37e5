"""What the tools below ask of a machine and a person's environment may lack: a way past proxies, a name, a home, short paths."""

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
# The path of a socket may have so many bytes (sockaddr_un's 108 less the end).
SOCKET_BYTES = 107
# What a process makes under its temporary folder until a socket's own name: /headstart-work-<8>/pymp-<8>/listener-<8>.
_BELOW_TEMPORARY = 56
_OURS, _BELOW_OURS = "/headstart-", 32
# And what Ray makes: /headstart-ray-<8>/session_<date, 26>_<pid, 7>/sockets/dash_UsageStatsHead.
_BELOW_RAY = 94
_SHORT_FOLDERS = ("/tmp", "/var/tmp", "/dev/shm")
_PROXIES = ("http_proxy", "https_proxy", "all_proxy")


def adapt(environ: MutableMapping[str, str], storage: Path) -> list[str]:
    """Make an environment one in which every tool works; what was left out of account, in words.

    A proxy is for the world: this machine is always reached directly. A user id without a name gets one, and a home that is
    none is one under `storage`. A temporary folder that cannot be used, or is too long for sockets, is the system's.
    """
    environ.update(direct(environ) | whose(environ, storage))
    # Nothing that is started fails to print a letter that its encoding lacks.
    encoding, _, handler = environ.get("PYTHONIOENCODING", "").partition(":")
    environ["PYTHONIOENCODING"] = f"{encoding}:{handler or 'backslashreplace'}"
    return [*_drop_proxies(environ), *_mend_temporary(environ)]


def direct(environ: Mapping[str, str]) -> dict[str, str]:
    """NO_PROXY and no_proxy with this machine in them, beside what the person set there; `*` stays alone, as tools read it."""
    lower, upper = environ.get("no_proxy", ""), environ.get("NO_PROXY", "")
    return {"no_proxy": _with_this_machine(lower or upper), "NO_PROXY": _with_this_machine(upper or lower)}


def whose(environ: Mapping[str, str], storage: Path) -> dict[str, str]:
    """USER, LOGNAME and HOME, each where the environment has none that serves."""
    try:
        person = pwd.getpwuid(os.getuid())
        name, home = person.pw_name, person.pw_dir
    except KeyError:
        name, home = f"user{os.getuid()}", ""
    known = environ.get("LOGNAME") or environ.get("USER") or name
    home = environ.get("HOME") or home
    found = {key: known for key in ("USER", "LOGNAME") if not environ.get(key)}
    # A home that is there may hold credentials and stays; the root folder, which a container gives to strangers, holds none.
    serves = os.path.isabs(home) and os.path.isdir(home) and (os.path.realpath(home) != "/" or os.access(home, os.W_OK))
    found["HOME"] = home if serves else str(storage / "home")
    return found


def ray_folder() -> Path:
    """The folder for a Ray head's own, in which the paths of its sockets fit. Raises AskedWrongly where there is none."""
    found = short_folder(SOCKET_BYTES - _BELOW_RAY)
    if found is None:
        raise AskedWrongly(
            f"no folder for a local Ray's sockets: {tempfile.gettempdir()} is too long ({SOCKET_BYTES - _BELOW_RAY} letters at "
            f"most), and none of {', '.join(_SHORT_FOLDERS)} can be written; set TMPDIR to a shorter folder"
        )
    return found


def short_folder(num_bytes: int) -> Path | None:
    """A folder for temporary files whose path has at most so many bytes: the person's, else the system's; None: there is none."""
    folders = (tempfile.gettempdir(), *_SHORT_FOLDERS)
    return next((Path(folder) for folder in folders if len(os.fsencode(folder)) <= num_bytes and _can_write(folder)), None)


def opener(address: str) -> OpenerDirector:
    """What opens an http(s) address: directly on this machine, else by the proxies of the environment."""
    return build_opener(ProxyHandler({})) if urlsplit(address).hostname in THIS_MACHINE else build_opener()


def _with_this_machine(listed: str) -> str:
    entries = [entry for part in re.split(r"[,\s]+", listed) if (entry := _entry(part))]
    if entries == ["*"]:
        return "*"
    return ",".join([*entries, *(name for name in THIS_MACHINE if name not in entries)])


def _entry(given: str) -> str:
    """An entry of NO_PROXY as all tools take it; empty where it says nothing to any of them and httpx fails at it."""
    with contextlib.suppress(ValueError):
        return str(ip_address(given.strip("[]")))
    host, colon, port = given.rpartition(":")
    return "" if colon and "://" not in given and (":" in host or not port.isdigit()) else given


def _drop_proxies(environ: MutableMapping[str, str]) -> list[str]:
    """Take out the proxies of a kind that the tools below cannot speak to: one of them fails by its presence alone."""
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
