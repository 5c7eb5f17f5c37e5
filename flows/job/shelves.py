"""The feature store as a job's works use it: filled once for all of them, then read in place of images."""

from __future__ import annotations

import os
import platform
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from time import monotonic
from typing import Any

import torch
from torch import nn

from flows.job import keeping
from flows.job.datasets import Images
from flows.job.order import Job, num_stored, write_json
from flows.records import Work
from heads import loop
from heads.dataset import ImageDataset
from heads.errors import TrainingDiverged
from heads.extraction import count_missing, extract
from heads.features import FeatureStore
from heads.loop import Loaders, Member
from heads.model import Model, build_backbone, build_model
from heads.phases import Phase, compile_policy
from heads.spec import Variant
from heads.stored import FeatureLoader, open_views
from heads.trunks import Tap, Trunk, stored_taps, trunk_of

PROGRESS_SECONDS = 2.0


@dataclass(frozen=True)
class Pass:
    """One view of a split's images through one trunk: the taps that works need of it, and one of these works."""

    trunk: Trunk
    view: int
    split: str
    work: Work = field(compare=False)
    taps: frozenset[Tap] = field(compare=False)


def is_probe(variant: Variant) -> bool:
    """Whether a variant trains heads alone, on stored features from the first epoch to the last."""
    frozen = all(phase.num_frozen_stages == variant.num_stages for phase in compile_policy(variant))
    return frozen and len(stored_taps(variant)) == len(compile_policy(variant))


class Shelves:
    """The features that a member of the worker group stores and reads; `device` is the torch device it computes on."""

    def __init__(self, job: Job, images: Images, device: Any) -> None:
        self.job, self.images, self.device = job, images, device
        self.store = FeatureStore(job.storage / "features")
        self._num_stored = 0

    def fill(self, works: Sequence[Work]) -> None:
        """Runs every trunk that the works share on the samples that it never saw; all members together."""
        passes = self._passes(works)
        lacking = [each for each in passes if self._count_missing(each)]
        self._announce(lacking)
        backbones = _Backbones(self.device)
        for each in passes:
            extract(
                partial(backbones.get, each.work),
                each.trunk,
                each.taps,
                self.images.read(each.split, each.work.variant, cache_bytes=0),
                each.view,
                self.store,
                device=self.device,
                precision=each.work.variant.fit.precision,
                on_stored=self._note,
            )

    def loaders(self, work: Work, train_set: ImageDataset, val_set: ImageDataset) -> dict[Phase, Loaders]:
        """What each of the work's phases reads from the store."""
        fit = work.variant.fit
        found = {}
        for phase, taps in stored_taps(work.variant).items():
            trunks = self._trunks(work)
            train = open_views(self.store, trunks, taps, train_set.digests, self.device)
            val = open_views(self.store, trunks[:1], taps, val_set.digests, self.device)
            found[phase] = Loaders(
                FeatureLoader(train_set, train, taps, fit.batch_size, self.device, training=True, accumulate=fit.accumulate),
                FeatureLoader(val_set, val, taps, fit.batch_size, self.device),
            )
        return found

    def fuse(self, probes: Sequence[Work]) -> list[list[Work]]:
        """The probes in groups that read the same batches."""
        groups: dict[Any, list[Work]] = defaultdict(list)
        for work in probes:
            fit = work.variant.fit
            labels = tuple((head.target, head.task, head.ignore) for head in work.variant.heads)
            taps = tuple(stored_taps(work.variant).values())
            groups[tuple(self._trunks(work)), labels, taps, fit.batch_size, fit.seed, fit.accumulate].append(work)
        return list(groups.values())

    def train_together(self, group: Sequence[Work]) -> None:
        """Trains works of one group in this process, each kept as it ends."""
        first = group[0]
        sets = [self.images.open(split, first.variant) for split in ("train", "val")]
        (loaders,) = self.loaders(first, *sets).values()
        backbone = build_backbone(first.variant, first.weights.path)
        loop.train_together([self._member(work, backbone) for work in group], loaders)

    def _member(self, work: Work, backbone: Any) -> Member:
        model = build_model(work.variant, self.job.classes, work.weights.path, backbone=backbone)

        told: list[loop.Epoch] = []
        written_at = 0.0

        def on_epoch(epoch: loop.Epoch) -> None:
            nonlocal written_at
            told.append(epoch)
            # An epoch of features takes milliseconds, and a file that is surely on the disk as many.
            if monotonic() - written_at >= PROGRESS_SECONDS:
                keeping.write_progress(self.job, work, told)
                written_at = monotonic()

        def on_end(outcome: loop.Outcome | TrainingDiverged) -> None:
            self._end(work, model, outcome)

        return Member(model, work.variant, on_epoch, on_end)

    def _end(self, work: Work, model: Model, outcome: loop.Outcome | TrainingDiverged) -> None:
        if isinstance(outcome, TrainingDiverged):
            keeping.give_up(self.job, work, outcome)
        else:
            keeping.keep(self.job, work, model, outcome)

    def _passes(self, works: Sequence[Work]) -> list[Pass]:
        found: dict[Pass, Pass] = {}
        for work in works:
            taps = frozenset(tap for taps in stored_taps(work.variant).values() for tap in taps)
            for each in self._passes_of(work, taps) if taps else ():
                known = found.get(each)
                found[each] = each if known is None else Pass(each.trunk, each.view, each.split, known.work, known.taps | taps)
        return list(found.values())

    def _passes_of(self, work: Work, taps: frozenset[Tap]) -> Iterator[Pass]:
        trunks = self._trunks(work)
        yield from (Pass(trunk, view, "train", work, taps) for view, trunk in enumerate(trunks))
        yield Pass(trunks[0], 0, "val", work, taps)

    def _trunks(self, work: Work) -> list[Trunk]:
        """The trunk of each view of the work's training images."""
        return [
            trunk_of(work.variant, work.weights.digest, self.device, varied=view > 0) for view in range(work.variant.fit.views)
        ]

    def _count_missing(self, each: Pass) -> int:
        digests = self.images.digests(each.split)
        return count_missing(self.store, each.trunk, each.taps, digests, each.view)

    def _announce(self, lacking: Sequence[Pass]) -> None:
        """Leaves word of how many samples are to be stored, for who shows progress."""
        total = num_stored(self.job)[0] + sum(map(self._count_missing, lacking))
        write_json(self.job.folder / "features.json", {"total": total})

    def _note(self, num_samples: int) -> None:
        self._num_stored += num_samples
        name = f"{platform.node()}-{os.getpid()}.json"
        write_json(self.job.folder / "features" / name, {"num_samples": self._num_stored})


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
