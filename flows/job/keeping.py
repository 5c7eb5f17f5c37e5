"""What a work leaves on disk: its epochs so far, its result with the bundle, or why it failed."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from flows.job.accounts import costs_of
from flows.job.examples import save_examples
from flows.job.order import Job, read_json, write_json
from flows.records import Work
from heads import bundle
from heads.data.images import preprocess_for
from heads.errors import TrainingDiverged
from heads.model.model import Model, count_parameters
from heads.tasks import segmentation
from heads.training.state import Epoch, Outcome


def checkpoint_file(job: Job, work: Work) -> Path:
    """Where a work that trains beside others keeps what it goes on from."""
    return job.work_root / work.key / "training.pt"


def drop_checkpoint(job: Job, work: Work) -> None:
    """Removes that file, and what a kill left of one half written."""
    file = checkpoint_file(job, work)
    for each in (file, *file.parent.glob(f".{file.name}.*")):
        each.unlink(missing_ok=True)


def write_progress(job: Job, work: Work, epochs: Sequence[Epoch]) -> None:
    """Adds epochs to the work's `progress.json`."""
    file = job.work_root / work.key / "progress.json"
    before = read_json(file, {"epochs": []})["epochs"]
    # An epoch repeated after a loss gives what it gave: those who follow never see the file shrink.
    if new := [_epoch_row(epoch) for epoch in epochs if epoch.index >= len(before)]:
        write_json(file, {"work_key": work.key, "epochs": [*before, *new]})


def keep(job: Job, work: Work, model: Model, outcome: Outcome) -> None:
    """Writes the work's bundle and then, as the mark that it is finished, its `result.json`."""
    folder, variant = job.work_root / work.key, work.variant
    num_parameters, num_trained = count_parameters(model)
    classes = {head.target: list(job.classes[head.target]) for head in variant.heads}
    facts = {
        "name": job.name,
        "work_key": work.key,
        "variant_id": variant.variant_id,
        "weights": work.weights.digest,
        "data_version": job.version.digest,
        "data_revision": job.version.revision,
        "metrics": outcome.metrics,
    }
    bundle.save(
        folder / "bundle",
        model=model,
        variant=variant,
        classes=classes,
        preprocess=preprocess_for(variant.backbone, variant.fit.image_size_px, whole=variant.sees_whole),
        facts=facts,
        thresholds=outcome.thresholds,
    )
    result = {
        "work_key": work.key,
        "variant": variant.model_dump(mode="json"),
        "metrics": dict(outcome.metrics) | _class_ious(work, outcome, classes),
        "num_parameters": num_parameters,
        "num_trained_parameters": num_trained,
        **costs_of(job, work, outcome),
        "best_epoch": outcome.best_epoch,
        "ended": outcome.ended,
        "epochs": [_epoch_row(epoch) for epoch in outcome.epochs],
        "confusion": outcome.confusion,
        "classes": classes,
        "examples": save_examples(folder, folder / "bundle", job.version, variant.heads),
    }
    write_json(folder / "result.json", result)
    # What it went on from; its standing in a contest stays, since rivals are ranked by it.
    (folder / "probe.pt").unlink(missing_ok=True)
    drop_checkpoint(job, work)


def give_up(job: Job, work: Work, error: TrainingDiverged) -> None:
    """Writes why the work failed for good, with the epochs that it had."""
    folder = job.work_root / work.key
    epochs = read_json(folder / "progress.json", {"epochs": []})["epochs"]
    write_json(folder / "failure.json", {"work_key": work.key, "reason": str(error), "epochs": epochs})
    drop_checkpoint(job, work)


def _class_ious(work: Work, outcome: Outcome, classes: dict[str, list[str]]) -> dict[str, float]:
    """Each class's IoU of the masks, named as on the holdout; a class that is nowhere has none."""
    import torch

    found: dict[str, float] = {}
    for head in work.variant.heads:
        if head.task == "segmentation":
            ious = segmentation.class_ious(torch.tensor(outcome.confusion[head.target]))
            named = zip(classes[head.target], ious, strict=True)
            found |= {f"val/{head.target}/iou_{name}": iou for name, iou in named if iou == iou}
    return found


def _epoch_row(epoch: Epoch) -> dict[str, Any]:
    row = {"epoch": epoch.index, "phase": epoch.phase, "metrics": dict(epoch.metrics), "seconds": epoch.seconds}
    row |= {"num_frozen_stages": epoch.num_frozen_stages, "decisions": list(epoch.decisions)}
    return row | ({"ended": epoch.ended} if epoch.ended else {})
