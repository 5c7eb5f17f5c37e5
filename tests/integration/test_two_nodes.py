"""Two nights on two machines that share nothing but an object store: it falters in the first, a node dies in the second."""

from __future__ import annotations

import json
import shlex
import subprocess
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import pytest

from flows.cluster import api, code, jobs
from tests.end_to_end.conftest import COMMAND, wait_for
from tests.integration import bed as beds
from tests.integration import two_nodes
from tests.integration.bed import Bed
from tests.integration.radosgw import Radosgw

pytestmark = [pytest.mark.slow, pytest.mark.nodes, pytest.mark.timeout(3600)]

NUM_IMAGES, NUM_NEW = 72, 6
BUSY_SECONDS, SILENT_SECONDS = 5.0, 5.0
EPOCHS = 6
WAIT_SECONDS = 1200.0

PLAN = f"""
name: shapes
targets: [kind, mask]
backbones: [squeezenet1_1]
weights: first.pth
heads: [linear, unet]
freeze: [all, none]
fit: {{epochs: {EPOCHS}, batch_size: 12, learning_rate: 0.003, image_size_px: 48, augment: none, seed: 0, warmup: 0}}
workers: {{count: [1, 2]}}
promotion: {{metric: mask/miou, guards: {{leaks: 'off', latency: 'off'}}}}
"""


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
            "seen": [path for path in paths if os.path.exists(path)], "code": [flows.__file__, heads.__file__]}

group = Workers(count=2)
workers.join(group)
print("told " + json.dumps(workers.map_shards(look, [(sys.argv[1:],)] * 2, workers=group)))
"""


@dataclass(frozen=True)
class Night:
    """A retraining: its report, what it said on standard error, and its seconds."""

    report: dict[str, Any]
    said: str
    seconds: float


@pytest.fixture(scope="module")
def bed(radosgw: Radosgw, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Bed]:
    if reason := two_nodes.missing():
        pytest.skip(reason)
    folder, hidden = tmp_path_factory.mktemp("two-nodes"), tmp_path_factory.getbasetemp()
    with beds.running(radosgw, folder, hidden, PLAN, NUM_IMAGES) as opened:
        yield opened


def _retrain(bed: Bed, disturb: Callable[[Callable[[], bool]], None]) -> Night:
    """A retraining by the public command, disturbed on the way; `disturb` is given whether it still runs."""
    begun, workspace = time.monotonic(), bed.workspace
    told, said = (workspace.folder.parent / f"{begun}.{name}" for name in ("out", "err"))
    with told.open("wb") as out, said.open("wb") as err:
        command = subprocess.Popen(
            [str(COMMAND), "retrain", "plan.yaml", "--json"], cwd=workspace.folder, env=workspace.env, stdout=out, stderr=err
        )
    try:
        disturb(lambda: command.poll() is None)
        command.wait(WAIT_SECONDS)
    finally:
        command.kill()
        command.wait()
    assert command.returncode == 0, said.read_text()[-6000:]
    return Night(json.loads(told.read_text()), said.read_text(), time.monotonic() - begun)


def _checkpoints(bed: Bed, since: int) -> set[str]:
    """The checkpoints of whole groups that were put after the server's first `since` requests: those of fine-tuning alone."""
    asked = bed.store.requests(since)
    return {
        path.split("/checkpoint_")[1].split("/")[0] for method, path, _ in asked if method == "PUT" and "/checkpoint_" in path
    }


@pytest.fixture(scope="module")
def first(bed: Bed) -> Night:
    """The first night; once training has a checkpoint, the object store answers 503 for a while, then nothing at all."""
    before = len(bed.store.requests())

    def disturb(runs: Callable[[], bool]) -> None:
        wait_for("a checkpoint", lambda: not runs() or _checkpoints(bed, before), WAIT_SECONDS)
        for disturbance, seconds in ((bed.way.busy, BUSY_SECONDS), (bed.way.silent, SILENT_SECONDS)):
            with disturbance():
                time.sleep(seconds)

    return _retrain(bed, disturb)


@pytest.fixture(scope="module")
def second(bed: Bed, first: Night) -> Night:
    """The second night, on a few more samples; once training has two checkpoints, the second node loses its power."""
    beds.ingest(bed.workspace, range(NUM_IMAGES, NUM_IMAGES + NUM_NEW))
    before = len(bed.store.requests())

    def disturb(runs: Callable[[], bool]) -> None:
        wait_for("two checkpoints", lambda: not runs() or len(_checkpoints(bed, before)) > 1, WAIT_SECONDS)
        bed.cluster.worker.kill()

    return _retrain(bed, disturb)


def _jobs(bed: Bed, name: str) -> list[Any]:
    """The content of this file of every job of training, oldest first."""
    keys = [key for key in bed.keys("storage", "shapes/jobs/train-") if key.endswith(f"/{name}")]
    return [json.loads(bed.read("storage", key)) for key in keys]


def test_workers_on_both_nodes_see_nothing_of_this_machine_and_run_the_code_that_came_with_the_job(bed: Bed) -> None:
    cluster = api.connect(bed.cluster.address, bed.cluster.token)
    paths = [bed.workspace.folder, bed.workspace.folder / "plan.yaml", two_nodes.ROOT / "flows" / "records.py"]
    body = {
        "submission_id": "look",
        "entrypoint": shlex.join([cluster.python, "-c", LOOK, *map(str, paths)]),
        "runtime_env": {"working_dir": code.upload(cluster)},
    }
    api.call(cluster, "POST", "/api/jobs/", body)
    ended, log = jobs.watch(cluster, "look"), api.call(cluster, "GET", api.job_path("look") + "/logs")["logs"]
    assert ended.status == "SUCCEEDED", log
    told = next(json.loads(line[5:]) for line in log.splitlines() if line.startswith("told "))
    nodes = (bed.cluster.head, bed.cluster.worker)
    assert {one["host"]: one["address"] for one in told} == {node.name: node.address for node in nodes}
    for one in told:
        assert one["seen"] == []
        assert all("_ray_pkg_" in file for file in one["code"])


def test_a_night_trains_frozen_and_whole_variants_on_both_nodes_though_the_store_falters(bed: Bed, first: Night) -> None:
    variants = first.report["variants"]
    assert sorted(variant["freeze"] for variant in variants) == ["all", "none"]
    for variant in variants:
        assert {"val/kind/accuracy", "val/mask/miou"} <= set(variant["metrics"])
    assert bed.way.hits > 1, "requests met the disturbances"
    assert first.report["counts"]["samples_fetched"] > 0
    (groups,) = _jobs(bed, "groups.json")
    assert [group["num_workers"] for group in groups] == [2], "a node has room for one worker, and none was lost"
    assert first.report["verdict"]["findings"]
    print("seconds of the first night:", first.seconds, first.report["seconds"])  # noqa: T201


def test_the_next_night_goes_on_with_one_worker_after_its_node_lost_power_and_says_so(bed: Bed, second: Night) -> None:
    assert f"Ray lost the node worker ({bed.cluster.worker.address}); there is room for 1 of 2 workers" in second.said
    assert "1 worker instead of 2" in second.said
    sizes = [group["num_workers"] for group in _jobs(bed, "groups.json")[-1]]
    assert (sizes[0], sizes[-1]) == (2, 1)
    assert all(not variant["reused"] for variant in second.report["variants"])
    print("seconds of the second night:", second.seconds, second.report["seconds"])  # noqa: T201
