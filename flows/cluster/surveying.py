"""What the nodes of a cluster compute with, found by a short job on it."""

from __future__ import annotations

import json
import secrets
import time
from dataclasses import dataclass

from flows import machine
from flows.cluster import code
from flows.cluster.api import Cluster, call, job_path
from flows.cluster.jobs import POLL_SECONDS, read
from flows.cluster.survey import MARK
from flows.errors import HeadstartError
from flows.machine import Machine
from flows.words import end_of

# What a job needs before and after it asks the nodes.
AROUND_SECONDS = 4.0


@dataclass(frozen=True)
class Node:
    """A living node: its address, and what it computes with, or why it did not say."""

    address: str
    node_id: str
    machine: Machine | None
    fault: str = ""


def ray_version(cluster: Cluster) -> str:
    """The version of Ray that the cluster's head runs, '' if it does not say."""
    answer = call(cluster, "GET", "/api/version", timeout_seconds=5.0)
    return str(answer.get("ray_version", "")) if isinstance(answer, dict) else ""


def survey(cluster: Cluster, seconds: float) -> tuple[Node, ...]:
    """What each living node computes with, by a job of at most so many seconds that needs no free CPU.

    Raises HeadstartError if the job fails, or is not done in time: it is stopped then.
    """
    deadline = time.monotonic() + seconds
    submission_id = f"doctor-{secrets.token_hex(4)}"
    entrypoint = f"exec {cluster.python} -m flows.cluster.survey {max(1.0, seconds - AROUND_SECONDS):g}"
    call(
        cluster,
        "POST",
        "/api/jobs/",
        {"submission_id": submission_id, "entrypoint": entrypoint, "runtime_env": {"working_dir": code.upload(cluster)}},
        timeout_seconds=seconds,
    )
    while (job := read(cluster, submission_id)).is_running:
        if time.monotonic() > deadline:
            call(cluster, "POST", job_path(submission_id) + "/stop", timeout_seconds=2.0)
            raise HeadstartError(
                f"the nodes were not asked within {seconds:.0f} s: the head is busy, or a job does not start there; look at "
                f"{cluster.address}"
            )
        time.sleep(POLL_SECONDS / 2)
    told = str((call(cluster, "GET", job_path(submission_id) + "/logs", timeout_seconds=5.0) or {}).get("logs", ""))
    nodes = tuple(_node(line.partition(MARK)[2]) for line in told.splitlines() if MARK in line)
    if not nodes:
        reason = end_of((job.message or told).strip(), 500)
        raise HeadstartError(f"the nodes can not be asked, for a job fails on the cluster: {reason}")
    return nodes


def _node(text: str) -> Node:
    told = json.loads(text)
    looked = told["machine"]
    return Node(told["address"], told["node_id"], machine.from_json(looked) if looked else None, told["fault"])
