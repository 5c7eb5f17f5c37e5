"""What a machine computes with: Python, the packages that enter numbers, GPUs, driver, NCCL; and a check that two are alike.

Loads nothing of them, so that it can be asked within milliseconds, and where they are broken.
"""

from __future__ import annotations

import json
import os
import platform
import re
import shutil
import subprocess
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from importlib import metadata
from pathlib import Path

from flows.errors import AskedWrongly

# A job's features and weights depend on these, and so do the keys under which they are found again.
ALIKE = ("torch", "torchvision", "numpy", "pillow", "ray")
# The variable that tells a job with which versions it was asked for.
EXPECTED = "HEADSTART_EXPECTED_VERSIONS"
REMEDY = (
    "start the cluster's nodes with the environment of this Headstart: the image of infra/Dockerfile, built of the same "
    "infra/requirements.lock"
)
DRIVER_SECONDS = 5.0


@dataclass(frozen=True)
class Gpu:
    """A GPU as its driver names it."""

    name: str
    memory_bytes: int


@dataclass(frozen=True)
class Machine:
    """What a machine computes with. A package that is missing has the version ''; so has a driver, CUDA or NCCL."""

    name: str
    python: str
    versions: Mapping[str, str]
    cuda: str
    nccl: str
    driver: str
    gpus: tuple[Gpu, ...] = ()
    num_cpus: int = field(default_factory=lambda: os.cpu_count() or 1)


def this_machine() -> Machine:
    """What this machine computes with."""
    driver, gpus = _gpus()
    return Machine(
        name=platform.node(),
        python=platform.python_version(),
        versions={name: _version(name) for name in ALIKE},
        cuda=_cuda(),
        nccl=next((found for found in map(_version, _nccl_names()) if found), ""),
        driver=driver,
        gpus=gpus,
    )


def to_json(machine: Machine) -> str:
    """A machine as one line of JSON."""
    return json.dumps(asdict(machine))


def from_json(text: str) -> Machine:
    """The machine of `to_json`."""
    content = json.loads(text)
    return Machine(**content | {"gpus": tuple(Gpu(**gpu) for gpu in content["gpus"])})


def expected() -> dict[str, str]:
    """The versions that a job of this process asks for, as a variable of its environment."""
    versions = {"python": platform.python_version()} | {name: _version(name) for name in ALIKE}
    return {EXPECTED: json.dumps(versions)}


def differences(theirs: Mapping[str, str], ours: Mapping[str, str]) -> list[str]:
    """In which versions two machines differ, in words: in Python's second number, or in a package beside its build."""
    told = []
    for name, version in ours.items():
        found = theirs.get(name, "")
        if _significant(name, found) != _significant(name, version):
            told.append(f"{name} {found or 'none'}, where the flow has {version or 'none'}")
    return told


def versions_of(machine: Machine) -> dict[str, str]:
    """Python and the packages, as `differences` compares them."""
    return {"python": machine.python} | dict(machine.versions)


def check_expected(environ: Mapping[str, str]) -> None:
    """Raise AskedWrongly if this process has other versions than the flow that asked for its job."""
    if not (asked := environ.get(EXPECTED)):
        return
    ours = {"python": platform.python_version()} | {name: _version(name) for name in ALIKE}
    if told := differences(ours, json.loads(asked)):
        raise AskedWrongly(f"the Ray node {platform.node()} has other versions than the flow ({'; '.join(told)}): {REMEDY}")


def _significant(name: str, version: str) -> str:
    if name == "python":
        return ".".join(version.split(".")[:2])
    return version.partition("+")[0]


def _version(name: str) -> str:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return ""


def _nccl_names() -> list[str]:
    return [f"nvidia-nccl-cu{number}" for number in (13, 12, 14)]


def _cuda() -> str:
    """The CUDA version that torch is built for, read from the file that says so; '' for CPUs, or without torch."""
    try:
        file = Path(str(metadata.distribution("torch").locate_file("torch/version.py")))
        found = re.search(r"^cuda\b[^=\n]*=\s*'([\d.]+)'", file.read_text(), re.M)
    except (metadata.PackageNotFoundError, OSError):
        return ""
    return found[1] if found else ""


def _gpus() -> tuple[str, tuple[Gpu, ...]]:
    """The driver's version and the GPUs, as NVIDIA's own tool tells them."""
    tool = shutil.which("nvidia-smi")
    if tool is None:
        return "", ()
    asked = [tool, "--query-gpu=driver_version,name,memory.total", "--format=csv,noheader,nounits"]
    try:
        told = subprocess.run(asked, capture_output=True, text=True, timeout=DRIVER_SECONDS, check=True).stdout
        rows = [[cell.strip() for cell in line.split(",")] for line in told.splitlines() if line.strip()]
        return (rows[0][0] if rows else ""), tuple(Gpu(name, int(mib) * 2**20) for _, name, mib in rows)
    except (OSError, subprocess.SubprocessError, ValueError):
        return "", ()
