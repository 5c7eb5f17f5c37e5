"""A training job: its driver, and what every member of the worker group does."""

from __future__ import annotations

import logging
import os
import tempfile
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from flows.cluster import workers
from flows.errors import ASKED_WRONGLY
from flows.job.datasets import read_split
from flows.job.order import Job, is_finished, read, read_json, write_error, write_json
from flows.job.runs import following
from flows.records import Work
from heads import bundle, loop
from heads.dataset import ImageDataset
from heads.errors import CheckpointError, HeadsError, TrainingDiverged
from heads.images import Preprocess, preprocess_for
from heads.model import Model, build_model, count_parameters
from heads.spec import Fit

LOG = logging.getLogger(__name__)
# Another try would end the same way; all else (a lost process, its neighbours' broken connections) is tried again.
FINAL_ERRORS: tuple[type[Exception], ...] = (
    *ASKED_WRONGLY,
    ValueError,
    TypeError,
    LookupError,
    AttributeError,
    AssertionError,
    ImportError,
)


def train(job: Job) -> dict[str, Any]:
    """The outcome of a training job, every work finished or failed for good. Runs in the job's driver."""
    todo = read_json(job.folder / "todo.json")
    if todo is None:
        todo = [work.key for work in job.works if not is_finished(job.work_root, work.key)]
        write_json(job.folder / "todo.json", todo)
    if not all(is_finished(job.work_root, work.key) for work in job.works):
        workers.join(job.workers)
        storage = job.storage / "ray" / "train"
        threading.Thread(target=_end_at_error, args=(job,), name="error", daemon=True).start()
        with following(job):
            workers.run_group(
                train_works, {"job_file": str(job.folder / "job.json")}, workers=job.workers, name=job.key, storage=storage
            )
        workers.forget_group(job.key, storage)
    results = [read_json(job.work_root / key / "result.json", {}) for key in todo]
    span = read_json(job.folder / "span.json", {"first": 0.0, "last": 0.0})
    return {
        "trained": todo,
        "reused": [work.key for work in job.works if work.key not in todo],
        "num_forwarded": sum(result.get("num_forwarded", 0) for result in results),
        "seconds": round(span["last"] - span["first"], 3),
    }


def _end_at_error(job: Job) -> None:
    # A group that failed for good would be started again only to return at once: with its driver, it ends now.
    while not (job.folder / "error.json").exists():
        time.sleep(0.5)
    os._exit(1)


def train_works(config: Mapping[str, Any]) -> None:
    """Trains the job's works one after another, from where the group was. Runs in every member of the group."""
    job = read(Path(config["job_file"]))
    if (job.folder / "error.json").exists():
        return
    try:
        _Member(job).run()
    except FINAL_ERRORS as error:
        write_error(job, error)
        # The others wait for this one in a collective: only an end of the whole group frees them.
        raise


@dataclass
class _Member:
    """One process of the group on its way through the works."""

    job: Job
    leads: bool = field(init=False)
    device: Any = field(init=False)
    _images: dict[tuple[Any, ...], ImageDataset] = field(default_factory=dict)

    def __post_init__(self) -> None:
        import torch

        torch.set_num_threads(max(1, int(self.job.workers.cpus_per_worker)))
        self.leads = workers.rank() == 0
        self.device = workers.device()

    def run(self) -> None:
        finished = self._agree_on_finished()
        with tempfile.TemporaryDirectory(prefix="headstart-resume-") as folder:
            checkpoint = workers.last_checkpoint(Path(folder))
            half_done = read_json(checkpoint / "work.json", {}).get("work_key") if checkpoint else None
            for work, done in zip(self.job.works, finished, strict=True):
                if done:
                    continue
                try:
                    self._train(work, checkpoint / "state.pt" if checkpoint and half_done == work.key else None)
                except TrainingDiverged as error:
                    # All ranks see the same sums: they give this work up, and go on to the next, together.
                    self._give_up(work, error)
                except HeadsError as error:
                    raise type(error)(f"{_title(work)}: {error}") from error

    def _agree_on_finished(self) -> list[bool]:
        # Rank 0 looks, for all: a result that appears between two looks would part the ranks' ways.
        import torch
        from torch import distributed

        flags = torch.tensor([is_finished(self.job.work_root, work.key) for work in self.job.works], dtype=torch.uint8)
        flags = flags.to(self.device)
        distributed.broadcast(flags, src=0)
        return [bool(flag) for flag in flags.tolist()]

    def _train(self, work: Work, resume: Path | None) -> None:
        variant = work.variant
        preprocess = preprocess_for(variant.backbone, variant.fit.image_size_px, whole=variant.sees_whole)
        train_set, val_set = self._dataset("train", work, preprocess), self._dataset("val", work, preprocess)
        if self.leads:
            self._mark_span()
        try:
            model, outcome = self._fit(work, train_set, val_set, resume)
        except CheckpointError as error:
            # Written by another version, or damaged: what it saves is time, and the training gives the same without it.
            LOG.warning("%s: its checkpoint is left aside: %s", _title(work), error)
            model, outcome = self._fit(work, train_set, val_set, None)
        if self.leads:
            self._mark_span()
            self._keep(work, model, preprocess, outcome)

    def _fit(self, work: Work, train_set: ImageDataset, val_set: ImageDataset, resume: Path | None) -> tuple[Model, loop.Outcome]:
        model = build_model(work.variant, self.job.classes, work.weights.path)
        on_epoch = self._on_epoch(work)
        return model, loop.train(model, work.variant, train_set, val_set, device=self.device, resume=resume, on_epoch=on_epoch)

    def _dataset(self, split: str, work: Work, preprocess: Preprocess) -> ImageDataset:
        """The split's images; works that see them the same way share one, and the decoded pictures it keeps in memory."""
        fit: Fit = work.variant.fit
        targets = tuple((head.target, head.task, head.ignore) for head in work.variant.heads)
        augment, flip = (fit.augment, fit.flip) if split == "train" else ("none", False)
        key = (split, targets, preprocess, augment, flip, fit.seed)
        if key not in self._images:
            for old in [k for k in self._images if k[0] == split]:
                del self._images[old]
            paths, labels, masks = read_split(self.job, split, work.variant.heads)
            self._images[key] = ImageDataset(paths, labels, preprocess, augment, fit.seed, flip=flip, masks=masks)
        return self._images[key]

    def _on_epoch(self, work: Work) -> Callable[[loop.Epoch, Callable[[Path], None]], None]:
        def on_epoch(epoch: loop.Epoch, save: Callable[[Path], None]) -> None:
            def save_folder(folder: Path) -> None:
                save(folder / "state.pt")
                write_json(folder / "work.json", {"work_key": work.key})

            workers.report(save_folder if self.leads else None, {"epoch": float(epoch.index)})
            if self.leads:
                self._write_progress(work, epoch)

        return on_epoch

    def _write_progress(self, work: Work, epoch: loop.Epoch) -> None:
        file = self.job.work_root / work.key / "progress.json"
        before = read_json(file, {"epochs": []})["epochs"]
        # An epoch repeated after a loss gives what it gave: those who follow never see the file shrink.
        if epoch.index >= len(before):
            write_json(file, {"work_key": work.key, "epochs": [*before, _epoch_row(epoch)]})

    def _keep(self, work: Work, model: Any, preprocess: Preprocess, outcome: loop.Outcome) -> None:
        folder = self.job.work_root / work.key
        num_parameters, num_trained = count_parameters(model)
        classes = {head.target: list(self.job.classes[head.target]) for head in work.variant.heads}
        facts = {
            "name": self.job.name,
            "work_key": work.key,
            "variant_id": work.variant.variant_id,
            "weights": work.weights.digest,
            "data_version": self.job.version.digest,
            "data_revision": self.job.version.revision,
            "metrics": outcome.metrics,
        }
        bundle.save(
            folder / "bundle",
            model=model,
            variant=work.variant,
            classes=classes,
            preprocess=preprocess,
            facts=facts,
            thresholds=outcome.thresholds,
        )
        result = {
            "work_key": work.key,
            "variant": work.variant.model_dump(mode="json"),
            "metrics": dict(outcome.metrics),
            "num_parameters": num_parameters,
            "num_trained_parameters": num_trained,
            "num_forwarded": outcome.num_forwarded,
            "seconds": round(sum(epoch.seconds for epoch in outcome.epochs), 3),
            "best_epoch": outcome.best_epoch,
            "ended": outcome.ended,
            "epochs": [_epoch_row(epoch) for epoch in outcome.epochs],
            "confusion": outcome.confusion,
            "classes": classes,
        }
        write_json(folder / "result.json", result)

    def _give_up(self, work: Work, error: TrainingDiverged) -> None:
        if self.leads:
            folder = self.job.work_root / work.key
            epochs = read_json(folder / "progress.json", {"epochs": []})["epochs"]
            write_json(folder / "failure.json", {"work_key": work.key, "reason": str(error), "epochs": epochs})

    def _mark_span(self) -> None:
        # Written again and again, so that it outlives any process: from the job's first batch to its last so far.
        file = self.job.folder / "span.json"
        now = time.time()
        write_json(file, {"first": read_json(file, {"first": now})["first"], "last": now})


def _title(work: Work) -> str:
    variant = work.variant
    return (
        f"variant {variant.variant_id} ({variant.backbone}, {'+'.join(head.design for head in variant.heads)}, {variant.freeze})"
    )


def _epoch_row(epoch: loop.Epoch) -> dict[str, Any]:
    row = {"epoch": epoch.index, "phase": epoch.phase, "metrics": dict(epoch.metrics), "seconds": epoch.seconds}
    row |= {"num_frozen_stages": epoch.num_frozen_stages, "decisions": list(epoch.decisions)}
    return row | ({"ended": epoch.ended} if epoch.ended else {})
