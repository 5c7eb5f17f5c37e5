"""Texts on their way to a device: batches with the places of their words, where tags are asked for."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from torch import Tensor
from torch.utils.data import default_collate

from heads.data.feeds import SampleFeed
from heads.data.inputs import Inputs
from heads.data.tags import pad_tags

if TYPE_CHECKING:
    from heads.data.text_dataset import TextDataset


class TextFeed(SampleFeed):
    """Texts that are prepared where they are read; tags of a batch are filled up to its longest text."""

    def __init__(self, texts: TextDataset) -> None:
        super().__init__(texts)
        self._texts = texts

    def collate(self, items: Sequence[tuple[Tensor, dict[str, Tensor], int]]) -> tuple[Inputs, dict[str, Tensor]]:
        """The inputs and the labels of texts; without labels, as in views, they may be of other data sets than the feed's."""
        samples, labels, indices = zip(*items, strict=True)
        tags = [target for target in self._texts.tags if target in labels[0]]
        plain = [{target: label for target, label in of_one.items() if target not in tags} for of_one in labels]
        inputs = self._texts.collate(samples)
        if tags:
            inputs = inputs._replace(words=self._texts.words(indices))
        return inputs, default_collate(plain) | {target: pad_tags([of_one[target] for of_one in labels]) for target in tags}
