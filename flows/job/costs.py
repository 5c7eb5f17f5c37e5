"""The costs of a job: samples and multiply-adds of filling the feature store, shared by works, and what each work took."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from time import monotonic

from flows.job.job import Job
from flows.records import Work
from heads.training.state import TrainingOutcome
from heads.trunks.pricing import epoch_multiply_adds


@dataclass(frozen=True)
class PassCost:
    """One pass through a trunk: its samples, the multiply-adds of all of them, and the keys of the works that need it."""

    num_samples: int
    flops: int
    keys: tuple[str, ...]


class ExtractionCosts:
    """Progress and cost of filling the feature store: each rank counts its samples, rank 0 divides the time among the works."""

    def __init__(self, job: Job, *, leads: bool) -> None:
        self.job, self.leads = job, leads
        # The seconds of an attempt that was killed count, too.
        self._shares: dict[str, float] = job.folder.read_shares()
        self._num_samples, self._flops = 0, 0.0

    def announce(self, pass_costs: Sequence[PassCost]) -> None:
        """Write down how many samples are to be stored, for the flow's progress."""
        self.job.folder.write_to_store(self.job.folder.num_stored()[0] + sum(pass_cost.num_samples for pass_cost in pass_costs))

    def begin(self, pass_cost: PassCost) -> None:
        """Start the clock of a pass."""
        self._pass_cost, self._since = pass_cost, monotonic()

    def note(self, num_samples: int) -> None:
        """Count samples that this member has just stored, and write the sum down."""
        self._num_samples += num_samples
        self._flops += num_samples * self._pass_cost.flops / max(1, self._pass_cost.num_samples)
        self.job.folder.write_stored(self._num_samples, self._flops)
        self.divide()

    def divide(self) -> None:
        """Divide the seconds since the last call equally among the works of the pass."""
        now = monotonic()
        for key in self._pass_cost.keys:
            self._shares[key] = self._shares.get(key, 0.0) + (now - self._since) / len(self._pass_cost.keys)
        self._since = now
        if self.leads:
            self.job.folder.write_shares(self._shares)


@dataclass(frozen=True)
class WorkCosts:
    """What a trained work took.

    `seconds` are its own epochs plus `shared_seconds`, its share of filling the feature store; `gpu_seconds` are these times
    the GPUs that it held. `flops` are the multiply-adds of its backbone, without those of filling the store, which the job
    counts; `flops_alone` are those of the same epochs on images.
    """

    num_forwarded: int
    num_features_read: int
    flops: int
    flops_alone: int
    seconds: float
    shared_seconds: float
    gpu_seconds: float


def costs_of(job: Job, work: Work, outcome: TrainingOutcome) -> WorkCosts:
    """What the training of a work took, from its outcome and the job's shares."""
    sizes = Counter(sample.split for sample in job.version.samples)
    num_samples, group = (sizes["train"], sizes["val"]), job.workers
    reading = [epoch for epoch in outcome.epochs if not epoch.num_forwarded]
    flops = {
        name: sum(
            epoch_multiply_adds(work.variant, epoch.num_frozen_stages, *num_samples, stored=reads and not epoch.num_forwarded)
            for epoch in outcome.epochs
        )
        for name, reads in (("flops", True), ("flops_alone", False))
    }
    own, shared = sum(epoch.seconds for epoch in outcome.epochs), job.folder.read_shares().get(work.key, 0.0)
    # Works that never train their backbone are trained by one member each.
    alone = len(reading) == len(outcome.epochs) and all(e.num_frozen_stages == work.variant.num_stages for e in reading)
    return WorkCosts(
        num_forwarded=outcome.num_forwarded,
        num_features_read=len(reading) * sum(num_samples),
        **flops,
        seconds=round(own + shared, 3),
        shared_seconds=round(shared, 3),
        gpu_seconds=round(group.gpus_per_worker * (own * (1 if alone else group.count) + shared * group.count), 3),
    )
