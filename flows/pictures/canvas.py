"""The common look of all pictures: figures without a screen, titles and axes, and the PNG at the end."""

from __future__ import annotations

import io
import warnings
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

INK, QUIET, GRID = "#1f2933", "#7b8794", "#e4e7eb"
COLOURS = ("#2563eb", "#d97706", "#059669", "#db2777", "#7c3aed", "#0891b2", "#65a30d", "#dc2626")
PALE = "#b8c4d6"


def new_figure(width_inches: float, height_inches: float) -> Figure:
    """An empty white figure."""
    # Not pyplot: its figures are global, and the driver's logging thread draws too.
    from matplotlib.figure import Figure
    from matplotlib.layout_engine import ConstrainedLayoutEngine

    layout = ConstrainedLayoutEngine(w_pad=0.1, h_pad=0.1)
    return Figure(figsize=(width_inches, height_inches), dpi=110, layout=layout, facecolor="white")


def entitle(axes: Axes, text: str) -> None:
    """Set the title of a picture, in the common style."""
    axes.set_title(plain(text, 90), fontsize=10, color=INK, loc="left", fontweight="bold")


def tidy(axes: Axes, grid: str) -> None:
    """Remove the frame but for its lower edge, and draw grid lines across the axis `grid`, x or y."""
    axes.spines[["top", "right", "left"]].set_visible(False)
    axes.spines["bottom"].set_color(GRID)
    axes.grid(axis="y" if grid == "y" else "x", color=GRID, linewidth=0.8)
    axes.set_axisbelow(True)
    axes.tick_params(length=0, labelcolor=INK, labelsize=8)


def plain(text: str, num_chars: int) -> str:
    """The text cut to `num_chars`, with dollar signs escaped, which would start a formula."""
    short = text if len(text) <= num_chars else f"{text[: num_chars - 1]}…"
    return short.replace("$", r"\$")


def to_png(figure: Figure) -> bytes:
    """The figure as a PNG file's bytes."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    made = io.BytesIO()
    # Names in scripts that the one shipped font lacks. Not for a block alone: filters are the process's, and other threads set
    # theirs.
    warnings.filterwarnings("ignore", message="Glyph .* missing")
    # Laid out and drawn once: `savefig` would draw it twice.
    if layout := figure.get_layout_engine():
        layout.execute(figure)
        figure.set_layout_engine("none")
    FigureCanvasAgg(figure).print_png(made)  # type: ignore[no-untyped-call]
    return made.getvalue()
