"""A real S3 server for tests: Ceph's radosgw with one monitor and one OSD, everything below one folder, on 127.0.0.1."""

from __future__ import annotations

import os
import shutil
import subprocess
import time
import urllib.error
import urllib.request
import uuid
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

from flows.cluster.processes import free_ports

PACKAGES = "radosgw ceph-mon ceph-osd ceph-base ceph-common"
PROGRAMS = ("monmaptool", "ceph-authtool", "ceph-mon", "ceph-osd", "ceph", "radosgw", "radosgw-admin", "setpriv")
ACCESS_KEY, SECRET_KEY, REGION = "tester", "a-secret-of-the-test", "us-east-1"
START_SECONDS = 90.0

# cephx stays on: without it radosgw waits for its monitor for ever. Without tcp_nodelay each small GET takes 44 ms.
CONFIGURATION = """
[global]
fsid={fsid}
mon_host=v2:127.0.0.1:{mon_port}
mon_initial_members=a
keyring={folder}/keyring
public_network=127.0.0.0/8
cluster_network=127.0.0.0/8
public_addr=127.0.0.1
cluster_addr=127.0.0.1
run_dir={folder}/run
crash_dir={folder}/run
admin_socket={folder}/run/$name.$pid.asok
pid_file={folder}/run/$name.pid
log_file={folder}/log/$name.log
osd_pool_default_size=1
osd_pool_default_min_size=1
mon_allow_pool_size_one=true
osd_pool_default_pg_num=8
osd_pool_default_pg_autoscale_mode=off
osd_crush_chooseleaf_type=0
mon_max_pg_per_osd=1000
mon_data_avail_crit=1
[mon.a]
mon_data={folder}/mon
mon_addr=127.0.0.1:{mon_port}
[osd.0]
osd_data={folder}/osd.0
osd_objectstore=bluestore
bluestore_block_size=4294967296
osd_memory_target=939524096
[client.rgw.a]
rgw_frontends=beast endpoint=127.0.0.1:{port} tcp_nodelay=1
rgw_data={folder}/rgw
"""


@dataclass(frozen=True)
class Radosgw:
    """A running server: its folder, its port on 127.0.0.1, and the keys of its one user."""

    folder: Path
    port: int
    access_key: str = ACCESS_KEY
    secret_key: str = SECRET_KEY

    @property
    def endpoint(self) -> str:
        """The address of the server itself; tests that disturb the way to it have another."""
        return f"http://127.0.0.1:{self.port}"

    def environment(self, endpoint: str | None = None) -> dict[str, str]:
        """The variables by which the usual S3 clients find the server, or a way to it, and its user's keys."""
        return {
            "AWS_ENDPOINT_URL": endpoint or self.endpoint,
            "AWS_ACCESS_KEY_ID": self.access_key,
            "AWS_SECRET_ACCESS_KEY": self.secret_key,
            "AWS_DEFAULT_REGION": REGION,
            # This server answers 411 to the trailing checksums that newer clients send by default.
            "AWS_REQUEST_CHECKSUM_CALCULATION": "WHEN_REQUIRED",
            "AWS_RESPONSE_CHECKSUM_VALIDATION": "WHEN_REQUIRED",
            "AWS_EC2_METADATA_DISABLED": "true",
        }

    def requests(self, since: int = 0) -> list[tuple[str, str, int]]:
        """What was asked of the server after its first `since` requests, by its own log: method, path and status."""
        lines = (self.folder / "log" / "client.rgw.a.log").read_text(errors="replace").splitlines()
        asked = [line.split('"', 2) for line in lines if " beast: 0x" in line]
        return [(*_words(request), int(rest.split()[0])) for _, request, rest in asked[since:]]

    def statuses(self, since: int = 0) -> Counter[int]:
        """How often the server answered with each status."""
        return Counter(status for _, _, status in self.requests(since))


def _words(request: str) -> tuple[str, str]:
    method, path, _ = request.split(" ", 2)
    return method, path


def missing() -> str | None:
    """Why no server can be started here, and what to do; None if it can."""
    absent = [name for name in PROGRAMS if shutil.which(name) is None]
    return f"a real S3 server needs {', '.join(absent)}: apt-get install {PACKAGES}" if absent else None


@contextmanager
def serving(folder: Path) -> Iterator[Radosgw]:
    """A server for the block, with its files in `folder`; its processes end with the block, or with this process."""
    port, mon_port = free_ports(2)
    fsid = str(uuid.uuid4())
    for name in ("mon", "osd.0", "rgw", "run", "log"):
        (folder / name).mkdir()
    (folder / "ceph.conf").write_text(CONFIGURATION.format(fsid=fsid, folder=folder, port=port, mon_port=mon_port))
    _make_keys(folder / "keyring")
    _run(folder, "monmaptool", "--create", "--fsid", fsid, "--addv", "a", f"[v2:127.0.0.1:{mon_port}]", str(folder / "monmap"))
    _run(folder, "ceph-mon", "-i", "a", "--mkfs", "--monmap", str(folder / "monmap"), "--keyring", str(folder / "keyring"))
    with ExitStack() as stack:
        stack.enter_context(_daemon(folder, "ceph-mon", "-i", "a"))
        _run(folder, "ceph", "auth", "import", "-i", str(folder / "keyring"))
        osd = str(uuid.uuid4())
        _run(folder, "ceph", "osd", "new", osd, "0")
        _run(folder, "ceph-osd", "-i", "0", "--mkfs", "--osd-uuid", osd)
        stack.enter_context(_daemon(folder, "ceph-osd", "-i", "0"))
        gateway = stack.enter_context(_daemon(folder, "radosgw", "-n", "client.rgw.a"))
        server = Radosgw(folder, port)
        _wait(server, gateway)
        keys = (f"--access-key={server.access_key}", f"--secret={server.secret_key}")
        _run(folder, "radosgw-admin", "-n", "client.rgw.a", "user", "create", "--uid=tester", "--display-name=tester", *keys)
        yield server


def _make_keys(file: Path) -> None:
    mon, osd, mgr = "--cap mon", "--cap osd", "--cap mgr"
    for name, *caps in (
        ("mon.", mon, "allow *"),
        ("client.admin", mon, "allow *", osd, "allow *", mgr, "allow *"),
        ("client.rgw.a", mon, "allow rw", osd, "allow rwx"),
        ("osd.0", mon, "allow profile osd", osd, "allow *"),
    ):
        words = [word for cap in caps for word in (cap.split() if cap.startswith("--") else [cap])]
        create = [] if file.exists() else ["-C"]
        _run(file.parent, "ceph-authtool", *create, str(file), "--gen-key", "-n", name, *words)


@contextmanager
def _daemon(folder: Path, *words: str) -> Iterator[subprocess.Popen[bytes]]:
    """A server process for the block; the kernel kills it if the tests' process is killed."""
    command = ["setpriv", "--pdeathsig", "KILL", words[0], "-f", *words[1:]]
    with (folder / "log" / f"{words[0]}.out").open("wb") as output:
        process = subprocess.Popen(command, env=_environment(folder), stdout=output, stderr=output)
    try:
        yield process
    finally:
        # Nothing of it is kept, so nobody waits for an orderly end.
        process.kill()
        process.wait()


def _run(folder: Path, *words: str) -> None:
    done = subprocess.run(words, env=_environment(folder), capture_output=True, text=True, timeout=START_SECONDS, check=False)
    assert done.returncode == 0, f"{' '.join(words)} ended with {done.returncode}:\n{done.stdout}{done.stderr}"


def _environment(folder: Path) -> dict[str, str]:
    return os.environ | {"CEPH_CONF": str(folder / "ceph.conf")}


def _wait(server: Radosgw, gateway: subprocess.Popen[bytes]) -> None:
    """Wait until the server answers anyone at all."""
    deadline = time.monotonic() + START_SECONDS
    while time.monotonic() < deadline:
        assert gateway.poll() is None, (server.folder / "log" / "radosgw.out").read_text()[-2000:]
        try:
            urllib.request.urlopen(server.endpoint, timeout=5).close()
            return
        except urllib.error.HTTPError:
            return
        except OSError:
            time.sleep(0.1)
    raise AssertionError(f"radosgw did not answer within {START_SECONDS:g} s")
