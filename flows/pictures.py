"""Pictures of a variant and of a leaderboard, as PNG bytes; drawn without a screen, in any thread."""

from __future__ import annotations

import io
import itertools
import math
import re
import warnings
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from heads.spec import BACKBONE_STAGES

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

INK, QUIET, GRID = "#1f2933", "#7b8794", "#e4e7eb"
COLOURS = ("#2563eb", "#d97706", "#059669", "#db2777", "#7c3aed", "#0891b2", "#65a30d", "#dc2626")
MEASURES = ("loss", "accuracy", "f1_macro")
NUM_CLASSES_WITH_COUNTS = 20
NUM_CLASSES_WITH_NAMES = 120
NUM_BARS = 60
NUM_EPOCHS_WITH_GAPS = 60


def draw_variant(result: Mapping[str, Any]) -> dict[str, bytes]:
    """The pictures of a `result.json` by file name: learning curves, a freeze map, and a confusion matrix a target."""
    pictures = {"learning_curves.png": learning_curves(result["epochs"], result.get("best_epoch"))}
    # Results of before this picture do not say what was frozen.
    if "variant" in result and all("num_frozen_stages" in epoch for epoch in result["epochs"]):
        variant = result["variant"]
        frozen = [epoch["num_frozen_stages"] for epoch in result["epochs"]]
        pictures["freeze_map.png"] = freeze_map(frozen, BACKBONE_STAGES[variant["backbone"]], variant["freeze"])
    for target, matrix in result["confusion"].items():
        name = re.sub(r"[^\w.\-]", "_", target)
        pictures[f"confusion_{name}.png"] = confusion_matrix(matrix, result["classes"][target], target)
    return pictures


def confusion_matrix(matrix: Sequence[Sequence[int]], classes: Sequence[str], title: str) -> bytes:
    """Rows are the truth, columns what was read; the colour is the share of the row (small ones lifted), the figure the count."""
    from matplotlib.colors import PowerNorm

    counts = np.asarray(matrix, dtype=float)
    num_classes = len(classes)
    totals = counts.sum(axis=1, keepdims=True)
    shares = np.divide(counts, totals, out=np.zeros_like(counts), where=totals > 0)
    side = min(max(3.4, 1.8 + 0.38 * min(num_classes, 20) + 0.06 * max(num_classes - 20, 0)), 14.0)
    figure = _figure(side + 0.9, side)
    axes = figure.add_subplot()
    image = axes.imshow(shares, cmap="Blues", norm=PowerNorm(0.5, 0, 1), aspect="equal")
    size = min(9.0, max(4.0, 72 * 0.8 * side / max(num_classes, 1) / 1.6))
    if num_classes <= NUM_CLASSES_WITH_COUNTS:
        for (row, column), count in np.ndenumerate(counts):
            colour = "white" if shares[row, column] > 0.35 else INK if count else GRID
            axes.text(column, row, f"{int(count)}", ha="center", va="center", fontsize=size, color=colour)
    step = math.ceil(num_classes / NUM_CLASSES_WITH_NAMES)
    ticks = range(0, num_classes, step)
    names = [_plain(classes[index], 22) for index in ticks]
    upright = max(map(len, names), default=0) * 0.6 * size / 72 < 0.75 * side / max(num_classes, 1)
    axes.set_xticks(ticks, names, rotation=0 if upright else 90, fontsize=size)
    axes.set_yticks(ticks, names, fontsize=size)
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)
    right, total = float(np.trace(counts)), float(counts.sum())
    share = f"{right / total:.1%} right" if total else "no samples"
    _title(axes, f"{title}: {share}, {int(right)} of {int(total)}")
    axes.set_xlabel("predicted", color=QUIET)
    axes.set_ylabel("truth", color=QUIET)
    bar = figure.colorbar(image, ax=axes, shrink=0.5, aspect=30, ticks=[0, 0.05, 0.2, 0.5, 1])
    bar.ax.set_yticklabels(["0%", "5%", "20%", "50%", "100%"])
    bar.outline.set_visible(False)
    bar.ax.tick_params(length=0, labelsize=8, labelcolor=QUIET)
    return _png(figure)


def learning_curves(epochs: Sequence[Mapping[str, Any]], best_epoch: int | None = None) -> bytes:
    """A panel a measure, a colour a target: training dashed, validation solid; phases and the epoch kept are marked."""
    from matplotlib.ticker import MaxNLocator

    curves = _curves(epochs)
    panels = [measure for measure in MEASURES if measure in curves] or list(MEASURES[:1])
    figure = _figure(0.6 + 4.4 * len(panels), 3.6)
    targets = list(dict.fromkeys(target for lines in curves.values() for split, target in lines if split != "train" or target))
    borders = [b["epoch"] for a, b in itertools.pairwise(epochs) if a["phase"] != b["phase"]]
    for place, measure in enumerate(panels, start=1):
        axes = figure.add_subplot(1, len(panels), place)
        lines = curves.get(measure, {})
        for (split, target), points in sorted(lines.items(), key=lambda line: line[0][0] == "train", reverse=True):
            colour = COLOURS[targets.index(target) % len(COLOURS)] if target in targets else QUIET
            style, width = ("--", 1.2) if split == "train" else ("-", 2.0)
            label = _plain(" ".join(word for word in (split, target) if word), 30)
            marker = "o" if len(points) < 30 else ""
            axes.plot(*zip(*points, strict=True), style, color=colour, linewidth=width, marker=marker, markersize=3, label=label)
        for border in borders:
            axes.axvline(border - 0.5, color=QUIET, linewidth=0.8, linestyle=":")
        if best_epoch is not None:
            axes.axvline(best_epoch, color=COLOURS[2], linewidth=5, alpha=0.15)
        _title(axes, measure)
        _tidy(axes, "y")
        axes.set_xlabel("epoch", color=QUIET)
        if len(epochs) == 1:
            axes.set_xlim(epochs[0]["epoch"] - 0.5, epochs[0]["epoch"] + 0.5)
        axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
        if 0 < len(lines) <= 12:
            axes.legend(frameon=False, fontsize=7)
    return _png(figure)


def freeze_map(num_frozen_stages: Sequence[int], stages: Sequence[str], policy: str) -> bytes:
    """A row a stage, the last on top, and a column an epoch: blue where the stage trained, grey where it was frozen."""
    from matplotlib.colors import ListedColormap
    from matplotlib.ticker import MaxNLocator

    frozen = np.array([[index < count for count in num_frozen_stages] for index in range(len(stages))], dtype=float)
    num_epochs = len(num_frozen_stages)
    figure = _figure(min(max(4.4, 2.0 + 0.35 * num_epochs), 12.0), 1.3 + 0.3 * len(stages))
    axes = figure.add_subplot()
    if num_epochs:
        edges = [place - 0.5 for place in range(num_epochs + 1)], [place - 0.5 for place in range(len(stages) + 1)]
        colours = ListedColormap([COLOURS[0], GRID])
        width = 1.0 if num_epochs <= NUM_EPOCHS_WITH_GAPS else 0.0
        axes.pcolormesh(*edges, frozen, cmap=colours, vmin=0, vmax=1, edgecolors="white", linewidth=width)
    share = f"{1 - frozen.mean():.0%}" if frozen.size else "none"
    axes.set_yticks(range(len(stages)), [_plain(name, 22) for name in stages], fontsize=8)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
    axes.tick_params(length=0, labelcolor=INK, labelsize=8)
    axes.spines[:].set_visible(False)
    axes.set_xlabel("epoch", color=QUIET)
    _title(axes, f"freeze {policy}: blue trains ({share}), grey is frozen")
    return _png(figure)


def leaderboard(names: Sequence[str], values: Sequence[float], measure: str, chosen: int | None = None) -> bytes:
    """A bar a variant in the order given, the chosen one (the candidate) in colour; at most sixty are drawn."""
    shown = list(zip(names, values, strict=True))[:NUM_BARS]
    figure = _figure(8.0, 1.2 + 0.3 * max(len(shown), 3))
    axes = figure.add_subplot()
    known = [value for _, value in shown if math.isfinite(value)]
    widths = [value if math.isfinite(value) else 0.0 for _, value in shown]
    colours = [COLOURS[0] if place == chosen else "#b8c4d6" for place in range(len(shown))]
    axes.barh(range(len(shown)), widths, color=colours, height=0.72)
    axes.set_yticks(range(len(shown)), [_plain(name, 60) for name, _ in shown], fontsize=8)
    axes.invert_yaxis()
    low, high = min(known, default=0.0), max(known, default=1.0)
    span = max(high - low, 0.02 * abs(high))
    start = max(0.0, low - 2 * span) if low > 0 and span < 0.2 * low else min(0.0, low)
    room = (high - start) or 1.0
    axes.set_xlim(start, high + 0.12 * room)
    for place, (_, value) in enumerate(shown):
        bold, end = "bold" if place == chosen else "normal", max(widths[place], start) + 0.01 * room
        axes.text(end, place, f"{value:.4f}", va="center", fontsize=8, color=INK, fontweight=bold)
    left_out = f", the first {len(shown)} of {len(names)}" if len(shown) < len(names) else ""
    cut = f" (bars start at {start:.2f})" if start > 0 else ""
    _title(axes, f"{measure}{left_out}{cut}")
    _tidy(axes, "x")
    return _png(figure)


def _curves(epochs: Sequence[Mapping[str, Any]]) -> dict[str, dict[tuple[str, str], list[tuple[int, float]]]]:
    """Points by measure and then by (split, target)."""
    curves: dict[str, dict[tuple[str, str], list[tuple[int, float]]]] = {}
    for epoch in epochs:
        for name, value in epoch["metrics"].items():
            split, _, rest = name.partition("/")
            target, _, measure = rest.rpartition("/")
            curves.setdefault(measure, {}).setdefault((split, target), []).append((epoch["epoch"], float(value)))
    return curves


def _figure(width_inches: float, height_inches: float) -> Figure:
    # Not pyplot: its figures are global, and the driver's logging thread draws too.
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.layout_engine import ConstrainedLayoutEngine

    layout = ConstrainedLayoutEngine(w_pad=0.1, h_pad=0.1)
    figure = Figure(figsize=(width_inches, height_inches), layout=layout, facecolor="white")
    FigureCanvasAgg(figure)
    return figure


def _title(axes: Axes, text: str) -> None:
    axes.set_title(_plain(text, 90), fontsize=10, color=INK, loc="left", fontweight="bold")


def _tidy(axes: Axes, grid: str) -> None:
    axes.spines[["top", "right", "left"]].set_visible(False)
    axes.spines["bottom"].set_color(GRID)
    axes.grid(axis="y" if grid == "y" else "x", color=GRID, linewidth=0.8)
    axes.set_axisbelow(True)
    axes.tick_params(length=0, labelcolor=INK, labelsize=8)


def _plain(text: str, num_chars: int) -> str:
    """The text no longer than that, with dollars that do not start a formula."""
    short = text if len(text) <= num_chars else f"{text[: num_chars - 1]}…"
    return short.replace("$", r"\$")


def _png(figure: Figure) -> bytes:
    made = io.BytesIO()
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph .* missing")  # names in scripts that the one shipped font lacks
        figure.savefig(made, format="png", dpi=110)
    return made.getvalue()
