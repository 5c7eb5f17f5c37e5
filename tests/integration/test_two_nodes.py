"""Two machines that share nothing but an object store."""

from __future__ import annotations

import json
import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from flows.cluster import api, code, jobs
from tests.integration import two_nodes
from tests.integration.nodes import network
from tests.integration.radosgw import Radosgw
from tests.integration.two_nodes import TwoNodes

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]

# Runs as a job's driver, on the head: what one worker a node sees of the machine of the tests.
LOOK = """
import json, sys
from flows.cluster import workers
from flows.records import Workers

def look(paths):
    import os, socket, time
    import flows, heads, ray
    time.sleep(2)
    return {"host": socket.gethostname(), "address": ray.util.get_node_ip_address(),
            "seen": [path for path in paths if os.path.exists(path)], "code": [flows.__file__, heads.__file__],
            "secret": os.environ.get("AWS_SECRET_ACCESS_KEY")}

group = Workers(count=2)
workers.join(group)
print("told " + json.dumps(workers.map_shards(look, [(sys.argv[1:],)] * 2, workers=group)))
"""


@dataclass(frozen=True)
class Bed:
    """The object store, the cluster, and the folder of this machine that no node sees."""

    store: Radosgw
    cluster: TwoNodes
    hidden: Path


@pytest.fixture(scope="module")
def bed(radosgw: Radosgw, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Bed]:
    if reason := two_nodes.missing():
        pytest.skip(reason)
    hidden = tmp_path_factory.getbasetemp()
    with network() as net, two_nodes.running(net, hidden=[hidden], environment=radosgw.environment()) as cluster:
        yield Bed(radosgw, cluster, hidden)


def _run(cluster: api.Cluster, name: str, program: str, *words: str) -> str:
    """The log of a job that runs this program with our code."""
    body = {
        "submission_id": name,
        "entrypoint_num_cpus": 0,
        "entrypoint": shlex.join([cluster.python, "-c", program, *words]),
        "runtime_env": {"working_dir": code.upload(cluster)},
    }
    api.call(cluster, "POST", "/api/jobs/", body)
    ended = jobs.watch(cluster, name)
    log: dict[str, str] = api.call(cluster, "GET", api.job_path(name) + "/logs")
    assert ended.status == "SUCCEEDED", log["logs"]
    return log["logs"]


def test_workers_on_both_nodes_see_nothing_of_this_machine_and_run_the_code_that_came_with_the_job(bed: Bed) -> None:
    cluster = api.connect(bed.cluster.address, bed.cluster.token)
    store = bed.store.folder / "ceph.conf"
    log = _run(cluster, "look", LOOK, str(store), str(two_nodes.ROOT / "flows" / "records.py"))
    told: list[dict[str, Any]] = next(json.loads(line[5:]) for line in log.splitlines() if line.startswith("told "))
    assert {one["host"]: one["address"] for one in told} == {
        node.name: node.address for node in (bed.cluster.head, bed.cluster.worker)
    }
    for one in told:
        assert one["seen"] == []
        assert all("_ray_pkg_" in file for file in one["code"])
        assert one["secret"] == bed.store.secret_key, "a node's keys are its own"
