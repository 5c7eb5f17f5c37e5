"""Attacks on a model: images changed by a little, in the direction in which their loss grows.

An image is a tensor of pixels from 0 to 1; `eps` is the most that a pixel may change, such as 4 / 255.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

# From images (N, 3, S, S) to their losses (N).
Losses = Callable[[Tensor], Tensor]


def loss_gradients(losses: Losses, images: Tensor) -> tuple[Tensor, Tensor]:
    """The losses (N) of images, and the gradients of each by its image (N, 3, S, S)."""
    with torch.enable_grad():
        asked = images.detach().requires_grad_(True)
        found = losses(asked)
        (gradients,) = torch.autograd.grad(found.sum(), asked)
    return found.detach(), gradients


def fgsm(losses: Losses, images: Tensor, eps: float) -> Tensor:
    """Images changed by `eps` times the sign of the gradient (Goodfellow, Shlens & Szegedy, "Explaining and Harnessing
    Adversarial Examples", ICLR 2015)."""
    return (images + eps * loss_gradients(losses, images)[1].sign()).clamp(0, 1)


def pgd(losses: Losses, images: Tensor, eps: float, *, num_steps: int, step: float, start: Tensor | None = None) -> Tensor:
    """Images after `num_steps` of `step` along the gradient's sign, each brought back to within `eps` of the image.

    `start` (N, 3, S, S), from -1 to 1, times `eps` is added first; None begins at the image itself. (Madry et al., "Towards
    Deep Learning Models Resistant to Adversarial Attacks", ICLR 2018.)
    """
    changed = images if start is None else (images + eps * start).clamp(0, 1)
    for _ in range(num_steps):
        changed = changed + step * loss_gradients(losses, changed)[1].sign()
        changed = (images + (changed - images).clamp(-eps, eps)).clamp(0, 1)
    return changed
