"""What is asked outside a retraining: predictions, and the end of one that was cancelled."""

from __future__ import annotations

import re
import tempfile
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from flows import cluster, tracking
from flows.errors import AskedWrongly
from flows.settings import Settings
from flows.stages.desk import open_registry
from flows.workspace import IMAGE_ENDINGS

BATCH_SIZE = 32

if TYPE_CHECKING:
    from heads.bundle import Answer


def predict(settings: Settings, model: str, files: Sequence[Path], output: Path | None = None) -> list[dict[str, Any]]:
    """What a bundle's folder, or a registered `NAME@WHICH`, reads in these images (folders stand for the images in them).

    Masks become PNG files under `output`, named after their images. Raises AskedWrongly where there is no such model or
    image, or no output folder for masks, ImageError where an image does not decode.
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
        bundle = bundles.load(folder)
    masks = [head.target for head in bundle.variant.heads if head.task == "segmentation"]
    if masks and output is None:
        raise AskedWrongly(f"{model} reads masks ({', '.join(masks)}): name the folder that they are written to with --output")
    told, seen = [], Counter[str]()
    for start in range(0, len(images), BATCH_SIZE):
        batch = images[start : start + BATCH_SIZE]
        for file, answers in zip(batch, bundle.predict(batch, BATCH_SIZE), strict=True):
            seen[file.stem] += 1
            name = file.stem if seen[file.stem] == 1 else f"{file.stem}-{seen[file.stem]}"
            told.append(
                {"file": str(file)} | {t: _told(one, output, t if len(masks) > 1 else "", name) for t, one in answers.items()}
            )
    return told


def _told(answer: Answer, output: Path | None, folder: str, name: str) -> dict[str, Any]:
    from heads.bundle import Labels, Prediction

    match answer:
        case Prediction():
            return {"label": answer.label, "probability": answer.probability}
        case Labels():
            return {"labels": list(answer.labels), "probabilities": dict(answer.probabilities)}
    assert output is not None
    file = output / re.sub(r"[^\w.\- ]", "_", folder) / f"{name}.png"
    file.parent.mkdir(parents=True, exist_ok=True)
    answer.picture().save(file)
    return {"mask": str(file), "shares": dict(answer.shares)}


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
