"""A reliability diagram: how often answers of each probability are right."""

from __future__ import annotations

from collections.abc import Sequence

from flows.pictures.canvas import COLOURS, PALE, QUIET, entitle, new_figure, tidy, to_png

Bar = tuple[float, float, int, float, float]


def reliability_diagram(bins: Sequence[Bar], title: str) -> bytes:
    """A bar a bin of (low, high, number of answers, mean probability, share that is right); dashed, a calibrated model."""
    figure = new_figure(5.0, 4.6)
    axes = figure.add_subplot()
    axes.plot([0, 1], [0, 1], color=QUIET, linewidth=1, linestyle="--")
    for low, high, num, probability, right in bins:
        axes.bar((low + high) / 2, right, width=0.9 * (high - low), color=PALE)
        axes.plot([probability], [right], marker="o", markersize=4, color=COLOURS[0])
        axes.text((low + high) / 2, 0.01, str(num), ha="center", fontsize=7, color=QUIET)
    axes.set_xlim(0, 1)
    axes.set_ylim(0, 1)
    axes.set_xlabel("probability", fontsize=8)
    axes.set_ylabel("share that is right", fontsize=8)
    entitle(axes, f"{title}: right as often as it says? (numbers of answers below)")
    tidy(axes, "y")
    return to_png(figure)
