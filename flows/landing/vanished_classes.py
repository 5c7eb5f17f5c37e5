"""Classes of earlier ingests that no sample has any more. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from flows.landing.ids import names_classes
from flows.manifest import is_tags_target
from flows.records import Sample
from flows.words import counted, first_of
from heads.tasks.bio import read_cell, types_in
from heads.tasks.names import split_labels

MAX_SHOWN = 5


def vanished(earlier: Sequence[Sample], samples: Sequence[Sample]) -> tuple[str, ...]:
    """A warning that names the classes, labels and types of tags that earlier samples had and no sample has any more."""
    gone = [
        f"{name!r} of {target}"
        for target in (earlier[0].labels if earlier else ())
        if names_classes(earlier, target) or is_tags_target(earlier, target)
        for name in sorted(_names(earlier, target) - _names(samples, target))
    ]
    if not gone:
        return ()
    have = counted(len(gone), "class has", "classes have")
    return (f"{have} no sample any more: {first_of(gone, MAX_SHOWN)}; models trained from now on will not know them",)


def _names(samples: Iterable[Sample], target: str) -> set[str]:
    samples = list(samples)
    cells = {cell for sample in samples if (cell := sample.labels.get(target)) is not None}
    read = (types_in(read_cell(cell)) for cell in cells) if is_tags_target(samples, target) else map(split_labels, cells)
    return {name for names in read for name in names}
