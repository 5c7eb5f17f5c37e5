"""The closed table of backbones: a row each, those of images before those of texts."""

from __future__ import annotations

from heads.backbones.image_table import IMAGE_ROWS
from heads.backbones.row import Backbone
from heads.backbones.text_table import TEXT_ROWS, sized_row

__all__ = ["BACKBONES", "Backbone", "row_of"]

BACKBONES: dict[str, Backbone] = {**IMAGE_ROWS, **TEXT_ROWS}


def row_of(name: str) -> Backbone:
    """The row of a backbone, encoders of any size included. Raises KeyError on a name that is none."""
    return sized_row(name) or BACKBONES[name]
