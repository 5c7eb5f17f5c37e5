"""Training from the feature store: batches of stored features in place of samples."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor

from heads.data.inputs import Inputs
from heads.data.loading import Loader
from heads.data.samples import Samples
from heads.features import Features, FeatureStore, Key
from heads.features.tokens import TokenFeatures, open_tokens
from heads.phases import Tap
from heads.trunks.trunk import Trunk, inputs_of, is_by_token, num_rows

# Features of up to so many bytes are held in memory, by the kind of device: on a GPU a batch then crosses no bus, on a CPU it
# takes no call a sample. More are read by position, which takes no memory.
MAX_HELD_BYTES = {"cpu": 32 * 2**20, "cuda": 2 * 2**30}


Stored = Features | TokenFeatures


class FeatureLoader(Loader):
    """Batches of a dataset's stored features, in each epoch from the next of `views`, which are in the dataset's order."""

    def __init__(
        self,
        dataset: Samples,
        views: Sequence[Stored],
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
            words = self.dataset.words(step.here.tolist())
            inputs = Inputs(inputs_of(features[step.here], self._taps), self.dataset.size, words)
            # Maps in the layout that convolutions are fastest in, as they would come out of the stages before.
            yield inputs.to(self.device, channels_last=True), self.dataset.labels_in_view(step.here, self._view)


def open_views(
    store: FeatureStore,
    trunks: Sequence[Trunk],
    taps: Sequence[Tap],
    digests: Sequence[str],
    device: torch.device,
    *,
    shuffled: bool,
    length: Callable[[int], int] | None = None,
) -> tuple[Stored, ...]:
    """The stored features of samples, a view for each of `trunks`, numbered from 0. Raises FeatureError if any are missing.

    `shuffled` is whether they will be read in other orders than that of `digests`. `length` gives the length of a sample by its
    place, where they are stored token by token.
    """
    names = [tap.name for tap in taps]
    views: list[Stored] = []
    for number, trunk in enumerate(trunks):
        keys, of_trunk = [Key(digest, number) for digest in digests], store.trunk(trunk.id)
        features: Stored
        if is_by_token(trunk.backbone, taps):
            assert length, "a text's tokens are found by its length"
            lengths = [num_rows(trunk.backbone, taps[0], length(place)) for place in range(len(keys))]
            features = open_tokens(of_trunk, keys, lengths, names)
        else:
            features = of_trunk.open(keys, names)
        # On a CPU validation's features, the fewer, are never held: all the memory is for those of train.
        limit = MAX_HELD_BYTES.get(device.type, 0) if shuffled or device.type != "cpu" else 0
        held = features.num_bytes * len(trunks) <= limit
        views.append(features.in_memory(device) if held else features)
    return tuple(views)
