"""The backbone of a bundle as the first weights of another training."""

from __future__ import annotations

from pathlib import Path

import torch

from heads.backbones import state_of
from heads.bundle import load


def save_backbone(path: Path, goal: Path) -> None:
    """Write the backbone of the bundle in a folder to the file `goal`: a state dict of torchvision's model, as plans name files.

    Equal backbones give equal bytes, whatever heads they have. Raises BundleError as `load` does.
    """
    bundle = load(path)
    state = state_of(bundle.variant.backbone, bundle.model.backbone)
    with goal.open("wb") as file:
        torch.save({key: tensor.clone(memory_format=torch.contiguous_format) for key, tensor in state.items()}, file)
