"""What a plan would cost: the trunks that its variants share, how much the feature store already holds, the work left."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from flows.plan import TrunkGroup, VariantPhases, group_by_trunk
from flows.records import Work
from flows.sample_files import locate
from flows.settings import Settings
from flows.stages.preview.costs import SAMPLE_UNITS, Costs, Estimate, SamplePhase, TrunkUse
from flows.stages.values import WorkPlan
from heads.bert_size import modality_of
from heads.phases import Phase, Tap

if TYPE_CHECKING:
    from heads.trunks.calibration import Rates

CALIBRATION_SECONDS = 2.0
MAX_FILES = 32
# A head's step with its optimiser, when the features come from the store.
STEP_SECONDS = 1.5e-3
# The backbone and the size of samples that a rate was measured for.
Network = tuple[str, int]


@dataclass(frozen=True)
class Cost:
    """Arithmetic of backbones in multiply-adds, and seconds of all workers together."""

    flops: float = 0.0
    seconds: float = 0.0

    def __add__(self, other: Cost) -> Cost:
        return Cost(self.flops + other.flops, self.seconds + other.seconds)

    def times(self, factor: float) -> Cost:
        """This cost, `factor` times."""
        return Cost(factor * self.flops, factor * self.seconds)


def estimate_costs(settings: Settings, work_plan: WorkPlan, *, calibrate: bool) -> Costs:
    """What a plan costs; touches nothing.

    `calibrate` times a few samples and forward passes on this machine; without it, stated rates of another machine are used.
    """
    estimator = _CostEstimator(settings, work_plan, calibrate=calibrate)
    groups = group_by_trunk(list(estimator.phases.values()))
    trunks = tuple(estimator.describe_trunk(group) for group in groups)
    return Costs(trunks, estimator.sample_phases(), estimator.estimate(trunks))


class _CostEstimator:
    """Estimates what a work plan costs, from the feature store and the device of this machine."""

    def __init__(self, settings: Settings, work_plan: WorkPlan, *, calibrate: bool) -> None:
        import torch

        from heads.features import FeatureStore

        self.settings, self.work_plan = settings, work_plan
        self.store = FeatureStore(settings.features)
        self.workers = work_plan.plan.workers.group()
        self.device = torch.device("cuda" if self.workers.gpus_per_worker and torch.cuda.is_available() else "cpu")
        self.digests = {
            split: [sample.pixel_digest for sample in work_plan.version.samples if sample.split == split]
            for split in ("train", "val")
        }
        self.phases = {work.key: self._phases(work) for work in work_plan.works}
        self.left = [work for work in work_plan.works if not self.phases[work.key].done]
        self.rates = self._find_rates(calibrate=calibrate)
        self.calibrated = calibrate and bool(self.left)

    @property
    def num_samples(self) -> tuple[int, int]:
        """How many samples training and validation have."""
        return len(self.digests["train"]), len(self.digests["val"])

    def describe_trunk(self, group: TrunkGroup) -> TrunkUse:
        """A trunk: the variants that share it, its stored samples, and those left to forward through it."""
        from heads.trunks.pricing import price

        tap_price = price(group.backbone, group.sample_size, group.taps, self._value_bytes(group))
        total, stored, flops = self._count(group)
        modality = modality_of(group.backbone)
        to_forward = total - stored if group.left else 0
        rates = self.rates[group.backbone, group.sample_size]
        cost = Cost(flops, to_forward * rates.sample_seconds + flops / rates.multiply_adds_per_second) if group.left else Cost()
        return TrunkUse(
            trunk_id=group.trunk_id,
            backbone=group.backbone,
            through=group.through,
            num_stages=group.num_stages,
            image_size_px=group.sample_size if modality == "image" else None,
            max_tokens=group.sample_size if modality == "text" else None,
            whole=group.whole,
            views=tuple(group.views),
            taps=tuple(tap.name for tap in group.taps),
            variants=tuple(group.variants),
            variants_left=tuple(group.left),
            samples=total,
            samples_stored=stored,
            samples_to_forward=to_forward,
            bytes_per_sample=tap_price.num_bytes,
            bytes=total * tap_price.num_bytes,
            flops=int(cost.flops),
            seconds=round(cost.seconds / self.workers.count, 2),
        )

    def sample_phases(self) -> tuple[SamplePhase, ...]:
        """The phases, of variants left to train, that read samples instead of stored features, and why."""
        return tuple(
            SamplePhase(
                variant_id=work.variant.variant_id,
                label=self.work_plan.label(work),
                epochs=phase.num_epochs,
                num_frozen_stages=phase.num_frozen_stages,
                reason=inputs.reason,
                is_screened=self._is_screened(work),
            )
            for work in self.left
            for phase, inputs in self.phases[work.key].from_samples.items()
        )

    def estimate(self, trunks: Sequence[TrunkUse]) -> Estimate:
        """The cost of the work left, beside the cost of one job a variant without a feature store."""
        filling = Cost(sum(t.flops for t in trunks), self.workers.count * sum(t.seconds for t in trunks))
        asked = sum((self._cost(work) for work in self.left), filling)
        alone = sum((self._cost(work, alone=True) for work in self.left), Cost())
        seconds = {name: round(cost.seconds / self.workers.count, 3) for name, cost in (("asked", asked), ("alone", alone))}
        return Estimate(
            flops=int(asked.flops),
            flops_alone=int(alone.flops),
            flops_factor=_ratio(alone.flops, asked.flops),
            seconds=seconds["asked"],
            seconds_alone=seconds["alone"],
            seconds_factor=_ratio(alone.seconds, asked.seconds),
            calibrated=self.calibrated,
            device=self.device.type,
            elsewhere=self._elsewhere(),
            rates={f"{name} {size} {SAMPLE_UNITS[modality_of(name)]}": rates for (name, size), rates in self.rates.items()},
        )

    def _elsewhere(self) -> str:
        """How the training machine may differ from this one, as words that continue a sentence; '' if it is this one."""
        if self.settings.ray_address:
            return f", while the cluster at {self.settings.ray_address} trains"
        lacks_gpu = self.workers.gpus_per_worker and self.device.type == "cpu"
        # A trunk's id holds its dtype, which differs on GPUs: their features cannot be looked up from here.
        return ", which lacks the GPUs that the plan asks for; what such stored is not looked at" if lacks_gpu else ""

    def _phases(self, work: Work) -> VariantPhases:
        from heads.trunks.trunk import choose_taps, trunk_of

        trunks = [
            trunk_of(work.variant, work.weights.digest, self.device, varied=view > 0) for view in range(work.variant.fit.views)
        ]
        done = self.work_plan.is_done(self.settings, work)
        return VariantPhases(work.variant, done, choose_taps(work.variant), tuple(trunk.id for trunk in trunks))

    def _value_bytes(self, group: TrunkGroup) -> int:
        from heads.trunks.trunk import feature_dtype

        sharing = next(work for work in self.work_plan.works if work.variant.variant_id in group.variants)
        return feature_dtype(self.device, sharing.variant.fit.precision).itemsize

    def _count(self, group: TrunkGroup) -> tuple[int, int, int]:
        """The trunk's different samples over all views, how many of them are stored, and the multiply-adds of the others."""
        import numpy as np

        from heads.features import Key
        from heads.trunks.pricing import forward_multiply_adds

        digests = {view: self.digests["train"] + (self.digests["val"] if view == 0 else []) for view in group.views}
        keys = [Key(digest, view) for view, of_view in digests.items() for digest in dict.fromkeys(of_view)]
        taps = {tap.name: tap.stage for tap in group.taps}
        deepest = np.full(len(keys), -1)
        for tap, held in self.store.listed(group.trunk_id, keys, taps).items():
            deepest = np.where(held, deepest, np.maximum(deepest, taps[tap]))
        flops = sum(
            int(count) * forward_multiply_adds(group.backbone, group.sample_size, int(stage) + 1)
            for stage, count in zip(*np.unique(deepest[deepest >= 0], return_counts=True), strict=True)
        )
        return len(keys), int((deepest < 0).sum()), flops

    def _is_screened(self, work: Work) -> bool:
        """Whether screening may end the work early: a work whose probe phase cannot read stored features just trains."""
        return work.is_screened and bool(next(iter(self.phases[work.key].inputs.values())).taps)

    def _cost(self, work: Work, *, alone: bool = False) -> Cost:
        """The cost of training a variant; `alone` means without a feature store."""
        rivals, kept = [other for other in self.left if self._is_screened(other)], self.work_plan.plan.screening
        cost = Cost()
        for number, (phase, inputs) in enumerate(self.phases[work.key].inputs.items()):
            # Only the best of the screened works go on after the first phase; which ones is not known yet.
            share = min(1.0, (kept or 1) / len(rivals)) if number and self._is_screened(work) else 1.0
            cost += self._cost_of_phase(work, phase, () if alone else inputs.taps).times(share)
        return cost

    def _cost_of_phase(self, work: Work, phase: Phase, taps: tuple[Tap, ...]) -> Cost:
        from heads.data.modalities import preparation_of
        from heads.data.samples import DEFAULT_CACHE_BYTES
        from heads.trunks.pricing import BYTES_PER_SECOND, epoch_multiply_adds, price

        variant = work.variant
        network = variant.backbone, variant.sample_size
        samples, rates = sum(self.num_samples), self.rates[network]
        flops = epoch_multiply_adds(variant, phase.num_frozen_stages, *self.num_samples, stored=bool(taps))
        if taps:
            reading = samples * price(*network, taps).num_bytes / BYTES_PER_SECOND
        else:
            # Samples that are kept in memory are read in the first epoch alone.
            asked_bytes = samples * preparation_of(variant.backbone).kept_bytes(variant.sample_size)
            kept = min(1.0, self.workers.count * DEFAULT_CACHE_BYTES / max(1, asked_bytes))
            again = 1 - kept * (1 - 1 / phase.num_epochs)
            reading = samples * (again * rates.sample_seconds + rates.kept_sample_seconds)
        steps = samples / variant.fit.batch_size
        seconds = reading + steps * STEP_SECONDS + flops / rates.multiply_adds_per_second
        return Cost(flops, seconds).times(phase.num_epochs)

    def _find_rates(self, *, calibrate: bool) -> dict[Network, Rates]:
        from heads.trunks.calibration import measure_rates, state_rates

        works = {(work.variant.backbone, work.variant.sample_size): work for work in self.work_plan.works}
        if not calibrate or not self.left:
            return {network: state_rates(*network) for network in works}
        # A few of the files: finding one may mean reading it.
        train = [sample for sample in self.work_plan.version.samples if sample.split == "train"]
        files = [locate(self.work_plan.version, sample) for sample in train[:: max(1, len(train) // MAX_FILES)][:MAX_FILES]]
        return {
            network: measure_rates(
                work.variant,
                work.weights.path,
                files,
                device=self.device,
                num_threads=max(1, int(self.workers.cpus_per_worker)),
                seconds=CALIBRATION_SECONDS / len(works),
            )
            for network, work in works.items()
        }


def _ratio(alone: float, asked: float) -> float | None:
    return round(alone / asked, 1) if asked else None
