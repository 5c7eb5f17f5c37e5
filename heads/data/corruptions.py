"""Eight corruptions of images in three strengths, the same for an image on every machine and for every model.

After Hendrycks & Dietterich, "Benchmarking Neural Network Robustness to Common Corruptions and Perturbations", ICLR 2019: the
parameters are those of its severities 1, 3 and 5, and lengths are brought from its 224 px to the image's shorter side.
"""

from __future__ import annotations

import hashlib
import io
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from PIL import Image

FULL_SIDE_PX = 224
STRENGTHS = (1, 2, 3)

# (H, W, 3), from 0 to 1.
Pixels = NDArray[Any]
Corruption = Callable[[Pixels, int, np.random.Generator], Pixels]


def corrupt(image: Image.Image, name: str, strength: int, digest: str) -> Image.Image:
    """An RGB image after a corruption of CORRUPTIONS in a strength from 1 to 3; chance depends on digest, name and strength."""
    seed = int.from_bytes(hashlib.sha256(f"{digest} {name} {strength}".encode()).digest()[:8], "big")
    pixels = np.asarray(image.convert("RGB"), dtype=np.float32) / 255
    corrupted = CORRUPTIONS[name](pixels, strength - 1, np.random.default_rng(seed))
    return Image.fromarray(np.round(np.clip(corrupted, 0, 1) * 255).astype(np.uint8))


def _gaussian_noise(pixels: Pixels, strength: int, random: np.random.Generator) -> Pixels:
    return pixels + random.normal(0, (0.08, 0.18, 0.38)[strength], pixels.shape)


def _shot_noise(pixels: Pixels, strength: int, random: np.random.Generator) -> Pixels:
    photons = (60, 12, 3)[strength]
    return random.poisson(pixels * photons) / photons


def _impulse_noise(pixels: Pixels, strength: int, random: np.random.Generator) -> Pixels:
    hit = random.random(pixels.shape) < (0.03, 0.09, 0.27)[strength]
    return np.where(hit, random.integers(0, 2, pixels.shape), pixels)


def _defocus_blur(pixels: Pixels, strength: int, _: np.random.Generator) -> Pixels:
    radius = max(1.0, (3, 6, 10)[strength] * _scale(pixels))
    return convolve(pixels, disk(radius))


def _motion_blur(pixels: Pixels, strength: int, random: np.random.Generator) -> Pixels:
    length, spread = ((10, 3), (15, 8), (20, 15))[strength]
    return convolve(pixels, streak(max(1.0, length * _scale(pixels)), max(0.5, spread * _scale(pixels)), random.uniform(-45, 45)))


def _brightness(pixels: Pixels, strength: int, _: np.random.Generator) -> Pixels:
    # The value of HSV is raised, hue and saturation stay: all channels grow by one factor; black becomes grey.
    value = pixels.max(axis=2, keepdims=True)
    raised = np.minimum(value + (0.1, 0.3, 0.5)[strength], 1)
    brighter: Pixels = np.where(value > 0, pixels * raised / np.where(value > 0, value, 1), raised)
    return brighter


def _contrast(pixels: Pixels, strength: int, _: np.random.Generator) -> Pixels:
    mean = pixels.mean(axis=(0, 1), keepdims=True)
    flatter: Pixels = (pixels - mean) * (0.4, 0.2, 0.05)[strength] + mean
    return flatter


def _jpeg(pixels: Pixels, strength: int, _: np.random.Generator) -> Pixels:
    file = io.BytesIO()
    Image.fromarray(np.round(pixels * 255).astype(np.uint8)).save(file, "JPEG", quality=(25, 15, 7)[strength])
    return np.asarray(Image.open(file).convert("RGB"), dtype=np.float32) / 255


CORRUPTIONS: Mapping[str, Corruption] = {
    "gaussian_noise": _gaussian_noise,
    "shot_noise": _shot_noise,
    "impulse_noise": _impulse_noise,
    "defocus_blur": _defocus_blur,
    "motion_blur": _motion_blur,
    "brightness": _brightness,
    "contrast": _contrast,
    "jpeg": _jpeg,
}


def _scale(pixels: Pixels) -> float:
    return float(min(pixels.shape[:2])) / FULL_SIDE_PX


def disk(radius: float) -> Pixels:
    """The kernel of a lens out of focus: a disk of this radius in px, its rim by the share of a pixel; its sum is 1."""
    reach = int(np.ceil(radius))
    y, x = np.mgrid[-reach : reach + 1, -reach : reach + 1]
    kernel: Pixels = np.clip(radius + 0.5 - np.hypot(x, y), 0, 1).astype(np.float32)
    kernel /= kernel.sum()
    return kernel


def streak(length: float, spread: float, angle: float) -> Pixels:
    """The kernel of a camera that moves: half a Gaussian of `spread` px along a line of `length` px at `angle` degrees."""
    reach = int(np.ceil(length))
    kernel: Pixels = np.zeros((2 * reach + 1, 2 * reach + 1), dtype=np.float32)
    for at in np.arange(0, length + 0.25, 0.25):
        x, y = at * np.cos(np.radians(angle)), at * np.sin(np.radians(angle))
        kernel[reach + round(y), reach + round(x)] += np.exp(-(at**2) / (2 * spread**2))
    kernel /= kernel.sum()
    return kernel


def convolve(pixels: Pixels, kernel: Pixels) -> Pixels:
    """Every channel correlated with a kernel of odd sides; the image's edge is repeated beyond it."""
    reach = kernel.shape[0] // 2
    channels = torch.from_numpy(np.ascontiguousarray(pixels.transpose(2, 0, 1)))[:, None]
    padded = F.pad(channels, (reach,) * 4, mode="replicate")
    blurred = F.conv2d(padded, torch.from_numpy(kernel)[None, None])
    told: Pixels = blurred[:, 0].permute(1, 2, 0).numpy()
    return told
