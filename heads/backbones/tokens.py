"""Features as tokens: the first stage of a vision transformer, and the way back to a map."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class TokenStem(nn.Module):
    """Images (N, 3, H, W) to tokens (N, 1 + H/P x W/P, C) of P x P px patches in reading order, the class token first.

    The position embeddings are kept as they were learnt and brought to another grid as torchvision's own
    `interpolate_embeddings` does (bicubic, corner to corner), anew at every call: so one set of weights serves every
    size, and training at another size trains them. Raises ValueError if H or W is no multiple of P, since the rim
    beyond the last patch would be dropped unseen.
    """

    def __init__(self, project: nn.Conv2d, class_token: nn.Parameter, positions: nn.Parameter) -> None:
        super().__init__()
        self.class_token = class_token
        self.pos_embedding = positions
        self.conv_proj = project
        self.patch_px = int(project.stride[0])
        self.side = round((positions.shape[1] - 1) ** 0.5)

    def forward(self, images: Tensor) -> Tensor:
        height, width = images.shape[-2:]
        if height % self.patch_px or width % self.patch_px:
            raise ValueError(f"images of {height} x {width} px cannot be cut into patches of {self.patch_px} px without a rest")
        patches = self.conv_proj(images)
        positions = self._positions(patches.shape[-2], patches.shape[-1])
        tokens = patches.flatten(2).transpose(1, 2)
        return torch.cat([self.class_token.expand(images.shape[0], -1, -1), tokens], dim=1) + positions

    def _positions(self, rows: int, columns: int) -> Tensor:
        if rows == columns == self.side:
            return self.pos_embedding
        own, grid = self.pos_embedding[:, :1], tokens_to_map(self.pos_embedding, self.side, self.side)
        resized = F.interpolate(grid, size=(rows, columns), mode="bicubic", align_corners=True)
        return torch.cat([own, resized.flatten(2).transpose(1, 2)], dim=1)


def tokens_to_map(tokens: Tensor, rows: int, columns: int) -> Tensor:
    """The feature map (N, C, rows, columns) in tokens (N, 1 + rows x columns, C); the class token is left out."""
    return tokens[:, 1:].transpose(1, 2).reshape(tokens.shape[0], tokens.shape[2], rows, columns)
