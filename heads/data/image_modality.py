"""Images as a modality: the contract of `heads.data.modalities`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from heads.data.image_dataset import ImageDataset
from heads.data.image_transforms import ImagePreprocess, preprocess_for
from heads.data.masks import Masks
from heads.data.samples import DEFAULT_CACHE_BYTES
from heads.data.tags import Tags
from heads.data.wordpiece import Vocabulary
from heads.spec import Augment, Fit, Variant

LIBRARIES = ("torch", "torchvision", "pillow")
# Augmentation, and whether images are also seen mirrored.
PLAIN_VIEW: tuple[Augment, bool] = ("none", False)
# An image that is kept decoded takes 2 ms to become a network's input at 224 px. Decoding it takes 5 ms and more, and is left
# out, since epochs after the first find the images of a small data set decoded.
# Decoding a photograph of half a megapixel.
DECODE_SECONDS = 5e-3
PREPARE_SECONDS_PER_PIXEL = 2e-3 / 224**2


def varied_view(fit: Fit) -> tuple[str | bool, ...]:
    """The fit's augmentation, and whether it mirrors."""
    return fit.augment, fit.flip


def describe_view(view: tuple[str | bool, ...]) -> str:
    """The augmentation's name, with `flip` if it mirrors; `plain` for neither."""
    augment, flip = view
    return "plain" if view == PLAIN_VIEW else f"{augment}{', flip' if flip else ''}"


def preprocess_of(variant: Variant) -> ImagePreprocess:
    """The preprocessing of the backbone's published weights at the fit's image size; whole images if a mask is predicted."""
    return preprocess_for(variant.backbone, variant.fit.image_size_px, whole=variant.sees_whole)


def read_preprocess(value: Mapping[str, Any]) -> ImagePreprocess:
    """The preprocessing that `ImagePreprocess.to_json` wrote."""
    return ImagePreprocess.from_json(value)


def prepared_on(device: torch.device) -> str:
    """`cuda` on a GPU, where one value in ten thousand is rounded otherwise than on the CPU."""
    return device.type if device.type == "cuda" else ""


def size_of(fit: Fit) -> int:
    """The side of the square that the network sees, in pixels."""
    return fit.image_size_px


def prepare_seconds(size: int) -> float:
    """Seconds from a decoded image to a network's input of this side in pixels."""
    return size**2 * PREPARE_SECONDS_PER_PIXEL


def read_seconds(size: int) -> float:
    """Seconds from an image's file to a network's input of this side in pixels."""
    return DECODE_SECONDS + prepare_seconds(size)


def kept_seconds(size: int) -> float:
    """Seconds from an image that is kept decoded to a network's input."""
    return prepare_seconds(size)


def kept_bytes(size: int) -> int:
    """The bytes of an image that is kept decoded."""
    return 3 * size**2


def vocabulary_of(variant: Variant, weights: Path | None, train: Sequence[Path | bytes]) -> None:
    """Nothing: images hold no words."""


def open_samples(
    variant: Variant,
    files: Sequence[Path | bytes],
    labels: Mapping[str, Sequence[int] | Tensor],
    masks: Mapping[str, Masks] | None = None,
    digests: Sequence[str] = (),
    *,
    varied: bool,
    cache_bytes: int = DEFAULT_CACHE_BYTES,
    vocabulary: Vocabulary | None = None,
    tags: Mapping[str, Tags] | None = None,
) -> ImageDataset:
    """The images as the variant sees them: augmented and mirrored as its fit says if `varied`, else plain."""
    assert not tags
    augment, flip = (variant.fit.augment, variant.fit.flip) if varied else PLAIN_VIEW
    preprocess, seed = preprocess_of(variant), variant.fit.seed
    return ImageDataset(files, labels, preprocess, augment, seed, cache_bytes, flip=flip, masks=masks, digests=digests)
