"""A checkup: is every part reachable, authenticated, and of a version that works, and what to do where not."""

from __future__ import annotations

import json
import os
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib import metadata
from typing import Literal

from flows import addresses, cluster, dataset, machine, mlflow_connection, prefect_server
from flows.cluster import Node
from flows.errors import ASKED_WRONGLY, HeadstartError
from flows.machine import Machine
from flows.places.check import check_root
from flows.records import Workers
from flows.settings import Settings
from flows.stages.feature_store import check_features
from flows.stages.preflight import check_storage
from flows.words import counted

State = Literal["ok", "warning", "wrong"]
# The oldest driver for a CUDA that torch is built for (CUDA's table of minor version compatibility).
OLDEST_DRIVERS = {"11": 450, "12": 525, "13": 580}

FAULTS: tuple[type[Exception], ...] = (HeadstartError, *ASKED_WRONGLY)


@dataclass(frozen=True)
class PartState:
    """What was found of one part, in words that end with what to do where it is not ok."""

    name: str
    state: State
    words: str


@dataclass(frozen=True)
class Checkup:
    """All parts, this machine, and the nodes of a cluster that was named."""

    parts: tuple[PartState, ...]
    machine: Machine
    nodes: tuple[Node, ...]
    seconds: float

    @property
    def is_well(self) -> bool:
        """Whether nothing is wrong; warnings may be there."""
        return all(part.state != "wrong" for part in self.parts)


def check_up(settings: Settings, seconds: float) -> Checkup:
    """Ask every part at once, and return within about so many seconds; what is silent until then is wrong.

    Starts and changes nothing but a short job on Ray.
    """
    started = time.monotonic()
    here = machine.this_machine()
    nodes: list[Node] = []
    asked: dict[str, Callable[[], Sequence[PartState]]] = {
        "workspace": lambda: [_workspace(settings)],
        "storage": lambda: [_storage(settings)],
        "features": lambda: [_features(settings)],
        "MLflow": lambda: [_mlflow(settings)],
        "Prefect": lambda: [_prefect(settings)],
        "Ray": lambda: _ray(settings, here, nodes, seconds),
    }
    parts = [of_machine("this machine", here), *_all_at_once(asked, seconds)]
    return Checkup(tuple(parts), here, tuple(nodes), round(time.monotonic() - started, 2))


def _all_at_once(asked: Mapping[str, Callable[[], Sequence[PartState]]], seconds: float) -> list[PartState]:
    """The parts in the order in which they are named; one that fails is wrong, one that is silent too."""
    found: dict[str, Sequence[PartState]] = {}

    def ask(name: str, look: Callable[[], Sequence[PartState]]) -> None:
        try:
            found[name] = look()
        except FAULTS as error:
            found[name] = [PartState(name, "wrong", str(error))]
        except OSError as error:
            found[name] = [PartState(name, "wrong", f"{error.filename or ''} {error.strerror or error}".strip())]

    threads = [threading.Thread(target=ask, args=one, name=one[0], daemon=True) for one in asked.items()]
    deadline = time.monotonic() + seconds
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(max(0.0, deadline - time.monotonic()))
    silent = f"did not answer within {seconds:.0f} s: look whether it, or the way to it, is overloaded"
    return [part for name in asked for part in found.get(name, [PartState(name, "wrong", silent)])]


def of_machine(name: str, one: Machine) -> PartState:
    """What a machine computes with, and whether torch can use its GPUs."""
    built = f"torch {one.versions.get('torch') or 'none'} for {f'CUDA {one.cuda}' if one.cuda else 'CPUs'}"
    words = f"Python {one.python}, {built}, {counted(one.num_cpus, 'CPU')}"
    if not one.gpus:
        return PartState(name, "ok", f"{words}, no GPU")
    kinds = dict.fromkeys(gpu.name for gpu in one.gpus)
    listed = ", ".join(f"{sum(gpu.name == kind for gpu in one.gpus)} x {kind}" for kind in kinds)
    words = f"{words}, {listed}, driver {one.driver}, NCCL {one.nccl or 'of torch'}"
    if not one.cuda:
        idle = "this torch is built for CPUs and leaves the GPUs idle; install torch as PyPI gives it"
        return PartState(name, "warning", f"{words}: {idle}")
    oldest = OLDEST_DRIVERS.get(one.cuda.split(".")[0])
    if oldest and (major := one.driver.split(".")[0]).isdigit() and int(major) < oldest:
        return PartState(
            name, "wrong", f"{words}: CUDA {one.cuda} needs a driver from {oldest} on; update the driver of {one.name}"
        )
    return PartState(name, "ok", words)


def _workspace(settings: Settings) -> PartState:
    dataset.check_repository(dataset.open_workspace(settings.workspace))
    try:
        version = dataset.read_version(settings.workspace)
    except ASKED_WRONGLY as error:
        return PartState("workspace", "warning", f"{settings.workspace}: {error}")
    return PartState(
        "workspace", "ok", f"{settings.workspace}, {counted(len(version.samples), 'sample')} in {version.digest[:12]}"
    )


def _storage(settings: Settings) -> PartState:
    folder = settings.storage
    if isinstance(settings.root, str):
        check_root(settings.root)
        return PartState("storage", "ok", f"{settings.root} can be written")
    if folder.exists():
        check_storage(folder)
        return PartState("storage", "ok", f"{folder} can be written")
    parent = next(each for each in folder.parents if each.exists())
    if not os.access(parent, os.W_OK):
        advice = f"mend the permissions of {parent}, or set HEADSTART_STORAGE_ROOT"
        return PartState("storage", "wrong", f"{folder} is not there and can not be made: {advice}")
    return PartState("storage", "ok", f"{folder} is made with the first retraining")


def _features(settings: Settings) -> PartState:
    if isinstance(settings.features, str):  # else it is a folder, and torch, which the check imports, takes seconds
        check_features(settings)
    return PartState("features", "ok", str(settings.features))


def _mlflow(settings: Settings) -> PartState:
    address = settings.tracking
    mlflow_connection.check(address)
    shown, ours = addresses.without_password(address), metadata.version("mlflow")
    if not address.startswith("http"):
        return PartState("MLflow", "ok", f"{shown}, MLflow {ours}")
    theirs = mlflow_connection.server_version(address)
    return versioned("MLflow", shown, theirs, ours)


def _prefect(settings: Settings) -> PartState:
    address, ours = settings.prefect, metadata.version("prefect")
    if address is None:
        return PartState("Prefect", "ok", f"none is named: each command starts a server for itself (Prefect {ours})")
    prefect_server.check(address)
    return versioned("Prefect", address, prefect_server.version(address), ours)


def versioned(name: str, address: str, theirs: str, ours: str) -> PartState:
    """What a pair of versions means: a server and its client: another first number is wrong, an older second one a warning."""
    words = f"{address}, version {theirs or 'not told'}, client {ours}"
    if not theirs:
        return PartState(name, "ok", words)
    there, here = ([int(number) for number in version.split(".")[:2]] for version in (theirs, ours))
    advice = f"bring both to one version: infra/requirements.lock has {name} {ours}"
    if there[0] != here[0]:
        return PartState(name, "wrong", f"{words}: {advice}")
    return PartState(name, "warning", f"{words}: the server is older; {advice}") if there < here else PartState(name, "ok", words)


def _ray(settings: Settings, here: Machine, nodes: list[Node], seconds: float) -> Sequence[PartState]:
    started = time.monotonic()
    found = cluster.find_cluster(settings.ray_address, settings.storage)
    if found is None:
        cluster.check(None, settings.storage, Workers())
        return [PartState("Ray", "ok", f"none runs; a local one is started with each job (Ray {here.versions['ray']})")]
    if settings.ray_address is None:
        return [PartState("Ray", "ok", f"the local one at {found.address} (Ray {here.versions['ray']})")]
    version = cluster.ray_version(found)
    head = PartState("Ray", "ok", f"{found.address}, version {version or 'not told'}, client {here.versions['ray']}")
    try:
        nodes.extend(cluster.survey(found, seconds - (time.monotonic() - started) - 0.5))
    except HeadstartError as error:
        return [head, PartState("Ray nodes", "wrong", str(error))]
    return [head, *(of_node(node, here) for node in nodes)]


def of_node(node: Node, here: Machine) -> PartState:
    """What a node computes with, and whether that is what the flow has `here`."""
    name = f"Ray node {node.address}"
    if node.machine is None:
        return PartState(name, "wrong", f"{node.fault}: look at the node's log, and at whether it has the versions of the flow")
    part = of_machine(f"{name} ({node.machine.name})", node.machine)
    if told := machine.differences(machine.versions_of(node.machine), machine.versions_of(here)):
        return PartState(part.name, "wrong", f"{part.words}; it has {'; '.join(told)}: {machine.REMEDY}")
    return part


def to_json(checkup: Checkup) -> dict[str, object]:
    """A checkup for `--json`."""
    return {
        "well": checkup.is_well,
        "seconds": checkup.seconds,
        "parts": [{"name": part.name, "state": part.state, "words": part.words} for part in checkup.parts],
        "machine": json.loads(machine.to_json(checkup.machine)),
        "nodes": [
            {
                "address": node.address,
                "node_id": node.node_id,
                "fault": node.fault,
                "machine": json.loads(machine.to_json(node.machine)) if node.machine else None,
            }
            for node in checkup.nodes
        ],
    }
