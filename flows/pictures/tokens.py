"""Texts whose tokens are coloured by their weight in an answer."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from flows.pictures.canvas import INK, QUIET, new_figure, plain, to_png

# Of a monospaced letter at this size, in inches.
POINTS, LETTER, LINE = 8.5, 0.0725, 0.185
WIDTH, LEFT, NUM_COLUMNS = 9.0, 0.15, 118
MAX_LINES, TITLE_CHARS = 6, 110
# What speaks for the answer, and against it.
FOR, AGAINST = "#f59e0b", "#3b82f6"


@dataclass(frozen=True)
class ColouredText:
    """A text's tokens with whether each goes on the word before and its weight from -1 to 1, under words on its answer."""

    words: str
    tokens: Sequence[tuple[str, bool, float]]


def coloured_texts(texts: Sequence[ColouredText], title: str) -> bytes:
    """The texts under each other, the tokens that count most in the strongest colour; there has to be one."""
    laid = [_laid_out(text.tokens) for text in texts]
    height = 0.55 + sum((len(lines) + 1.6) * LINE for lines in laid)
    figure = new_figure(WIDTH, height)
    figure.set_layout_engine("none")
    told = plain(title, TITLE_CHARS)
    figure.text(LEFT / WIDTH, 1 - 0.25 / height, told, fontsize=10, fontweight="bold", color=INK, va="center")
    top = height - 0.55
    for text, lines in zip(texts, laid, strict=True):
        figure.text(LEFT / WIDTH, top / height, plain(text.words, TITLE_CHARS), fontsize=8, color=QUIET, va="center")
        for line in lines:
            top -= LINE
            for column, token, weight in line:
                colour = FOR if weight >= 0 else AGAINST
                box = {"facecolor": colour, "alpha": min(1.0, abs(weight)) * 0.75, "edgecolor": "none", "pad": 1.0}
                place = (LEFT + column * LETTER) / WIDTH, top / height
                shown = plain(token, NUM_COLUMNS)
                figure.text(*place, shown, fontsize=POINTS, family="monospace", color=INK, va="center", bbox=box)
        top -= 1.6 * LINE
    return to_png(figure)


def _laid_out(tokens: Sequence[tuple[str, bool, float]]) -> list[list[tuple[int, str, float]]]:
    """The tokens in lines, each with its column; what finds no room in the last line is left out."""
    lines: list[list[tuple[int, str, float]]] = [[]]
    column = 0
    for token, continues, weight in tokens:
        start = column if continues or not lines[-1] else column + 1
        if start + len(token) > NUM_COLUMNS and lines[-1]:
            if len(lines) == MAX_LINES:
                lines[-1].append((min(column + 1, NUM_COLUMNS - 1), "…", 0.0))
                break
            lines.append([])
            start = 0
        lines[-1].append((start, token, weight))
        column = start + len(token)
    return lines
