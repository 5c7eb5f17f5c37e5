"""A training job: its driver, and what every member of the worker group does."""

from __future__ import annotations

import logging
import os
import tempfile
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from flows import owners
from flows.cluster import workers
from flows.errors import ASKED_WRONGLY
from flows.job import keeping, losses, screening
from flows.job.datasets import Images
from flows.job.order import Job, is_finished, num_stored, read, read_json, write_error, write_json
from flows.job.runs import following
from flows.job.screening import is_in_contest
from flows.job.shelves import Shelves, is_probe
from flows.records import Work
from heads.errors import CheckpointError, HeadsError, TrainingDiverged
from heads.model.model import Model, build_model
from heads.training import loop
from heads.training.state import Epoch, Outcome

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
        losses.begin_driver(job)
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
        "num_forwarded": num_stored(job)[0] + sum(result.get("num_forwarded", 0) for result in results),
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
    owners.sweep()
    try:
        # Ray kills a group's processes when one of them is lost: what they leave here, the next group sweeps away.
        with owners.temporaries("work"):
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
    images: Images = field(init=False)
    shelves: Shelves = field(init=False)

    def __post_init__(self) -> None:
        import torch

        torch.set_num_threads(max(1, int(self.job.workers.cpus_per_worker)))
        self.leads = workers.rank() == 0
        self.device = workers.device()
        self.images = Images(self.job)
        self.shelves = Shelves(self.job, self.images, self.device)

    def run(self) -> None:
        finished = self._agree_on_finished()
        todo = [work for work, done in zip(self.job.works, finished, strict=True) if not done]
        if self.leads and todo:
            titles = {work.key: _title(work) for work in todo}
            losses.begin_group(self.job, todo, titles, workers.last_note("work.json"))
            self._mark_span()
        self.shelves.fill(todo)
        probes = [work for work in todo if is_probe(work.variant)]
        self._train_probes(probes)
        out = self._screen([work for work in self.job.works if is_in_contest(self.job, work)], todo)
        self.shelves.forget_backbone()
        self._train_one_by_one([work for work in todo if work not in probes and work.key not in out])

    def _screen(self, rivals: Sequence[Work], todo: Sequence[Work]) -> set[str]:
        """The keys of the works whose contest ends here: those that are screened out, or that failed in it."""
        left = {work.key for work in todo}
        if self.job.screening is None or not any(work.key in left for work in rivals):
            return set()
        for group in self.shelves.fuse([work for work in rivals if work.key in left]):
            screening.probe(self.job, self.shelves, group[workers.rank() :: workers.count()])
        self._wait()
        ranked = screening.rank_probes(self.job, rivals)
        chosen = {work.key for work, _ in ranked[: self.job.screening.keep]}
        for place, (work, value) in enumerate(ranked, start=1):
            if work.key in left - chosen and place % workers.count() == workers.rank():
                screening.screen_out(self.job, self.shelves, work, place, len(ranked), value)
        self._wait()
        return {work.key for work in rivals} - chosen

    def _train_probes(self, probes: Sequence[Work]) -> None:
        """Trains works that read stored features alone: each member takes its share of them, whole."""
        for group in self.shelves.fuse(probes):
            mine = group[workers.rank() :: workers.count()]
            if mine:
                self.shelves.train_together(mine)
        if probes:
            self._wait()
            if self.leads:
                self._mark_span()

    def _train_one_by_one(self, works: Sequence[Work]) -> None:
        """Trains works whose backbones are trained as well, or that need images: all members together, one after another."""
        with tempfile.TemporaryDirectory(prefix="headstart-resume-") as folder:
            checkpoint = workers.last_checkpoint(Path(folder))
            half_done = read_json(checkpoint / "work.json", {}).get("work_key") if checkpoint else None
            for work in works:
                try:
                    resume = checkpoint / "state.pt" if checkpoint and half_done == work.key else self._probed(work)
                    self._train(work, resume)
                except TrainingDiverged as error:
                    # All ranks see the same sums: they give this work up, and go on to the next, together.
                    if self.leads:
                        keeping.give_up(self.job, work, error)
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
        if self.leads:
            self._mark_span()
        try:
            model, outcome = self._fit(work, resume)
        except CheckpointError as error:
            # Written by another version, or damaged: what it saves is time, and the training gives the same without it.
            LOG.warning("%s: its checkpoint is left aside: %s", _title(work), error)
            model, outcome = self._fit(work, None)
        if self.leads:
            self._mark_span()
            keeping.keep(self.job, work, model, outcome)

    def _fit(self, work: Work, resume: Path | None) -> tuple[Model, Outcome]:
        train_set, val_set = (self.images.open(split, work.variant) for split in ("train", "val"))
        stored = self.shelves.loaders(work, train_set, val_set)
        model = build_model(work.variant, self.job.classes, work.weights.path)
        return model, loop.train(
            model,
            work.variant,
            train_set,
            val_set,
            device=self.device,
            resume=resume,
            on_epoch=self._on_epoch(work),
            stored=stored,
        )

    def _probed(self, work: Work) -> Path | None:
        """Where a work that won its contest goes on from."""
        file = screening.probe_file(self.job, work)
        return file if is_in_contest(self.job, work) and file.is_file() else None

    def _wait(self) -> None:
        from torch import distributed

        distributed.barrier()

    def _on_epoch(self, work: Work) -> Callable[[Epoch, Callable[[Path], None]], None]:
        def on_epoch(epoch: Epoch, save: Callable[[Path], None]) -> None:
            def save_folder(folder: Path) -> None:
                save(folder / "state.pt")
                write_json(folder / "work.json", {"work_key": work.key, "epoch": epoch.index, "at": time.time()})

            workers.report(save_folder if self.leads else None, {"epoch": float(epoch.index)})
            if self.leads:
                keeping.write_progress(self.job, work, [epoch])

        return on_epoch

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
