"""A bundle as a module for torch.export: uint8 images to probabilities, preprocessing included."""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn

from heads.bundle import Bundle
from heads.data.images import crop_centre, normalise, resize
from heads.model.model import upsample
from heads.tasks.table import TASKS
from heads.tasks.temperature import tempered


class Program(nn.Module):
    """Images (N, H, W, 3) of uint8 to probabilities (N, C), the targets' classes side by side in classes.json's order.

    With a mask among the targets they are (N, C, H, W), those of the other targets the same at every pixel.
    """

    def __init__(self, bundle: Bundle) -> None:
        super().__init__()
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


def export_program(bundle: Bundle) -> nn.Module:
    """A module for torch.export whose batch, height and width may all be dynamic; it gives what `Bundle.predict` gives.

    Export it with an example of two images or more, 8 px or more a side: torch.export fixes dimensions of 0 and 1.
    """
    return Program(bundle).eval()
