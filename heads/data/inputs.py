"""A model's inputs: samples as tensors, or stored features of them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import torch
from torch import Tensor


class Inputs(NamedTuple):
    """N samples, or their features by the number of the stage that gave them; `size` is the height and width of images.

    Images are (N, 3, S, S), float and normalised. Samples that are no images have no size. `words` (N, W) are the places of
    texts' words among their features, if tags of them are asked for: 0, the whole text's, for a word that is not read, and for
    padding.
    """

    features: Tensor | Mapping[int, Tensor]
    size: tuple[int, int] | None = None
    words: Tensor | None = None

    @property
    def num_samples(self) -> int:
        """N."""
        return len(self.features if isinstance(self.features, Tensor) else next(iter(self.features.values())))

    def to(self, device: torch.device, *, channels_last: bool) -> Inputs:
        """The same inputs on a device, images and maps laid out channels last if that is asked for."""
        words = None if self.words is None else self.words.to(device, non_blocking=True)
        if isinstance(self.features, Tensor):
            return self._replace(features=_placed(self.features, device, channels_last), words=words)
        placed = {stage: _placed(rows, device, channels_last) for stage, rows in self.features.items()}
        return self._replace(features=placed, words=words)


def of_images(images: Tensor) -> Inputs:
    """Images (N, 3, S, S) as a model's inputs."""
    return Inputs(images, (images.shape[-2], images.shape[-1]))


def _placed(rows: Tensor, device: torch.device, channels_last: bool) -> Tensor:
    memory_format = torch.channels_last if channels_last and rows.ndim == 4 else torch.contiguous_format
    return rows.to(device, non_blocking=True, memory_format=memory_format)
