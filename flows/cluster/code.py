"""The code of a job: `flows` and `heads` as a package, sent to the cluster once for each state of the code."""

from __future__ import annotations

import hashlib
import io
import zipfile
from pathlib import Path

import flows
import heads
from flows.cluster.api import Cluster, call


def upload(cluster: Cluster) -> str:
    """The address on the cluster of a package of `flows` and `heads`, which is named by its content and sent only once."""
    content = pack()
    name = f"_ray_pkg_{hashlib.sha256(content).hexdigest()[:16]}.zip"
    if call(cluster, "GET", f"/api/packages/gcs/{name}") is None:
        call(cluster, "PUT", f"/api/packages/gcs/{name}", content)
    return f"gcs://{name}"


def pack() -> bytes:
    """The two packages as the bytes of a zip file; the same code makes the same bytes."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as package:
        for root in (Path(str(module.__file__)).parent for module in (flows, heads)):
            for file in sorted(p for p in root.rglob("*") if p.suffix in (".py", ".yaml")):
                # A fixed date: the same code makes the same bytes.
                entry = zipfile.ZipInfo(str(Path(root.name) / file.relative_to(root)))
                entry.external_attr = 0o644 << 16
                package.writestr(entry, file.read_bytes(), zipfile.ZIP_DEFLATED)
    return buffer.getvalue()
