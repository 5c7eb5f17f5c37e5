"""A job's use of the feature store: filled once for all of its works, then read instead of samples."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import nn

from flows.job.costs import ExtractionCosts, PassCost
from flows.job.datasets import Splits
from flows.job.job import Job
from flows.records import Work
from heads.bundle import SharedBackbone
from heads.data.loading import Loaders
from heads.data.modalities import preparation_of
from heads.data.samples import Samples
from heads.distributed import rank, sum_over_ranks
from heads.features import FeatureStore
from heads.model.model import build_backbone
from heads.phases import Phase, Tap
from heads.trunks.extraction import ExtractionRequest, count_missing, extract
from heads.trunks.pricing import forward_multiply_adds
from heads.trunks.stored import FeatureLoader, Stored, open_views
from heads.trunks.trunk import Trunk, stored_taps, trunk_of

# Validation reads stored features in batches of at least about so many bytes, for fewer calls.
VALIDATION_BATCH_BYTES = 2**20


@dataclass(frozen=True)
class SplitView:
    """The view of this number of a split's samples, and all taps that the works need of it."""

    number: int
    split: str
    taps: frozenset[Tap]


@dataclass(frozen=True)
class TrunkPass:
    """A pass through one trunk: the works that need it, and the views of splits that go through it."""

    trunk: Trunk
    works: tuple[Work, ...]
    views: tuple[SplitView, ...]


class JobFeatures:
    """The features that a member of the worker group stores and reads; `device` is the torch device it computes on."""

    def __init__(self, job: Job, splits: Splits, device: Any) -> None:
        self.job, self.splits, self.device = job, splits, device
        self.store = FeatureStore(job.features_root)
        self.costs = ExtractionCosts(job, leads=rank() == 0)
        self._backbones = _Backbones(device)

    def fill(self, works: Sequence[Work]) -> None:
        """Run each trunk of the works on the samples that the store lacks; all members of the group together."""
        passes = self._passes(works)
        pass_costs = [self._cost_of(trunk_pass) for trunk_pass in passes]
        self.costs.announce(pass_costs)
        for trunk_pass, pass_cost in zip(passes, pass_costs, strict=True):
            name_trunk(self.store, trunk_pass.trunk)
            self.costs.begin(pass_cost)
            first, names = trunk_pass.works[0], {one.split for one in trunk_pass.views}
            sets = {name: self.splits.read(name, first.variant, first.weights.path, cache_bytes=0) for name in names}
            extract(
                partial(self.backbone, first),
                trunk_pass.trunk,
                [ExtractionRequest(sets[one.split], one.number, one.taps) for one in trunk_pass.views],
                self.store,
                device=self.device,
                precision=first.variant.fit.precision,
                on_stored=self.costs.note,
            )
            self.costs.divide()
        # A barrier: rank 0 has written all shards before any member reads them.
        sum_over_ranks(torch.zeros(1, device=self.device))

    def backbone(self, work: Work) -> nn.Sequential:
        """The backbone that a work starts from, frozen and in eval mode on the device; works that do not train it share it."""
        return self.shared_backbone(work).backbone

    def shared_backbone(self, work: Work) -> SharedBackbone:
        """The same, for the bundles of those works."""
        return self._backbones.get(work)

    def forget_backbone(self) -> None:
        """Free the memory of the backbone that works shared."""
        self._backbones = _Backbones(self.device)

    def loaders(self, work: Work, train_set: Samples, val_set: Samples) -> dict[Phase, Loaders]:
        """The loaders of the work's phases that read from the feature store; other phases are left out."""
        fit = work.variant.fit
        by_phase = {}
        for phase, taps in stored_taps(work.variant).items():
            trunks = self._trunks(work)
            train = open_views(self.store, trunks, taps, train_set.digests, self.device, shuffled=True, length=train_set.length)
            val = open_views(self.store, trunks[:1], taps, val_set.digests, self.device, shuffled=False, length=val_set.length)
            by_phase[phase] = Loaders(
                FeatureLoader(train_set, train, taps, fit.batch_size, self.device, training=True, accumulate=fit.accumulate),
                FeatureLoader(val_set, val, taps, self._validation_batch_size(work, phase, val[0]), self.device),
            )
        return by_phase

    def _validation_batch_size(self, work: Work, phase: Phase, features: Stored) -> int:
        """Larger than in training if only heads follow."""
        if phase.num_frozen_stages < work.variant.num_stages:
            return work.variant.fit.batch_size
        return max(work.variant.fit.batch_size, VALIDATION_BATCH_BYTES * len(features) // max(1, features.num_bytes))

    def fuse(self, probes: Sequence[Work]) -> list[list[Work]]:
        """The probes, grouped by the batches they read: a group trains side by side."""
        groups: dict[Any, list[Work]] = defaultdict(list)
        for work in probes:
            fit = work.variant.fit
            labels = tuple((head.target, head.task, head.ignore) for head in work.variant.heads)
            taps = tuple(stored_taps(work.variant).values())
            groups[tuple(self._trunks(work)), labels, taps, fit.batch_size, fit.seed, fit.accumulate].append(work)
        return list(groups.values())

    def _passes(self, works: Sequence[Work]) -> list[TrunkPass]:
        sharing: dict[Trunk, dict[str, Work]] = defaultdict(dict)
        taps_of: dict[Trunk, dict[tuple[int, str], frozenset[Tap]]] = defaultdict(lambda: defaultdict(frozenset))
        for work in works:
            taps = frozenset(tap for taps in stored_taps(work.variant).values() for tap in taps)
            for trunk, view, split in self._views(work) if taps else ():
                sharing[trunk][work.key] = work
                taps_of[trunk][view, split] |= taps
        return [
            TrunkPass(trunk, tuple(by_key.values()), tuple(SplitView(*view, taps) for view, taps in taps_of[trunk].items()))
            for trunk, by_key in sharing.items()
        ]

    def _views(self, work: Work) -> Iterator[tuple[Trunk, int, str]]:
        """The work's trunks, each with the view and the split it runs on: training in every view, validation in the plain one."""
        trunks = self._trunks(work)
        yield from ((trunk, view, "train") for view, trunk in enumerate(trunks))
        yield trunks[0], 0, "val"

    def _trunks(self, work: Work) -> list[Trunk]:
        """The trunk of each view of the work's training samples."""
        return [
            trunk_of(work.variant, work.weights.digest, self.device, varied=view > 0) for view in range(work.variant.fit.views)
        ]

    def _cost_of(self, trunk_pass: TrunkPass) -> PassCost:
        num_samples, flops = map(sum, zip(*(self._work_of(trunk_pass, view) for view in trunk_pass.views), strict=True))
        # What the baseline reads is stored for others anyway.
        others = tuple(work.key for work in trunk_pass.works if work != self.job.baseline)
        return PassCost(num_samples, flops, others or tuple(work.key for work in trunk_pass.works))

    def _work_of(self, trunk_pass: TrunkPass, view: SplitView) -> tuple[int, int]:
        """How many samples lack a tap, and the multiply-adds of forwarding each up to the deepest tap that it lacks."""
        variant, deeper, flops = trunk_pass.works[0].variant, 0, 0
        size = preparation_of(variant.backbone).size_of(variant.fit)
        for stage in sorted({tap.stage for tap in view.taps}, reverse=True):
            lacking = self._count(trunk_pass, view, [tap for tap in view.taps if tap.stage >= stage])
            cost = forward_multiply_adds(variant.backbone, size, stage + 1)
            deeper, flops = lacking, flops + (lacking - deeper) * cost
        return deeper, flops

    def _count(self, trunk_pass: TrunkPass, view: SplitView, taps: Collection[Tap]) -> int:
        return count_missing(self.store, trunk_pass.trunk, taps, self.splits.digests(view.split), view.number)


def name_trunk(store: FeatureStore, trunk: Trunk) -> None:
    """Describe a trunk beside its features in the store; a read-only store stays as it is."""
    about = {"backbone": trunk.backbone, "weights": trunk.weights, **trunk.preprocess.summary()}
    views = preparation_of(trunk.backbone).describe_view(trunk.view)
    store.describe(trunk.id, about | {"dtype": trunk.dtype, "views": views})


class _Backbones:
    """Backbones with their first weights, frozen, on `device`; the last one asked for is kept."""

    def __init__(self, device: Any) -> None:
        self._device, self._named, self._last = device, ("", "", -1), SharedBackbone(nn.Sequential())

    def get(self, work: Work) -> SharedBackbone:
        """The backbone that the work's variant starts from."""
        named = (work.variant.backbone, work.weights.digest, work.variant.fit.seed if work.weights.path is None else -1)
        if named != self._named:
            built = build_backbone(work.variant, work.weights.path).requires_grad_(False).eval()
            self._named = named
            self._last = SharedBackbone(built.to(self._device).to(memory_format=torch.channels_last))
        return self._last
