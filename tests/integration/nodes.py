"""Machines for tests: Linux namespaces with a network address, processes, a disk and a clean view of their own.

A node sees nothing of the folders that it is to lack, and shares nothing with the machine of the tests but the network. Its
processes form one PID namespace: a kill of its first process ends all of them at once, as a power cut does.
"""

from __future__ import annotations

import ipaddress
import json
import os
import random
import shlex
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

import psutil

PROGRAMS = ("ip", "unshare", "nsenter", "setpriv", "mount", "bash")
RUN_IT = "run the tests as root on Linux (in a container: --privileged) with Debian's iproute2 and util-linux"
DISK_BYTES, SHARED_MEMORY_BYTES = 2 * 2**30, 2**30
# The disk of each node, and in it the folder for what it keeps of the object store.
DISK = "disk"

# Runs as the first process of a node: makes its view, says so, and stays, since with it all processes of the node end.
FIRST_PROCESS = """
set -e
ip link set lo up
for folder in {hidden}; do mount -t tmpfs -o size=64k,mode=755 hidden "$folder"; done
mount -t tmpfs -o size={disk_bytes},mode=755 disk {disk}
mount -t tmpfs -o size={shared_memory_bytes},mode=1777 shm /dev/shm
mkdir -p {disk}/tmp {disk}/home {disk}/cache/headstart/data
if [ {cache_bytes} -gt 0 ]; then mount -t tmpfs -o size={cache_bytes} cache {disk}/cache/headstart/data; fi
echo ready
sleep infinity & wait
"""

# What making nodes needs, in a namespace that ends with it.
TRY = "mount -t tmpfs tmpfs /mnt && ip link add one type veth peer name other && ip link add both type bridge"


@dataclass(frozen=True)
class Node:
    """A machine of its own, alive until it is killed; `pid` is its first process, as this machine counts."""

    name: str
    address: str
    disk: Path
    pid: int
    _process: subprocess.Popen[str] = field(repr=False)

    @property
    def environment(self) -> dict[str, str]:
        """The environment of a process on the node: the Python of the tests, and folders on the node's own disk."""
        return {
            "PATH": os.pathsep.join([str(Path(sys.executable).parent), os.defpath]),
            "HOME": str(self.disk / "home"),
            "TMPDIR": str(self.disk / "tmp"),
            "XDG_CACHE_HOME": str(self.disk / "cache"),
            "LANG": "C.UTF-8",
        }

    def run(self, *words: str, environment: Mapping[str, str] | None = None, timeout_seconds: float = 120) -> str:
        """What a command on the node prints; it must end with status 0."""
        # What the command leaves running would hold a pipe open.
        with tempfile.TemporaryFile("w+") as output:
            done = subprocess.run(
                [*_enter(self.pid, "--net", "--mount", "--pid", "--uts"), *words],
                env=self.environment | dict(environment or {}),
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                cwd="/",
                timeout=timeout_seconds,
                check=False,
            )
            output.seek(0)
            told = output.read()
        assert done.returncode == 0, f"{shlex.join(words)} on {self.name} ended with {done.returncode}:\n{told[-6000:]}"
        return told

    def kill(self) -> None:
        """End every process of the node at once, and with them its network and its disk."""
        with suppress(psutil.NoSuchProcess):
            first = psutil.Process(self.pid)
            first.kill()
            first.wait(30)
        self._process.communicate(timeout=30)


@dataclass
class Network:
    """The addresses of one test: this machine has the first of them, each node one of the next."""

    addresses: ipaddress.IPv4Network
    folder: Path
    nodes: list[Node] = field(default_factory=list)

    @property
    def wire(self) -> str:
        """The name of this machine's end of the wire to the nodes."""
        return f"hs{os.getpid() % 10**7}"

    @property
    def here(self) -> str:
        """The address of this machine that nodes reach."""
        return str(self.addresses[1])

    def add(self, name: str, *, hidden: Sequence[Path], cache_bytes: int = 0) -> Node:
        """A new node, to which the `hidden` folders are empty; `cache_bytes`, if given, bounds its cache of data alone."""
        disk = self.folder / DISK
        disk.mkdir(exist_ok=True)
        first = FIRST_PROCESS.format(
            hidden=shlex.join(map(str, hidden)),
            disk=shlex.quote(str(disk)),
            disk_bytes=DISK_BYTES,
            shared_memory_bytes=SHARED_MEMORY_BYTES,
            cache_bytes=cache_bytes,
        )
        # The kernel ends it with the tests' process, however that ends.
        process = subprocess.Popen(
            ["setpriv", "--pdeathsig", "KILL", *_unshare("--uts"), "bash", "-c", f"hostname {name}{first}"],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        assert process.stdout is not None
        if process.stdout.readline() != "ready\n":
            process.kill()
            raise AssertionError(f"{name} did not begin: {process.communicate()[1]}")
        (child,) = psutil.Process(process.pid).children()
        node = Node(name, str(self.addresses[len(self.nodes) + 2]), disk, child.pid, process)
        self.nodes.append(node)
        self._connect(node)
        return node

    def _connect(self, node: Node) -> None:
        """Give a node its address: the first one also holds the switch, to which all others, and this machine, are wired."""
        switch, width = self.nodes[0], self.addresses.prefixlen
        if node is switch:
            _ip(switch, "link add switch type bridge")
            _ip(switch, f"addr add {node.address}/{width} dev switch")
            _ip(switch, "link set switch up")
            _ip(None, f"link add {self.wire} type veth peer name outside netns {switch.pid}")
            _ip(None, f"addr add {self.here}/{width} dev {self.wire}")
            _ip(None, f"link set {self.wire} up")
            _ip(switch, "link set outside master switch up")
        else:
            _ip(switch, f"link add {node.name} type veth peer name wire netns {node.pid}")
            _ip(switch, f"link set {node.name} master switch up")
            _ip(node, f"addr add {node.address}/{width} dev wire")
            _ip(node, "link set wire up")


@contextmanager
def network() -> Iterator[Network]:
    """A network for the block, with no node yet; at its end every node is killed, and nothing of it is left."""
    # The paths of Ray's sockets, on the nodes' disks, may have 107 bytes.
    folder = Path(tempfile.mkdtemp(prefix="hs-nodes-", dir="/tmp"))
    made = Network(_free_addresses(), folder)
    try:
        yield made
    finally:
        for node in reversed(made.nodes):
            node.kill()
        # The kernel removes what a node's network held a moment later: this wire now.
        subprocess.run(["ip", "link", "delete", made.wire], capture_output=True, check=False)
        shutil.rmtree(folder)


def missing() -> str | None:
    """Why there can be no nodes here, and how there could be; None if there can."""
    if absent := [name for name in PROGRAMS if shutil.which(name) is None]:
        return f"nodes of their own need the programs {', '.join(absent)}: {RUN_IT}"
    tried = subprocess.run(
        [*_unshare(), "bash", "-c", TRY],
        capture_output=True,
        text=True,
        check=False,
    )
    if tried.returncode:
        return f"namespaces are not allowed here ({(tried.stderr.strip().splitlines() or ['no reason given'])[-1]}): {RUN_IT}"
    return None


def _unshare(*more: str) -> list[str]:
    return ["unshare", "--net", "--mount", "--pid", "--ipc", *more, "--fork", "--kill-child", "--mount-proc"]


def _enter(pid: int, *kinds: str) -> list[str]:
    return ["nsenter", "--target", str(pid), *kinds, "--"]


def _ip(node: Node | None, command: str) -> None:
    """Run `ip` in a node's network, or in this machine's."""
    words = ["ip", *command.split()]
    done = subprocess.run([*(_enter(node.pid, "--net") if node else ()), *words], capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"{command}: {done.stderr}"


def _free_addresses() -> ipaddress.IPv4Network:
    """Addresses that no route of this machine leads to."""
    told = subprocess.run(["ip", "-json", "route", "show", "table", "all"], capture_output=True, text=True, check=True).stdout
    routes = [route["dst"] for route in json.loads(told) if route.get("dst", "default") != "default" and ":" not in route["dst"]]
    taken = [ipaddress.ip_network(route) for route in routes]
    free = [net for net in ipaddress.ip_network("10.160.0.0/12").subnets(new_prefix=24) if not any(map(net.overlaps, taken))]
    return random.choice(free)
