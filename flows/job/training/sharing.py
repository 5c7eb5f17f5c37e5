"""Who of a worker group trains what: works that one member trains by itself, dealt out so that all end at about the same time."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from flows.records import Work

# Loads are counted in epochs of a linear head. One with a hidden layer was measured to take 1.4 times as long in 384 channels,
# and four times in 1,280.
WITHOUT_HIDDEN_LAYER = ("linear", "cosine")
HIDDEN_LAYER_LOAD = 3.0
# What a logistic probe takes depends on how soon it finds its minimum: about 78 for 77 classes of texts in 384 channels, 110 for
# 10 classes of images in 1,280. This lies near both.
PROBE_LOAD, PROBE_LOAD_A_CLASS, MOST_CLASSES = 20.0, 5.0, 15


def probe_load(num_classes: int) -> float:
    """How much work the baseline's probe is."""
    return PROBE_LOAD + PROBE_LOAD_A_CLASS * min(num_classes, MOST_CLASSES)


def load_of(work: Work) -> float:
    """How much work the training of a work's heads is."""
    heads = work.variant.heads
    return work.variant.fit.epochs * sum(1.0 if head.design in WITHOUT_HIDDEN_LAYER else HIDDEN_LAYER_LOAD for head in heads)


def deal_out(groups: Sequence[Sequence[Work]], loads: Sequence[float]) -> Iterator[list[list[Work]]]:
    """Each group's works, dealt to the members: the greatest first, each to the member that has least to do by then.

    `loads` are what the members have to do besides.
    """
    to_do = list(loads)
    for group in groups:
        dealt: list[list[Work]] = [[] for _ in to_do]
        for work in sorted(group, key=load_of, reverse=True):
            member = to_do.index(min(to_do))
            dealt[member].append(work)
            to_do[member] += load_of(work)
        yield dealt
