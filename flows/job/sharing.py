"""Who of a worker group trains what: works that one member trains by itself, dealt out so that all end at about the same time."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from flows.records import Work

# A logistic probe takes about as long as so many epochs of a head, and one more for so many classes: measured on features of
# 384 and 1,280 channels in 2 to 77 classes.
PROBE_EPOCHS, CLASSES_PER_EPOCH = 3.0, 3.0


def probe_epochs(num_classes: int) -> float:
    """How many epochs of a head are as much work as the baseline's probe."""
    return PROBE_EPOCHS + num_classes / CLASSES_PER_EPOCH


def deal_out(groups: Sequence[Sequence[Work]], epochs: Sequence[float]) -> Iterator[list[list[Work]]]:
    """Each group's works by member: one after another for the member with the fewest epochs to do, of equal ones the first.

    `epochs` are what each has to do beside them.
    """
    to_do = list(epochs)
    for group in groups:
        dealt: list[list[Work]] = [[] for _ in to_do]
        for work in group:
            member = to_do.index(min(to_do))
            dealt[member].append(work)
            to_do[member] += work.variant.fit.epochs
        yield dealt
