"""What two nights on two machines need: the object store behind a way that can be disturbed, MLflow, Ray, and a workspace."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import boto3
import torch
import torchvision

from flows.cluster.processes import free_ports
from tests.end_to_end.conftest import Workspace
from tests.end_to_end.test_tasks import draw
from tests.integration import two_nodes
from tests.integration.disturbed import Way
from tests.integration.nodes import Network, network
from tests.integration.radosgw import REGION, Radosgw
from tests.integration.two_nodes import TwoNodes

BUCKETS = ("data", "storage")
# The second node's disk for what it keeps of the data: less than an image.
FULL_DISK_BYTES = 2**12


@dataclass
class Bed:
    """The object store and the way to it, the cluster, MLflow's address, and the workspace on this machine."""

    store: Radosgw
    way: Way
    cluster: TwoNodes
    workspace: Workspace
    client: Any

    def keys(self, bucket: str, prefix: str = "") -> list[str]:
        """The keys of the objects of a bucket."""
        pages = self.client.get_paginator("list_objects_v2").paginate(Bucket=bucket, Prefix=prefix)
        return [entry["Key"] for page in pages for entry in page.get("Contents", ())]

    def read(self, bucket: str, key: str) -> bytes:
        """The content of an object."""
        content: bytes = self.client.get_object(Bucket=bucket, Key=key)["Body"].read()
        return content


@contextmanager
def running(store: Radosgw, folder: Path, hidden: Path, plan: str, num_images: int) -> Iterator[Bed]:
    """All of it for the block, with its files in `folder`, which is below the folder that is `hidden` from both nodes."""
    way = Way(store.port)
    with network() as net:
        head, worker = two_nodes.make_nodes(net, hidden=[hidden], worker_cache_bytes=FULL_DISK_BYTES)
        with way.open(net.here) as endpoint, _mlflow(net, folder) as tracking:
            keys = store.environment(endpoint)
            client = _client(store)
            for bucket in BUCKETS:
                client.create_bucket(Bucket=bucket)
            cluster = two_nodes.start(head, worker, keys)
            (folder / "token").write_text(cluster.token)
            workspace = Workspace(folder / "workspace")
            workspace.env |= keys | {
                "HEADSTART_STORAGE_ROOT": "s3://storage/shapes",
                "HEADSTART_TRACKING_ADDRESS": tracking,
                "HEADSTART_RAY_ADDRESS": cluster.address,
                "RAY_AUTH_TOKEN_PATH": str(folder / "token"),
            }
            _fill(workspace, endpoint, plan, num_images)
            yield Bed(store, way, cluster, workspace, client)


def _client(store: Radosgw) -> Any:
    """A client of the server itself, whatever happens on the way to it."""
    keys = {"aws_access_key_id": store.access_key, "aws_secret_access_key": store.secret_key}
    return boto3.client("s3", endpoint_url=store.endpoint, region_name=REGION, **keys)


def _fill(workspace: Workspace, endpoint: str, plan: str, num_images: int) -> None:
    """Make the workspace, with its data in the object store, a plan, and first weights in a file of this machine."""
    workspace.folder.mkdir()
    workspace.run("init", ".", "--remote", "s3://data/shapes", "--endpoint", endpoint)
    ingest(workspace, range(num_images))
    torch.manual_seed(0)
    torch.save(torchvision.models.squeezenet1_1().state_dict(), workspace.folder / "first.pth")
    (workspace.folder / "plan.yaml").write_text(plan)


def ingest(workspace: Workspace, numbers: range) -> None:
    """Bring drawn shapes with their masks into the workspace."""
    source = workspace.folder.parent / f"source-{numbers.start}"
    for name in ("images", "masks"):
        (source / name).mkdir(parents=True)
    lines = ["file,kind,mask,split"]
    for number in numbers:
        image, mask, _ = draw(number)
        image.save(source / "images" / f"{number}.png")
        mask.save(source / "masks" / f"{number}.png")
        split = ("train", "train", "train", "val", "test")[number // 2 % 5]
        lines.append(f"{number}.png,{('disc', 'square')[number % 2]},masks/{number}.png,{split}")
    (source / "labels.csv").write_text("\n".join(lines))
    workspace.run("data", "ingest", str(source))


@contextmanager
def _mlflow(net: Network, folder: Path) -> Iterator[str]:
    """The address of an MLflow server on this machine's end of the network, with its files in a folder that no node sees."""
    (port,) = free_ports(1)
    command = [
        sys.executable,
        "-W",
        "ignore",
        "-m",
        "mlflow",
        "server",
        "--host",
        net.here,
        "--port",
        str(port),
        "--workers",
        "1",
    ]
    stores = ["--backend-store-uri", f"sqlite:///{folder}/mlflow.db", "--artifacts-destination", str(folder / "artifacts")]
    env = os.environ | {"MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false", "MLFLOW_DISABLE_TELEMETRY": "true", "DO_NOT_TRACK": "1"}
    with (folder / "mlflow.log").open("wb") as log:
        server = subprocess.Popen(
            ["setpriv", "--pdeathsig", "TERM", *command, *stores], env=env, cwd=folder, stdout=log, stderr=log
        )
    try:
        yield f"http://{net.here}:{port}"
    finally:
        server.terminate()
        try:
            server.wait(30)
        except subprocess.TimeoutExpired:
            server.kill()
            server.wait()
