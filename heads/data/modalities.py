"""The modalities behind one contract: how a variant's samples become its network's inputs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor

from heads.bert_size import modality_of
from heads.catalogue import Modality
from heads.data import image_modality, text_modality
from heads.data.masks import Masks
from heads.data.samples import Preprocess, Samples
from heads.data.tags import Tags
from heads.data.wordpiece import Vocabulary
from heads.spec import Fit, Variant


class Preparation(Protocol):
    """A modality's samples, from files to a data set."""

    @property
    def LIBRARIES(self) -> tuple[str, ...]:  # noqa: N802
        """The packages that read and compute features, which may differ with another version of one."""
        ...

    @property
    def PLAIN_VIEW(self) -> tuple[str | bool, ...]:  # noqa: N802
        """The value of `varied_view` if nothing varies."""
        ...

    def varied_view(self, fit: Fit) -> tuple[str | bool, ...]:
        """The settings that vary all views of a training sample but the plain one."""
        ...

    def describe_view(self, view: tuple[str | bool, ...]) -> str:
        """A view's settings in a few words."""
        ...

    def preprocess_of(self, variant: Variant) -> Preprocess:
        """How the variant's samples are prepared."""
        ...

    def read_preprocess(self, value: Mapping[str, Any]) -> Preprocess:
        """What `to_json` wrote, read back. Raises KeyError, TypeError, OverflowError or ValueError on anything else."""
        ...

    def prepared_on(self, device: torch.device) -> str:
        """The kind of device that samples for this one are prepared on, if that changes a value of theirs; empty for the CPU."""
        ...

    def size_of(self, fit: Fit) -> int:
        """The size of samples as the network sees them, on which costs depend: an image's side in pixels."""
        ...

    def prepare_seconds(self, size: int) -> float:
        """Seconds that a sample of this size takes from memory to a network's input, stated rather than measured."""
        ...

    def read_seconds(self, size: int) -> float:
        """Seconds that a sample of this size takes from its file to a network's input, stated likewise."""
        ...

    def kept_seconds(self, size: int) -> float:
        """Seconds that it takes once it is kept in memory, stated likewise."""
        ...

    def kept_bytes(self, size: int) -> int:
        """The bytes that it takes there, of a cache that holds so many; 0 if all samples are kept, however many they are."""
        ...

    def vocabulary_of(self, variant: Variant, weights: Path | None, train: Sequence[Path | bytes]) -> Vocabulary | None:
        """The words that the variant tells apart, of its weights or of its training samples; None if samples hold no words."""
        ...

    def open_samples(
        self,
        variant: Variant,
        files: Sequence[Path | bytes],
        labels: Mapping[str, Sequence[int] | Tensor],
        masks: Mapping[str, Masks] | None = None,
        digests: Sequence[str] = (),
        *,
        varied: bool,
        cache_bytes: int,
        vocabulary: Vocabulary | None = None,
        tags: Mapping[str, Tags] | None = None,
    ) -> Samples:
        """The files' samples as the variant sees them, varied from epoch to epoch if `varied`."""
        ...


MODALITIES: Mapping[Modality, Preparation] = {"image": image_modality, "text": text_modality}


def preparation_of(backbone: str) -> Preparation:
    """The preparation of the modality that a backbone reads."""
    return MODALITIES[modality_of(backbone)]


def preprocess_of(variant: Variant) -> Preprocess:
    """How a variant's samples are prepared, in training, extraction and prediction alike."""
    return preparation_of(variant.backbone).preprocess_of(variant)
