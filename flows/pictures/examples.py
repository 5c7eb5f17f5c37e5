"""A variant's masks on some validation images, beside the true masks."""

from __future__ import annotations

from collections.abc import Sequence
from io import BytesIO
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from flows.pictures.canvas import INK, QUIET, new_figure, plain, to_png
from flows.places import Place
from flows.work_records import MaskExample

KINDS = ("image", "truth", "told")
SHARE_OF_COLOUR = 0.55
NUM_COLOURS_TOLD = 12


Pixels = NDArray[np.uint8]


def read_images(folder: Place, examples: Sequence[MaskExample]) -> list[list[Pixels]]:
    """The pixels of each example's image, true mask and predicted mask; nothing at all if a file is gone."""
    files = [[folder.read(getattr(example, kind)) for kind in KINDS] for example in examples]
    if any(content is None for row in files for content in row):
        return []
    return [[np.asarray(Image.open(BytesIO(content or b"")).convert("RGB")) for content in row] for row in files]


def mask_examples(rows: Sequence[Sequence[Pixels]], examples: Sequence[MaskExample], title: str) -> bytes:
    """A row an image: the image, the true mask on it, the predicted one."""
    from matplotlib.patches import Patch

    heights = [2.6 * min(1.6, image.shape[0] / image.shape[1]) for image, _, _ in rows]
    figure = new_figure(9.4, 0.7 + sum(height + 0.35 for height in heights))
    figure.suptitle(plain(title, 90), x=0.02, ha="left", fontsize=10, color=INK, fontweight="bold")
    grid = figure.add_gridspec(len(rows), 3, height_ratios=heights)
    for number, (example, (image, truth, predicted)) in enumerate(zip(examples, rows, strict=True)):
        names = (plain(Path(example.file).name, 32), "truth", f"predicted: {example.right:.1%} of pixels right")
        for place, (name, shown) in enumerate(zip(names, (image, _laid(truth, image), _laid(predicted, image)), strict=True)):
            axes = figure.add_subplot(grid[number, place])
            axes.imshow(shown)
            axes.set_axis_off()
            axes.set_title(name, fontsize=8, color=QUIET, loc="left")
    colours = {name: colour for example in examples for name, colour in example.colours.items()}
    legend = [Patch(color=colour, label=plain(name, 20)) for name, colour in list(colours.items())[:NUM_COLOURS_TOLD]]
    figure.legend(handles=legend, loc="outside lower center", ncols=NUM_COLOURS_TOLD, frameon=False, fontsize=8, labelcolor=INK)
    return to_png(figure)


def _laid(colours: NDArray[np.uint8], image: NDArray[np.uint8]) -> NDArray[np.uint8]:
    return (SHARE_OF_COLOUR * colours + (1 - SHARE_OF_COLOUR) * image).astype(np.uint8)
