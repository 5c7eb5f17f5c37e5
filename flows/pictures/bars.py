"""Bar charts: a leaderboard of variants, the IoU of a mask's classes."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from flows.pictures.canvas import COLOURS, INK, PALE, entitle, new_figure, plain, tidy, to_png
from flows.pictures.confusions import class_ious

NUM_BARS = 60


def leaderboard(names: Sequence[str], values: Sequence[float], measure: str, chosen: int | None = None) -> bytes:
    """A bar a variant in the order given, the chosen one (the candidate) in colour; at most sixty are drawn."""
    known = [value for value in values[:NUM_BARS] if math.isfinite(value)]
    low, high = min(known, default=0.0), max(known, default=1.0)
    span = max(high - low, 0.02 * abs(high))
    start = max(0.0, low - 2 * span) if low > 0 and span < 0.2 * low else min(0.0, low)
    left_out = f", the first {NUM_BARS} of {len(names)}" if len(names) > NUM_BARS else ""
    cut = f" (bars start at {start:.2f})" if start > 0 else ""
    return _bars(names, values, f"{measure}{left_out}{cut}", start, high, {chosen})


def iou_bars(matrix: Sequence[Sequence[int]], classes: Sequence[str], title: str) -> bytes:
    """A bar a class of a mask, its intersection over union, from a matrix of pixel counts (true class, predicted class).

    At most sixty are drawn; a class in neither truth nor prediction has no bar.
    """
    ious = class_ious(matrix)
    mean = f"mean {np.nanmean(ious):.3f}" if np.isfinite(ious).any() else "no pixels"
    left_out = f", the first {NUM_BARS} of {len(classes)}" if len(classes) > NUM_BARS else ""
    return _bars(classes, ious.tolist(), f"{title}: IoU of each class, {mean}{left_out}", 0.0, 1.0, set(range(len(classes))))


def _bars(
    names: Sequence[str], values: Sequence[float], title: str, start: float, high: float, coloured: set[int] | set[int | None]
) -> bytes:
    shown = list(zip(names, values, strict=True))[:NUM_BARS]
    figure = new_figure(8.0, 1.2 + 0.3 * max(len(shown), 3))
    axes = figure.add_subplot()
    widths = [value if math.isfinite(value) else 0.0 for _, value in shown]
    colours = [COLOURS[0] if place in coloured else PALE for place in range(len(shown))]
    axes.barh(range(len(shown)), widths, color=colours, height=0.72)
    axes.set_yticks(range(len(shown)), [plain(name, 60) for name, _ in shown], fontsize=8)
    axes.invert_yaxis()
    room = (high - start) or 1.0
    axes.set_xlim(start, high + 0.12 * room)
    for place, (_, value) in enumerate(shown):
        bold, end = "bold" if place in coloured else "normal", max(widths[place], start) + 0.01 * room
        axes.text(end, place, f"{value:.4f}", va="center", fontsize=8, color=INK, fontweight=bold)
    entitle(axes, title)
    tidy(axes, "x")
    return to_png(figure)
