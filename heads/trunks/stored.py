"""Training from the feature store: batches of stored features in place of samples."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from heads.data.inputs import Inputs
from heads.data.loading import Loader
from heads.data.samples import Samples
from heads.features import Features, FeatureStore, Key
from heads.phases import Tap
from heads.trunks.trunk import Trunk, inputs_of

# Where features are few they are held in memory, by the kind of device: on a GPU a batch then crosses no bus, on a CPU it takes
# no call a sample. Above that, reading them by position takes no memory.
MAX_HELD_BYTES = {"cpu": 32 * 2**20, "cuda": 2 * 2**30}


class FeatureLoader(Loader):
    """Features of a dataset's samples, epoch by epoch of another of the `views` that were stored, in the order of the samples."""

    def __init__(
        self,
        dataset: Samples,
        views: Sequence[Features],
        taps: Sequence[Tap],
        batch_size: int,
        device: torch.device,
        *,
        training: bool = False,
        accumulate: int = 1,
    ) -> None:
        super().__init__(dataset, batch_size, device, training=training, accumulate=accumulate)
        self._views, self._taps, self._view = tuple(views), tuple(taps), 0

    def set_epoch(self, epoch: int, seed: int) -> None:
        """Chooses the order and the view of an epoch."""
        super().set_epoch(epoch, seed)
        self._view = epoch % len(self._views)

    def _read(self) -> Iterator[tuple[Inputs, dict[str, Tensor]]]:
        features = self._views[self._view]
        for step in self.steps:
            found = Inputs(inputs_of(features[step.here], self._taps), self.dataset.size)
            # Maps in the layout that convolutions are fastest in, as they would come out of the stages before.
            yield found.to(self.device, channels_last=True), self.dataset.labels_in_view(step.here, self._view)


def open_views(
    store: FeatureStore,
    trunks: Sequence[Trunk],
    taps: Sequence[Tap],
    digests: Sequence[str],
    device: torch.device,
    *,
    shuffled: bool,
) -> tuple[Features, ...]:
    """The stored features of samples, a view for each of `trunks`, numbered from 0; raises FeatureError where any is missing.

    `shuffled` is whether they are read in other orders than this one.
    """
    names = [tap.name for tap in taps]
    views = []
    for number, trunk in enumerate(trunks):
        found = store.trunk(trunk.id).open([Key(digest, number) for digest in digests], names)
        # On a CPU those of validation, the fewer, are never held: train then has all of what memory may grow by.
        limit = MAX_HELD_BYTES.get(device.type, 0) if shuffled or device.type != "cpu" else 0
        held = found.num_bytes * len(trunks) <= limit
        views.append(found.in_memory(device) if held else found)
    return tuple(views)
