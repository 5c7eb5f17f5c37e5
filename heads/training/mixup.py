"""Mixup and CutMix: training images mixed with others of their batch, and labels that count by their share."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from heads.data.inputs import Inputs
from heads.distributed import rank
from heads.spec import Fit

# Keeps the draws apart from those of the dataset's augmentation, whose seeds numpy would fill up with zeros.
STREAM = 1


@dataclass(frozen=True)
class Mix:
    """How the images of one step on this rank are mixed: image i keeps `share` of itself, the rest is image `partners[i]`.

    `box` is the part of every image (rows, columns) that the partner fills; without one the two are blended.
    """

    partners: Tensor
    share: float
    box: tuple[slice, slice] | None = None

    def inputs(self, inputs: Inputs) -> Inputs:
        """The inputs with their images mixed."""
        assert isinstance(inputs.features, Tensor)
        return inputs._replace(features=self.images(inputs.features))

    def images(self, images: Tensor) -> Tensor:
        """The images (N, C, H, W) mixed, as a new tensor."""
        if self.box is None:
            return torch.lerp(images, images[self.partners], 1 - self.share)
        return self._patch(images)

    def patches(self, labels: Tensor) -> bool:
        """Whether these labels are mixed pixel by pixel, as the images are: masks (N, H, W) by CutMix."""
        return self.box is not None and labels.ndim == 3

    def patched(self, labels: Tensor) -> Tensor:
        """The labels, patched if `patches` says so."""
        return self._patch(labels) if self.patches(labels) else labels

    def _patch(self, pixels: Tensor) -> Tensor:
        assert self.box is not None
        mixed = pixels.clone()
        mixed[..., self.box[0], self.box[1]] = pixels[self.partners][..., self.box[0], self.box[1]]
        return mixed


def draw_mix(fit: Fit, images: Tensor | Mapping[int, Tensor], *, epoch: int, step: int) -> Mix | None:
    """The mix of a step, by mixup or CutMix (one of them at even odds if both are asked for), or None if neither is.

    It depends on seed, epoch, step and rank alone. Mixup: Zhang et al., "mixup: Beyond Empirical Risk Minimization", ICLR
    2018. CutMix: Yun et al., "CutMix: Regularization Strategy to Train Strong Classifiers", ICCV 2019. The share is drawn
    from Beta(alpha, alpha); CutMix's is what its box, cut off at the border, leaves.
    """
    if not (fit.mixup or fit.cutmix):
        return None
    assert isinstance(images, Tensor), "features are stored of images that are not mixed"
    random = np.random.default_rng((fit.seed, epoch, step, rank(), STREAM))
    partners = torch.from_numpy(random.permutation(len(images))).to(images.device)
    if fit.mixup and (not fit.cutmix or random.random() < 0.5):
        return Mix(partners, float(random.beta(fit.mixup, fit.mixup)))
    height, width = images.shape[-2:]
    side = float(np.sqrt(1 - random.beta(fit.cutmix, fit.cutmix)))
    rows, columns = (_span(random, length, side) for length in (height, width))
    filled = (rows.stop - rows.start) * (columns.stop - columns.start)
    return Mix(partners, 1 - filled / (height * width), (rows, columns))


def _span(random: np.random.Generator, length: int, side: float) -> slice:
    half, centre = int(length * side) // 2, int(random.integers(length))
    return slice(max(0, centre - half), min(length, centre + half))
