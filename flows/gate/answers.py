"""From score rows to tables of counts: the answers of two models on the same samples, and those of a constant answer."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np
from numpy.typing import NDArray

from flows.gate.evidence import Rows
from flows.gate.measures import Answers
from heads.catalogue import TASK_FACTS, Task
from heads.tasks.rows import Scored

Right = NDArray[np.bool_]


def right(rows: Rows, keys: Sequence[tuple[str, str]]) -> Right:
    """Which of these samples of classes are read rightly (N)."""
    return np.array([rows[key].predicted == rows[key].truth for key in keys], dtype=np.bool_)


def read_pair(task: Task, after: Rows, before: Rows) -> tuple[tuple[str, ...], Answers, Answers]:
    """The class names in order, and the answers of both models over the same samples and classes.

    A model never answers a label that only the other one knows.
    """
    keys = sorted(after)
    new, old = [after[key] for key in keys], [before[key] for key in keys]
    find, read = (_values, _read_counts) if TASK_FACTS[task].tells in ("pixels", "tags") else (_labels, _read_sets)
    names = tuple(sorted({name for row in (*new, *old) for name in find(row)}))
    return names, read(new, names), read(old, names)


def answer_most_pixels(names: Sequence[str], answers: Answers) -> tuple[Answers, str]:
    """The answers of always giving the value that most labelled pixels have, ties to the first name; and that in words."""
    top = int(answers.truths.sum(axis=0).argmax())
    chosen = np.arange(len(names)) == top
    guesses = answers.truths.sum(axis=1, keepdims=True) * chosen
    return Answers(answers.truths, guesses, answers.truths * chosen), f"always answering {names[top]!r}, what most pixels are"


def answer_no_span(names: Sequence[str], answers: Answers) -> tuple[Answers, str]:
    """The answers of tagging every word as outside of spans; and that in words."""
    nothing = np.zeros_like(answers.truths)
    return Answers(answers.truths, nothing, nothing), "always answering 'O', what most words are"


def answer_shares(names: Sequence[str], answers: Answers) -> tuple[Answers, str]:
    """The answers of always giving each label its share of the samples, as a set those above a half; and that in words."""
    shares = answers.truths.mean(axis=0)
    usual = shares > 0.5
    everywhere = np.ones_like(answers.truths)
    described = ", ".join(repr(name) for name, chosen in zip(names, usual, strict=True) if chosen)
    opponent = f"always answering each label's share of the samples (above a half: {described or 'none'})"
    return Answers(answers.truths, everywhere * usual, answers.truths * usual, everywhere * shares), opponent


def _values(row: Scored) -> Iterable[str]:
    # Of spans, one side may have none.
    return (value for true, predicted, _ in row.pixels for value in (true, predicted) if value)


def _labels(row: Scored) -> Iterable[str]:
    return (*_split(row.truth), *_split(row.predicted), *row.probabilities)


def _split(cell: str) -> list[str]:
    return [name for name in cell.split("|") if name]


def _read_counts(rows: Sequence[Scored], names: Sequence[str]) -> Answers:
    number = {name: index for index, name in enumerate(names)}
    truths, guesses, hits = (np.zeros((len(rows), len(names))) for _ in range(3))
    for index, row in enumerate(rows):
        for true, predicted, count in row.pixels:
            if true:
                truths[index, number[true]] += count
            if predicted:
                guesses[index, number[predicted]] += count
            if true == predicted:
                hits[index, number[true]] += count
    return Answers(truths, guesses, hits)


def _read_sets(rows: Sequence[Scored], names: Sequence[str]) -> Answers:
    number = {name: index for index, name in enumerate(names)}
    truths, guesses, scores = (np.zeros((len(rows), len(names))) for _ in range(3))
    for index, row in enumerate(rows):
        truths[index, [number[name] for name in _split(row.truth)]] = 1
        guesses[index, [number[name] for name in _split(row.predicted)]] = 1
        for name, probability in row.probabilities.items():
            scores[index, number[name]] = probability
    has_scores = any(row.probabilities for row in rows)
    return Answers(truths, guesses, truths * guesses, scores if has_scores else None)
