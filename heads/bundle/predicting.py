"""Bundles that predict: each by itself, or several by one pass through the backbone that they share."""

from __future__ import annotations

import hashlib
import warnings
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from heads.bundle.sample_inputs import READERS, Preparing, SampleInput, batches
from heads.catalogue import TASK_FACTS
from heads.data.samples import Preprocess
from heads.data.wordpiece import Vocabulary
from heads.errors import HeadsError
from heads.model.model import Model
from heads.spec import Head, Variant
from heads.tasks.answers import Answer, Extent
from heads.tasks.table import TASKS
from heads.tasks.temperature import tempered

BATCH_SIZE = 32


@dataclass(frozen=True, eq=False)
class Bundle:
    """A verified model with all it takes to predict; `facts` say where it comes from.

    `thresholds` are, by target of label sets, the probabilities from which on each label is predicted; `temperatures` are, by
    target, what its logits are divided by before they become probabilities, 1 if it is not there. `vocabulary` are the words
    that a model of texts knows.
    """

    model: Model = field(repr=False)
    variant: Variant
    classes: Mapping[str, tuple[str, ...]]
    preprocess: Preprocess
    facts: Mapping[str, Any]
    thresholds: Mapping[str, tuple[float, ...]] = field(default_factory=dict, repr=False)
    temperatures: Mapping[str, float] = field(default_factory=dict, repr=False)
    vocabulary: Vocabulary | None = None

    @property
    def heads(self) -> tuple[Head, ...]:
        """Its heads, one a target."""
        return self.variant.heads

    def predict(self, samples: Sequence[SampleInput], batch_size: int = BATCH_SIZE) -> list[dict[str, Answer]]:
        """For each sample, in order, an answer by target: a Prediction, Labels, a MaskPrediction of an image's own size, or
        a TagsPrediction.

        An image is a file's path, a file's bytes, a Pillow image, or an array of uint8 (H, W, 3) in RGB. A text is a string, the
        path of a file as a Path, or a file's bytes; a string that is a file's path is read as a text, with a warning. Raises
        ImageError or TextError, naming the sample, if one cannot be read; nothing is predicted then.
        """
        reader = READERS[self.variant.modality]
        if reader.is_one(samples):
            raise HeadsError(f"predict takes a list of {reader.PLURAL} and was given one {type(samples).__name__}; put it in [ ]")
        if batch_size < 1:
            raise HeadsError(f"batch_size is {batch_size}; it must be 1 or more")
        if doubt := reader.doubt_of(samples):
            warnings.warn(doubt, stacklevel=2)
        answers: dict[int, dict[str, Answer]] = {}
        for numbers, (told,) in predict_together([self], samples, batch_size):
            answers.update(zip(numbers, told, strict=True))
        return [answers[number] for number in range(len(answers))]

    def read(self, extents: Sequence[Extent], logits: Mapping[str, Tensor]) -> list[dict[str, Answer]]:
        """The answers for samples by their logits (N, ...) by target."""
        rows = [{target: outputs[row] for target, outputs in logits.items()} for row in range(len(extents))]
        return [self._read(extent, row) for extent, row in zip(extents, rows, strict=True)]

    def _read(self, extent: Extent, logits: Mapping[str, Tensor]) -> dict[str, Answer]:
        return {
            head.target: TASKS[head.task].answer(
                self.classes[head.target],
                tempered(logits[head.target], self.temperatures.get(head.target)),
                extent,
                self.thresholds.get(head.target),
            )
            for head in self.variant.heads
        }


def predict_together(
    bundles: Sequence[Bundle], samples: Iterable[SampleInput], batch_size: int = BATCH_SIZE
) -> Iterator[tuple[list[int], list[list[dict[str, Answer]]]]]:
    """The answers of bundles that share a backbone, which runs once a sample: batch by batch the numbers of its samples, and the
    answers of each bundle for these.

    Each answers as it does alone, on a CPU to the bit. Texts come by length; no more is kept of samples than a batch's features.
    Raises as `Bundle.predict` does.
    """
    first, models = bundles[0], [bundle.model.eval() for bundle in bundles]
    device, reader = next(models[0].parameters()).device, READERS[first.variant.modality]
    finds_words = any(TASK_FACTS[head.task].tells == "tags" for bundle in bundles for head in bundle.heads)
    preparing = Preparing(first.preprocess, first.vocabulary, finds_words)
    tapped = {stage for model in models for taps in model.taps.values() for stage in taps}
    for numbers, opened in batches(reader, samples, preparing, batch_size):
        extents = [reader.extent_of(sample) for sample in opened]
        with torch.inference_mode():
            images_or_ids, size, words = reader.collate(opened, preparing, device)
            features = models[0].forward_backbone(images_or_ids, tapped)
            logits = [model.forward_heads(features, size, words) for model in models]
            told = [bundle.read(extents, rows) for bundle, rows in zip(bundles, logits, strict=True)]
        yield numbers, told


def share_backbones(bundles: Sequence[Bundle]) -> list[list[Bundle]]:
    """The bundles, grouped by what samples become on their way to the heads; those of a group then hold one backbone.

    A group's backbones are equal to the bit in all weights and statistics, by the digest of these, and read samples alike: a
    frozen backbone is that of its first weights in every bundle, and one that was trained is no other's.
    """
    groups: dict[Any, list[Bundle]] = defaultdict(list)
    for bundle in bundles:
        # Of one bundle alone nothing has to be known.
        digest = _digest(bundle.model.backbone) if len(bundles) > 1 else ""
        groups[bundle.variant.backbone, bundle.preprocess, bundle.vocabulary, digest].append(bundle)
    for first, *others in groups.values():
        for other in others:
            other.model.backbone = first.model.backbone
    return list(groups.values())


def _digest(backbone: nn.Module) -> str:
    """The sha256 of all weights and statistics, with their names, types and shapes."""
    found = hashlib.sha256()
    for name, tensor in backbone.state_dict().items():
        found.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        found.update(tensor.detach().cpu().contiguous().numpy())
    return found.hexdigest()
