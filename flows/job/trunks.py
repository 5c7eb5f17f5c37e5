"""The feature store as a job's works use it: filled once for all of them, then read in place of samples."""

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
from heads.data.loading import Loaders
from heads.data.modalities import preparation_of
from heads.data.samples import Samples
from heads.distributed import rank, sum_over_ranks
from heads.features import Features, FeatureStore
from heads.model.model import build_backbone
from heads.phases import Phase, Tap, compile_policy
from heads.spec import Variant
from heads.trunks.extraction import ExtractionRequest, count_missing, extract
from heads.trunks.pricing import forward_multiply_adds
from heads.trunks.stored import FeatureLoader, open_views
from heads.trunks.trunk import Trunk, stored_taps, trunk_of

# Validation reads small features in large bites.
LOOK_BYTES = 2**20


@dataclass(frozen=True)
class SplitView:
    """One view of a split's samples, and all that works need of it."""

    view: int
    split: str
    taps: frozenset[Tap]


@dataclass(frozen=True)
class TrunkPass:
    """All that goes through one trunk for these works."""

    trunk: Trunk
    works: tuple[Work, ...]
    parts: tuple[SplitView, ...]


def is_probe(variant: Variant) -> bool:
    """Whether a variant trains heads alone, on stored features from the first epoch to the last."""
    frozen = all(phase.num_frozen_stages == variant.num_stages for phase in compile_policy(variant))
    return frozen and len(stored_taps(variant)) == len(compile_policy(variant))


class JobFeatures:
    """The features that a member of the worker group stores and reads; `device` is the torch device it computes on."""

    def __init__(self, job: Job, splits: Splits, device: Any) -> None:
        self.job, self.splits, self.device = job, splits, device
        self.store = FeatureStore(job.features_root)
        self.costs = ExtractionCosts(job, leads=rank() == 0)
        self._backbones = _Backbones(device)

    def fill(self, works: Sequence[Work]) -> None:
        """Runs every trunk that the works share on the samples that it never saw; all members together."""
        passes = self._passes(works)
        pass_costs = [self._cost_of(each) for each in passes]
        self.costs.announce(pass_costs)
        for each, pass_cost in zip(passes, pass_costs, strict=True):
            name_trunk(self.store, each.trunk)
            self.costs.begin(pass_cost)
            first, names = each.works[0], {part.split for part in each.parts}
            sets = {name: self.splits.read(name, first.variant, cache_bytes=0) for name in names}
            extract(
                partial(self.backbone, first),
                each.trunk,
                [ExtractionRequest(sets[part.split], part.view, part.taps) for part in each.parts],
                self.store,
                device=self.device,
                precision=first.variant.fit.precision,
                on_stored=self.costs.note,
            )
            self.costs.divide()
        # What the leader wrote is there before anyone goes on to read it.
        sum_over_ranks(torch.zeros(1, device=self.device))

    def backbone(self, work: Work) -> nn.Sequential:
        """The backbone that a work starts from, frozen and in eval mode on the device: one for all that train nothing in it."""
        return self._backbones.get(work)

    def forget_backbone(self) -> None:
        """Lets go of the backbone that works shared."""
        self._backbones = _Backbones(self.device)

    def loaders(self, work: Work, train_set: Samples, val_set: Samples) -> dict[Phase, Loaders]:
        """What each of the work's phases reads from the store."""
        fit = work.variant.fit
        found = {}
        for phase, taps in stored_taps(work.variant).items():
            trunks = self._trunks(work)
            train = open_views(self.store, trunks, taps, train_set.digests, self.device, shuffled=True)
            val = open_views(self.store, trunks[:1], taps, val_set.digests, self.device, shuffled=False)
            found[phase] = Loaders(
                FeatureLoader(train_set, train, taps, fit.batch_size, self.device, training=True, accumulate=fit.accumulate),
                FeatureLoader(val_set, val, taps, self._look(work, phase, val[0]), self.device),
            )
        return found

    def _look(self, work: Work, phase: Phase, features: Features) -> int:
        """How many samples validation reads at once: more than training where heads alone follow."""
        if phase.num_frozen_stages < work.variant.num_stages:
            return work.variant.fit.batch_size
        return max(work.variant.fit.batch_size, LOOK_BYTES * len(features) // max(1, features.num_bytes))

    def fuse(self, probes: Sequence[Work]) -> list[list[Work]]:
        """The probes in groups that read the same batches."""
        groups: dict[Any, list[Work]] = defaultdict(list)
        for work in probes:
            fit = work.variant.fit
            labels = tuple((head.target, head.task, head.ignore) for head in work.variant.heads)
            taps = tuple(stored_taps(work.variant).values())
            groups[tuple(self._trunks(work)), labels, taps, fit.batch_size, fit.seed, fit.accumulate].append(work)
        return list(groups.values())

    def _passes(self, works: Sequence[Work]) -> list[TrunkPass]:
        sharing: dict[Trunk, dict[str, Work]] = defaultdict(dict)
        parts: dict[Trunk, dict[tuple[int, str], frozenset[Tap]]] = defaultdict(lambda: defaultdict(frozenset))
        for work in works:
            taps = frozenset(tap for taps in stored_taps(work.variant).values() for tap in taps)
            for trunk, view, split in self._views(work) if taps else ():
                sharing[trunk][work.key] = work
                parts[trunk][view, split] |= taps
        return [
            TrunkPass(trunk, tuple(found.values()), tuple(SplitView(*place, taps) for place, taps in parts[trunk].items()))
            for trunk, found in sharing.items()
        ]

    def _views(self, work: Work) -> Iterator[tuple[Trunk, int, str]]:
        """What the work's trunks are run on: each view of the training images, and the plain one for validation."""
        trunks = self._trunks(work)
        yield from ((trunk, view, "train") for view, trunk in enumerate(trunks))
        yield trunks[0], 0, "val"

    def _trunks(self, work: Work) -> list[Trunk]:
        """The trunk of each view of the work's training images."""
        return [
            trunk_of(work.variant, work.weights.digest, self.device, varied=view > 0) for view in range(work.variant.fit.views)
        ]

    def _cost_of(self, each: TrunkPass) -> PassCost:
        num_samples, flops = map(sum, zip(*(self._work_of(each, part) for part in each.parts), strict=True))
        return PassCost(num_samples, flops, tuple(work.key for work in each.works))

    def _work_of(self, each: TrunkPass, part: SplitView) -> tuple[int, int]:
        """How many samples lack a tap, and their multiply-adds: each runs through the stages up to the deepest that it lacks."""
        variant, deeper, flops = each.works[0].variant, 0, 0
        size = preparation_of(variant.backbone).size_of(variant.fit)
        for stage in sorted({tap.stage for tap in part.taps}, reverse=True):
            lacking = self._count(each, part, [tap for tap in part.taps if tap.stage >= stage])
            cost = forward_multiply_adds(variant.backbone, size, stage + 1)
            deeper, flops = lacking, flops + (lacking - deeper) * cost
        return deeper, flops

    def _count(self, each: TrunkPass, part: SplitView, taps: Collection[Tap]) -> int:
        return count_missing(self.store, each.trunk, taps, self.splits.digests(part.split), part.view)


def name_trunk(store: FeatureStore, trunk: Trunk) -> None:
    """Leaves word of what a trunk is beside its features; a store that is read-only stays as it is."""
    told = {"backbone": trunk.backbone, "weights": trunk.weights, **trunk.preprocess.summary()}
    views = preparation_of(trunk.backbone).describe_view(trunk.view)
    store.describe(trunk.id, told | {"dtype": trunk.dtype, "views": views})


class _Backbones:
    """Backbones as they come, frozen and on `device`; the last one asked for is kept."""

    def __init__(self, device: Any) -> None:
        self._device, self._named, self._last = device, ("", "", -1), nn.Sequential()

    def get(self, work: Work) -> nn.Sequential:
        """The backbone that the work's variant starts from."""
        named = (work.variant.backbone, work.weights.digest, work.variant.fit.seed if work.weights.path is None else -1)
        if named != self._named:
            built = build_backbone(work.variant, work.weights.path).requires_grad_(False).eval()
            self._named, self._last = named, built.to(self._device).to(memory_format=torch.channels_last)
        return self._last
