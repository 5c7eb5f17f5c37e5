"""How well a bundle reads images that are corrupted or attacked, sample by sample."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor

from heads.bundle import Bundle
from heads.bundle.attacks import fgsm, pgd
from heads.catalogue import TASK_FACTS
from heads.data.corruptions import CORRUPTIONS, STRENGTHS, corrupt
from heads.data.decoding import decode
from heads.data.image_preprocess import ImagePreprocess, normalise
from heads.data.image_transforms import crop_centre, resize
from heads.data.masks import MaskFile
from heads.data.pixels import pixels_of
from heads.errors import HeadsError
from heads.spec import Head
from heads.tasks.table import TASKS
from heads.tasks.temperature import tempered

BATCH_SIZE = 32
# Before it is corrupted an image is brought to this shorter side, so that all models see the same, and no noise is averaged away.
SHORTER_SIDE_PX = 256
EPS = {"1/255": 1 / 255, "4/255": 4 / 255}
NUM_STEPS, STEPS_ACROSS = 10, 2.5
# An attack that may change every pixel to anything: if it fails, the model hides its gradients, and other attacks tell nothing
# (Athalye, Carlini & Wagner, "Obfuscated Gradients Give a False Sense of Security", ICML 2018).
UNBOUNDED, UNBOUNDED_STEPS = "pgd unbounded", 20
EVEN = 0.5


@dataclass(frozen=True)
class Picture:
    """An image's file, or its bytes, and its digest, and its cell: a class, or labels as `a|b`."""

    file: Path | bytes
    digest: str
    truth: str


@dataclass
class Readings:
    """Whether each sample is read rightly, 1 or 0, by the name of what was done to it.

    A label set is read rightly if all of its labels are told, and no others: an attack that makes one of them as wrong as it
    can may leave the rest. `losses` are those of the samples at the
    `start` and the `end` of the stronger PGD. Attacks are of the first samples only.
    """

    right: dict[str, list[float]] = field(default_factory=dict)
    losses: dict[str, list[float]] = field(default_factory=dict)

    def add(self, name: str, right: Sequence[float]) -> None:
        """Add the readings of further samples."""
        self.right.setdefault(name, []).extend(right)


def measure(
    bundle: Bundle,
    target: str,
    pictures: Sequence[Picture],
    *,
    num_attacked: int,
    num_unbounded: int,
    on_done: Callable[[int], None] | None = None,
) -> Readings:
    """The readings of pictures as they are, in every corruption and strength, and under attack (of the first of them).

    `on_done` is called with the number of pictures that are done. Raises HeadsError if the target is one of masks, of which an
    attack has no single loss.
    """
    head = next(head for head in bundle.variant.heads if head.target == target)
    if bundle.variant.modality != "image":
        raise HeadsError(f"robustness is of images, and {bundle.variant.backbone} reads {bundle.variant.modality}s")
    if TASK_FACTS[head.task].tells == "pixels":
        raise HeadsError(f"robustness of {target!r} is not defined: it is {head.task}; allowed: classes and label sets")
    reader, readings = _Reader(bundle, head), Readings()
    for start in range(0, len(pictures), BATCH_SIZE):
        batch = pictures[start : start + BATCH_SIZE]
        images, truths = [_reduced(decode(picture.file)) for picture in batch], reader.labels(batch)
        readings.add("clean", reader.right(reader.inputs(images), truths))
        for name in CORRUPTIONS:
            for strength in STRENGTHS:
                corrupted = [corrupt(image, name, strength, p.digest) for image, p in zip(images, batch, strict=True)]
                readings.add(f"{name} {strength}", reader.right(reader.inputs(corrupted), truths))
        if (left := num_attacked - start) > 0:
            _attack(reader, readings, batch[:left], images[:left], truths[:left], num_unbounded - start)
        if on_done:
            on_done(start + len(batch))
    return readings


def _attack(
    reader: _Reader,
    readings: Readings,
    batch: Sequence[Picture],
    images: Sequence[Image.Image],
    truths: Tensor,
    num_unbounded: int,
) -> None:
    inputs, random = reader.inputs(images), _starts(batch, reader.side_px).to(reader.device)

    def losses(changed: Tensor) -> Tensor:
        return reader.losses(changed, truths)

    changed = inputs
    for name, eps in EPS.items():
        readings.add(f"fgsm {name}", reader.right(fgsm(losses, inputs, eps), truths))
        changed = pgd(losses, inputs, eps, num_steps=NUM_STEPS, step=STEPS_ACROSS * eps / NUM_STEPS, start=random)
        readings.add(f"pgd {name}", reader.right(changed, truths))
    for place, seen in (("start", inputs), ("end", changed)):
        with torch.no_grad():
            readings.losses.setdefault(place, []).extend(losses(seen).tolist())
    if num_unbounded > 0:
        few, known = inputs[:num_unbounded], truths[:num_unbounded]
        anything = pgd(
            lambda x: reader.losses(x, known), few, 1.0, num_steps=UNBOUNDED_STEPS, step=STEPS_ACROSS / UNBOUNDED_STEPS
        )
        readings.add(UNBOUNDED, reader.right(anything, known))


class _Reader:
    """One head of a bundle as a function of pixels from 0 to 1."""

    def __init__(self, bundle: Bundle, head: Head) -> None:
        self._bundle, self._head, self._names = bundle, head, bundle.classes[head.target]
        bundle.model.eval().requires_grad_(False)
        self.device = next(bundle.model.parameters()).device
        assert isinstance(bundle.preprocess, ImagePreprocess)
        self.preprocess = bundle.preprocess
        self.side_px = self.preprocess.image_size_px

    def inputs(self, images: Sequence[Image.Image]) -> Tensor:
        """Images as the network takes them, before they are normalised: (N, 3, S, S), from 0 to 1."""
        preprocess = self.preprocess
        squares = [crop_centre(resize(pixels_of(image), preprocess), preprocess) for image in images]
        return (torch.cat(squares) / 255).to(self.device)

    def labels(self, batch: Sequence[Picture]) -> Tensor:
        """The labels of pictures as the head's loss takes them; a class that the bundle does not know is missing."""
        encoded = TASKS[self._head.task].encode([picture.truth for picture in batch], self._names, _no_mask)
        assert isinstance(encoded, Tensor)
        return encoded.to(self.device)

    def losses(self, inputs: Tensor, truths: Tensor) -> Tensor:
        """The plain loss of each input (N), with gradients."""
        return TASKS[self._head.task].PLAIN.losses(self._logits(inputs), truths)

    @torch.no_grad()
    def right(self, inputs: Tensor, truths: Tensor) -> list[float]:
        """Whether each input is read rightly, as in `Readings`."""
        logits, target = self._logits(inputs), self._head.target
        if TASK_FACTS[self._head.task].tells == "class":
            return (logits.argmax(dim=1) == truths).float().tolist()
        chances = TASKS[self._head.task].activate(tempered(logits, self._bundle.temperatures.get(target)))
        tuned = self._bundle.thresholds.get(target) or [EVEN] * len(self._names)
        told = chances >= torch.tensor(tuned, device=self.device)
        return (told == (truths > 0)).all(dim=1).float().tolist()

    def _logits(self, inputs: Tensor) -> Tensor:
        seen = normalise(inputs * 255, self.preprocess).contiguous(memory_format=torch.channels_last)
        logits: Tensor = self._bundle.model(seen)[self._head.target]
        return logits.float()


def _starts(batch: Sequence[Picture], side_px: int) -> Tensor:
    """Where PGD starts within its bound: from -1 to 1, the same for a digest every time (N, 3, S, S)."""
    seeds = [int.from_bytes(hashlib.sha256(picture.digest.encode()).digest()[:7], "big") for picture in batch]
    drawn = [torch.rand((3, side_px, side_px), generator=torch.Generator().manual_seed(seed)) for seed in seeds]
    return 2 * torch.stack(drawn) - 1


def _reduced(image: Image.Image) -> Image.Image:
    shorter = min(image.size)
    if shorter <= SHORTER_SIDE_PX:
        return image
    width, height = (max(1, round(side * SHORTER_SIDE_PX / shorter)) for side in image.size)
    return image.resize((width, height), Image.Resampling.BILINEAR)


def _no_mask(cell: str) -> MaskFile:
    raise AssertionError(f"{cell} is no mask")
