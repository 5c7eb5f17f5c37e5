"""A bundle as a module for torch.export: uint8 images to probabilities, preprocessing included, or token ids to probabilities."""

from __future__ import annotations

import copy
from collections.abc import Mapping

import torch
from torch import Tensor, nn

from heads.bundle import Bundle
from heads.catalogue import Modality
from heads.data.image_transforms import ImagePreprocess, crop_centre, normalise, resize
from heads.data.inputs import Inputs
from heads.model.model import upsample
from heads.tasks.table import TASKS
from heads.tasks.temperature import tempered


class Program(nn.Module):
    """Images (N, H, W, 3) of uint8 to probabilities (N, C), the targets' classes side by side in classes.json's order.

    With a mask among the targets they are (N, C, H, W), those of the other targets the same at every pixel.
    """

    def __init__(self, bundle: Bundle) -> None:
        super().__init__()
        assert isinstance(bundle.preprocess, ImagePreprocess)
        # A copy in plain layout: torch.export.save stores weights that are channels last, but warns of them.
        self.model = copy.deepcopy(bundle.model).to(memory_format=torch.contiguous_format)
        self.preprocess, self.targets, self.temperatures = bundle.preprocess, tuple(bundle.classes), bundle.temperatures

    def forward(self, images: Tensor) -> Tensor:
        resized = resize(images.permute(0, 3, 1, 2), self.preprocess)
        pixels = normalise(crop_centre(resized, self.preprocess), self.preprocess)
        features = self.model.forward_backbone(pixels.clone(memory_format=torch.channels_last))
        height, width = images.shape[1], images.shape[2]
        side = self.preprocess.image_size_px
        logits = self.model.forward_heads(features, (side, side))
        dense = any(rows.ndim == 4 for rows in logits.values())
        parts = []
        for target in self.targets:
            rows = logits[target]
            if rows.ndim == 4:
                rows = upsample(rows, (height, width))
            probabilities = TASKS[self.model.tasks[target]].activate(tempered(rows, self.temperatures.get(target)))
            spread = dense and probabilities.ndim == 2
            parts.append(probabilities[:, :, None, None].expand(-1, -1, height, width) if spread else probabilities)
        return torch.cat(parts, dim=1)


class TextProgram(nn.Module):
    """Token ids (N, L) of int64, 0 where a text has ended, to probabilities (N, C), as those of `Program`.

    The ids are those of the bundle's vocab.txt by WordPiece, BERT's tokenizer, from [CLS] to [SEP]. With tags among the targets
    they are (N, C, L): those of each token by itself, of which a word's first piece counts, and of a `crf` without what its
    transitions add, which lie in the bundle; those of the other targets are the same at every token.
    """

    def __init__(self, bundle: Bundle) -> None:
        super().__init__()
        self.model = copy.deepcopy(bundle.model)
        self.targets, self.temperatures = tuple(bundle.classes), bundle.temperatures

    def forward(self, ids: Tensor) -> Tensor:
        logits = self.model(Inputs(ids))
        tasks = ((target, TASKS[self.model.tasks[target]]) for target in self.targets)
        parts = [task.activate(tempered(logits[t], self.temperatures.get(t))) for t, task in tasks]
        if any(part.ndim == 3 for part in parts):
            parts = [part if part.ndim == 3 else part[:, :, None].expand(-1, -1, ids.shape[1]) for part in parts]
        return torch.cat(parts, dim=1)


PROGRAMS: Mapping[Modality, type[nn.Module]] = {"image": Program, "text": TextProgram}


def export_program(bundle: Bundle) -> nn.Module:
    """A module for torch.export whose dimensions may all be dynamic but for colours; it gives what `Bundle.predict` gives.

    Export it with an example of two samples or more, images of 8 px or more a side, texts of two tokens or more: torch.export
    fixes dimensions of 0 and 1.
    """
    return PROGRAMS[bundle.variant.modality](bundle).eval()
