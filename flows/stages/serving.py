"""What is asked outside a retraining: predictions, and the end of one that was cancelled."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from flows import cluster, tracking
from flows.errors import AskedWrongly
from flows.settings import Settings
from flows.stages.desk import open_registry
from flows.workspace import IMAGE_ENDINGS


def predict(settings: Settings, model: str, files: Sequence[Path]) -> list[dict[str, Any]]:
    """What a bundle's folder, or a registered `NAME@WHICH`, reads in these images (folders stand for the images in them).

    Raises AskedWrongly where there is no such model or image, ImageError where an image does not decode.
    """
    images = [image for file in files for image in _images(file)]
    from heads import bundle as bundles

    with tempfile.TemporaryDirectory(prefix="headstart-predict-") as made:
        folder = Path(model)
        if not folder.is_dir():
            name, at, which = model.partition("@")
            if not at:
                raise AskedWrongly(f"{model!r} is no bundle's folder; a registered model is written NAME@champion or NAME@3")
            folder = Path(made) / "bundle"
            open_registry(settings).pull(name, which or "champion", folder)
        read = bundles.load(folder).predict(images)
    return [
        {"file": str(file)} | {target: {"label": found.label, "probability": found.probability} for target, found in one.items()}
        for file, one in zip(images, read, strict=True)
    ]


def _images(file: Path) -> list[Path]:
    if not file.exists():
        raise AskedWrongly(f"{file} does not exist: name images, or folders of images")
    if not file.is_dir():
        return [file]
    found = sorted(path for path in file.rglob("*") if path.suffix.lower() in IMAGE_ENDINGS)
    if not found:
        raise AskedWrongly(f"{file} holds no image ({', '.join(IMAGE_ENDINGS)})")
    return found


def stop_retraining(settings: Settings, flow_run_id: str) -> list[str]:
    """The Ray jobs of a flow run, stopped and confirmed as such by Ray; its MLflow runs that still ran are KILLED."""
    stopped = []
    try:
        found = cluster.find_cluster(settings.ray_address, settings.storage)
        if found is not None:
            for submission in cluster.find_by_flow_run(found, flow_run_id):
                cluster.stop(found, submission.submission_id)
                stopped.append(submission.submission_id)
    finally:
        tracking.stop_runs(settings.tracking, flow_run_id)
    return stopped
