"""A training epoch by epoch: the curves of its measures, and the stages that learned."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from functools import lru_cache

import numpy as np

from flows.pictures.canvas import COLOURS, GRID, INK, QUIET, entitle, new_figure, plain, tidy, to_png
from flows.work_records import EpochRecord
from heads.catalogue import TASK_FACTS, Task

ORDER = ("loss", "accuracy", "average_precision", "f1_macro", "miou", "dice")
NUM_PANELS_IN_A_ROW = 3
NUM_EPOCHS_WITH_GAPS = 60

Lines = dict[tuple[str, str], list[tuple[int, float]]]


def learning_curves(
    epochs: Sequence[EpochRecord], best_epoch: int | None = None, tasks: Mapping[str, Task] | None = None
) -> bytes:
    """A panel a measure, a colour a target: training dashed, validation solid; phases and the epoch kept are marked.

    The task of a target in `tasks` decides which of its measures are drawn; without one, those of classification.
    """
    from matplotlib.ticker import MaxNLocator

    curves = _curves(epochs, tasks or {})
    panels = [measure for measure in ORDER if measure in curves] or list(ORDER[:1])
    num_columns = min(len(panels), NUM_PANELS_IN_A_ROW if len(panels) != 4 else 2)
    num_rows = math.ceil(len(panels) / num_columns)
    figure = new_figure(0.6 + 4.4 * num_columns, 3.6 * num_rows)
    targets = list(dict.fromkeys(target for lines in curves.values() for split, target in lines if split != "train" or target))
    borders = [b.epoch for a, b in itertools.pairwise(epochs) if a.phase != b.phase]
    for place, measure in enumerate(panels, start=1):
        axes = figure.add_subplot(num_rows, num_columns, place)
        lines = curves.get(measure, {})
        for (split, target), points in sorted(lines.items(), key=lambda line: line[0][0] == "train", reverse=True):
            colour = COLOURS[targets.index(target) % len(COLOURS)] if target in targets else QUIET
            style, width = ("--", 1.2) if split == "train" else ("-", 2.0)
            label = plain(" ".join(word for word in (split, target) if word), 30)
            marker = "o" if len(points) < 30 else ""
            axes.plot(*zip(*points, strict=True), style, color=colour, linewidth=width, marker=marker, markersize=3, label=label)
        for border in borders:
            axes.axvline(border - 0.5, color=QUIET, linewidth=0.8, linestyle=":")
        if best_epoch is not None:
            axes.axvline(best_epoch, color=COLOURS[2], linewidth=5, alpha=0.15)
        entitle(axes, measure)
        tidy(axes, "y")
        axes.set_xlabel("epoch", color=QUIET)
        if len(epochs) == 1:
            axes.set_xlim(epochs[0].epoch - 0.5, epochs[0].epoch + 0.5)
        axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
        if 0 < len(lines) <= 12:
            axes.legend(frameon=False, fontsize=7)
    return to_png(figure)


def freeze_map(num_frozen_stages: Sequence[int], stages: Sequence[str], policy: str) -> bytes:
    """A row a stage, the last on top, and a column an epoch: blue where the stage trained, grey where it was frozen."""
    return _freeze_map(tuple(num_frozen_stages), tuple(stages), policy)


# Variants of one policy have one map.
@lru_cache(8)
def _freeze_map(num_frozen_stages: tuple[int, ...], stages: tuple[str, ...], policy: str) -> bytes:
    from matplotlib.colors import ListedColormap
    from matplotlib.ticker import MaxNLocator

    frozen = np.array([[index < count for count in num_frozen_stages] for index in range(len(stages))], dtype=float)
    num_epochs = len(num_frozen_stages)
    figure = new_figure(min(max(4.4, 2.0 + 0.35 * num_epochs), 12.0), 1.3 + 0.3 * len(stages))
    axes = figure.add_subplot()
    if num_epochs:
        edges = [place - 0.5 for place in range(num_epochs + 1)], [place - 0.5 for place in range(len(stages) + 1)]
        colours = ListedColormap([COLOURS[0], GRID])
        width = 1.0 if num_epochs <= NUM_EPOCHS_WITH_GAPS else 0.0
        axes.pcolormesh(*edges, frozen, cmap=colours, vmin=0, vmax=1, edgecolors="white", linewidth=width)
    share = f"{1 - frozen.mean():.0%}" if frozen.size else "none"
    axes.set_yticks(range(len(stages)), [plain(name, 22) for name in stages], fontsize=8)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
    axes.tick_params(length=0, labelcolor=INK, labelsize=8)
    axes.spines[:].set_visible(False)
    axes.set_xlabel("epoch", color=QUIET)
    entitle(axes, f"freeze {policy}: blue trains ({share}), grey is frozen")
    return to_png(figure)


def _curves(epochs: Sequence[EpochRecord], tasks: Mapping[str, Task]) -> dict[str, Lines]:
    """Points by measure and then by (split, target), of the measures that are drawn."""
    curves: dict[str, Lines] = {}
    for epoch in epochs:
        for name, value in epoch.metrics.items():
            split, _, rest = name.partition("/")
            target, _, measure = rest.rpartition("/")
            if measure == "loss" or measure in TASK_FACTS[tasks.get(target, "classification")].drawn:
                curves.setdefault(measure, {}).setdefault((split, target), []).append((epoch.epoch, float(value)))
    return curves
