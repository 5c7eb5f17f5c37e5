"""The training of a job's works by the members of its worker group, in their processes."""

from __future__ import annotations

import logging
import os
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from flows import machine, objects, temporary_folders
from flows.baselines import BaselineFolder
from flows.cluster import workers
from flows.compile_times import KeptCompileTimes
from flows.errors import ASKED_WRONGLY, Unreachable
from flows.job.datasets import Splits
from flows.job.job import Job, read_job
from flows.job.job_folder import JobFolder
from flows.job.training import interruptions, results, screening
from flows.job.training.baseline import fit_baseline
from flows.job.training.checkpoint_note import CHECKPOINT_NOTE, CHECKPOINT_STATE, CheckpointNote, read_note, write_note
from flows.job.training.screening import probes_first
from flows.job.training.sharing import deal_out, probe_load
from flows.job.training.together import train_first_phases, train_probes
from flows.job.trunks import JobFeatures
from flows.records import Work
from heads.distributed import broadcast, wait_for_ranks
from heads.errors import CheckpointError, HeadsError, TrainingDiverged
from heads.model.model import Model, build_model
from heads.training import loop
from heads.training.state import Epoch, TrainingOutcome
from heads.trunks.trunk import is_probe

LOG = logging.getLogger(__name__)
# After these another try would end the same way; all others (a lost process, broken connections to it) are tried again.
FINAL_ERRORS: tuple[type[Exception], ...] = (
    *ASKED_WRONGLY,
    ValueError,
    TypeError,
    LookupError,
    AttributeError,
    AssertionError,
    ImportError,
)


def train_works(config: Mapping[str, Any]) -> None:
    """Train the job's works one after another, from where the last group was. Runs in every member of the group."""
    folder = JobFolder.at(config["job_folder"])
    if folder.has_failed():
        return
    temporary_folders.sweep()
    try:
        job = read_job(folder)
        # As many as there was room for.
        job = replace(job, workers=replace(job.workers, count=workers.num_ranks()))
        # Ray kills a group's processes when one of them is lost: what they leave here, the next group sweeps away.
        with temporary_folders.temporaries("work") as scratch, objects.counting(scratch):
            machine.check_expected(os.environ)
            _Member(job).run()
    except Unreachable:
        # A storage that is away: the next group goes on.
        raise
    except FINAL_ERRORS as error:
        folder.write_error(error)
        # The other members wait for this one in a collective: only an end of the whole group frees them.
        raise


@dataclass
class _Member:
    """One process of the worker group, training the works; rank 0 leads: it alone writes results."""

    job: Job
    leads: bool = field(init=False)
    device: Any = field(init=False)
    splits: Splits = field(init=False)
    features: JobFeatures = field(init=False)
    num_noted: int = field(init=False, default=0)

    def __post_init__(self) -> None:
        import torch

        torch.set_num_threads(max(1, int(self.job.workers.cpus_per_worker)))
        self.leads = workers.rank() == 0
        self.device = workers.device()
        self.splits = Splits(self.job)
        self.features = JobFeatures(self.job, self.splits, self.device)

    def run(self) -> None:
        *finished, has_baseline = self._agree_on_finished()
        todo = [work for work, done in zip(self.job.works, finished, strict=True) if not done]
        if self.leads and todo:
            titles = {work.key: _title(work) for work in todo}
            interruptions.begin_group(self.job, todo, titles, _last_note())
            self.job.folder.mark_span(time.time())
        baseline = [] if self.job.baseline is None or has_baseline else [self.job.baseline]
        self.features.fill([*todo, *baseline])
        self._note_fetched()
        # The last member, since the first one has the most to do; a kill leaves nothing half, and the next group fits it again.
        if baseline and workers.rank() == workers.num_ranks() - 1:
            fit_baseline(self.features, baseline[0])
        probes = [work for work in todo if is_probe(work.variant)]
        self._train_probes(probes, probe_load(len(self.job.classes[self.job.target])) if baseline else 0.0)
        out = self._screen([work for work in self.job.works if probes_first(self.job, work)], todo)
        self.features.forget_backbone()
        self._train_one_by_one([work for work in todo if work not in probes and work.key not in out])
        self._note_fetched()

    def _screen(self, rivals: Sequence[Work], todo: Sequence[Work]) -> set[str]:
        """Run the screening; the keys of the works that go no further: screened out, or failed in their probe phase."""
        left = {work.key for work in todo}
        if self.job.screening is None or not any(work.key in left for work in rivals):
            return set()
        for group in self.features.fuse([work for work in rivals if work.key in left]):
            train_first_phases(self.features, group[workers.rank() :: workers.num_ranks()])
        self._wait()
        ranked = screening.rank_probes(self.job, rivals)
        chosen = {work.key for work, _ in ranked[: self.job.screening.keep]}
        for place, (work, value) in enumerate(ranked, start=1):
            if work.key in left - chosen and place % workers.num_ranks() == workers.rank():
                screening.screen_out(self.job, self.features, work, place, len(ranked), value)
        self._wait()
        return {work.key for work in rivals} - chosen

    def _train_probes(self, probes: Sequence[Work], load_of_last: float) -> None:
        """Train works that read only stored features: each is trained by one member, by itself.

        The last member has had so much to do meanwhile.
        """
        loads = [0.0] * (workers.num_ranks() - 1) + [load_of_last]
        for dealt in deal_out(self.features.fuse(probes), loads):
            if mine := dealt[workers.rank()]:
                train_probes(self.features, mine)
        if probes:
            self._wait()
            if self.leads:
                self.job.folder.mark_span(time.time())

    def _train_one_by_one(self, works: Sequence[Work]) -> None:
        """Train works whose backbones learn, or that read the samples: all members together, one work after another."""
        with tempfile.TemporaryDirectory(prefix="headstart-resume-") as folder:
            checkpoint = workers.last_checkpoint(Path(folder))
            note = read_note(checkpoint / CHECKPOINT_NOTE) if checkpoint else None
            for work in works:
                try:
                    resume = self._probed(work)
                    if checkpoint and note and note.work_key == work.key:
                        resume = checkpoint / CHECKPOINT_STATE
                    self._train(work, resume)
                except TrainingDiverged as error:
                    # All ranks see the same summed loss, so all give this work up and go on to the next.
                    if self.leads:
                        results.write_failure(self.job, work, error)
                except HeadsError as error:
                    raise type(error)(f"{_title(work)}: {error}") from error

    def _agree_on_finished(self) -> list[bool]:
        # Of each work, then of the baseline. Rank 0 looks for all: if a result appeared between two ranks' looks, they would
        # train different works.
        import torch

        baseline = self.job.baseline
        fitted = baseline is not None and BaselineFolder.of(self.job.storage, baseline.key).is_finished()
        done = [*(self.job.work_folder(work).is_finished() for work in self.job.works), fitted]
        flags = torch.tensor(done, dtype=torch.uint8, device=self.device)
        return [bool(flag) for flag in broadcast(flags).tolist()]

    def _train(self, work: Work, resume: Path | None) -> None:
        if self.leads:
            self.job.folder.mark_span(time.time())
        try:
            model, outcome = self._fit(work, resume)
        except CheckpointError as error:
            # Written by another version, or damaged. A checkpoint only saves time: the training gives the same without it.
            LOG.warning("%s: its checkpoint is left aside: %s", _title(work), error)
            model, outcome = self._fit(work, None)
        if self.leads:
            self.job.folder.mark_span(time.time())
            results.write_result(self.job, work, model, outcome)

    def _fit(self, work: Work, resume: Path | None) -> tuple[Model, TrainingOutcome]:
        train_set, val_set = (self.splits.open(split, work.variant, work.weights.path) for split in ("train", "val"))
        stored = self.features.loaders(work, train_set, val_set)
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
            compile_records=KeptCompileTimes(),
        )

    def _probed(self, work: Work) -> Path | None:
        """The checkpoint after its probe phase that a work chosen by the screening goes on from; None for other works."""
        return self.job.work_folder(work).fetch_probe_checkpoint() if probes_first(self.job, work) else None

    def _note_fetched(self) -> None:
        if (number := objects.num_fetched()) != self.num_noted:
            self.job.folder.write_fetched(number)
            self.num_noted = number

    def _wait(self) -> None:
        wait_for_ranks()

    def _on_epoch(self, work: Work) -> Callable[[Epoch, Callable[[Path], None]], None]:
        def on_epoch(epoch: Epoch, save: Callable[[Path], None]) -> None:
            def save_folder(folder: Path) -> None:
                save(folder / CHECKPOINT_STATE)
                write_note(folder, CheckpointNote(work.key, epoch.index, time.time()))

            workers.report(save_folder if self.leads else None, {"epoch": float(epoch.index)})
            self._note_fetched()
            if self.leads:
                results.write_progress(self.job, work, [epoch])

        return on_epoch


def _last_note() -> CheckpointNote | None:
    note = workers.last_note(CHECKPOINT_NOTE)
    return note and CheckpointNote(**note)


def _title(work: Work) -> str:
    variant = work.variant
    return (
        f"variant {variant.variant_id} ({variant.backbone}, {'+'.join(head.design for head in variant.heads)}, {variant.freeze})"
    )
