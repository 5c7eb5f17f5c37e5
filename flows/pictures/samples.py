"""Images of samples beside each other, each with a line of words."""

from __future__ import annotations

from collections.abc import Sequence

from PIL import Image

from flows.pictures.canvas import INK, QUIET, new_figure, plain, to_png

NUM_COLUMNS = 4
INCHES = 2.4
TITLE_CHARS = 34


def sample_images(samples: Sequence[tuple[str, Image.Image]], title: str) -> bytes:
    """The images in rows of four, each under its words; there has to be one."""
    num_rows = -(-len(samples) // NUM_COLUMNS)
    figure = new_figure(INCHES * NUM_COLUMNS, 0.5 + (INCHES + 0.2) * num_rows)
    figure.suptitle(plain(title, 90), x=0.02, ha="left", fontsize=10, color=INK, fontweight="bold")
    for place, (words, image) in enumerate(samples):
        axes = figure.add_subplot(num_rows, NUM_COLUMNS, place + 1)
        axes.imshow(image)
        axes.set_axis_off()
        axes.set_title(plain(words, TITLE_CHARS), fontsize=7, color=QUIET, loc="left")
    return to_png(figure)
