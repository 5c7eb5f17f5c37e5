"""A confusion matrix, of samples, of pixels or of words."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from flows.pictures.canvas import GRID, INK, QUIET, entitle, new_figure, plain, to_png

NUM_CLASSES_WITH_FIGURES = 20
NUM_CLASSES_WITH_NAMES = 120


def confusion_matrix(
    matrix: Sequence[Sequence[int]], classes: Sequence[str], title: str, *, of_pixels: bool = False, of_words: bool = False
) -> bytes:
    """A confusion matrix: rows are the truth, columns the prediction; the colour is the share of the row (small ones lifted).

    The figures are counts of samples; for pixels and words, whose counts say little, they are shares of the row.
    """
    from matplotlib.colors import PowerNorm

    counts = np.asarray(matrix, dtype=float)
    num_classes = len(classes)
    totals = counts.sum(axis=1, keepdims=True)
    shares = np.divide(counts, totals, out=np.zeros_like(counts), where=totals > 0)
    side = min(max(3.4, 1.8 + 0.38 * min(num_classes, 20) + 0.06 * max(num_classes - 20, 0)), 14.0)
    figure = new_figure(side + 0.9, side)
    axes = figure.add_subplot()
    image = axes.imshow(shares, cmap="Blues", norm=PowerNorm(0.5, 0, 1), aspect="equal")
    size = min(9.0, max(4.0, 72 * 0.8 * side / max(num_classes, 1) / 1.6))
    if num_classes <= NUM_CLASSES_WITH_FIGURES:
        for (row, column), count in np.ndenumerate(counts):
            colour = "white" if shares[row, column] > 0.35 else INK if count else GRID
            figure_text = _percent(shares[row, column]) if of_pixels or of_words else f"{int(count)}"
            text = axes.text(column, row, figure_text, ha="center", va="center", fontsize=size, color=colour)
            # It lies within its cell, so the layout need not make room for it.
            text.set_in_layout(False)
    step = math.ceil(num_classes / NUM_CLASSES_WITH_NAMES)
    ticks = range(0, num_classes, step)
    names = [plain(classes[index], 22) for index in ticks]
    upright = max(map(len, names), default=0) * 0.6 * size / 72 < 0.75 * side / max(num_classes, 1)
    axes.set_xticks(ticks, names, rotation=0 if upright else 90, fontsize=size)
    axes.set_yticks(ticks, names, fontsize=size)
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)
    entitle(axes, f"{title}: {_summary(counts, of_pixels, of_words)}")
    axes.set_xlabel("predicted", color=QUIET)
    axes.set_ylabel("truth", color=QUIET)
    bar = figure.colorbar(image, ax=axes, shrink=0.5, aspect=30, ticks=[0, 0.05, 0.2, 0.5, 1])
    bar.ax.set_yticklabels(["0%", "5%", "20%", "50%", "100%"])
    bar.outline.set_visible(False)
    bar.ax.tick_params(length=0, labelsize=8, labelcolor=QUIET)
    return to_png(figure)


def class_ious(matrix: Sequence[Sequence[int]]) -> NDArray[np.float64]:
    """Each class's intersection over union; NaN for a class in neither truth nor prediction."""
    counts = np.asarray(matrix, dtype=float)
    hits = counts.diagonal()
    unions = counts.sum(axis=0) + counts.sum(axis=1) - hits
    ious: NDArray[np.float64] = np.divide(hits, unions, out=np.full(len(hits), np.nan), where=unions > 0)
    return ious


def _summary(counts: NDArray[np.float64], of_pixels: bool, of_words: bool = False) -> str:
    right, total = float(np.trace(counts)), float(counts.sum())
    if not total:
        return "no pixels" if of_pixels else "no samples"
    if of_pixels:
        return f"mIoU {np.nanmean(class_ious(counts.tolist())):.3f}, {right / total:.1%} of pixels right"
    if of_words:
        return f"{right / total:.1%} of words right"
    return f"{right / total:.1%} right, {int(right)} of {int(total)}"


def _percent(share: float) -> str:
    return "<1%" if 0 < share < 0.01 else f"{share:.0%}"
