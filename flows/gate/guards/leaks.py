"""Whether pictures of the holdout are also among those that the candidate learned from or was ranked by."""

from __future__ import annotations

from flows.gate.case import Case
from flows.gate.evidence import Rows
from flows.records import Finding
from flows.words import counted
from heads.catalogue import TASK_FACTS

NUM_SHOWN = 3


def leaks(case: Case) -> Finding | None:
    """The test images that show the same picture as one of train or val; None if they were not looked for.

    Of classes, the words also say what the candidate gains on the samples that do not leak.
    """
    searched = case.trials.leaks
    if searched is None:
        return None
    num_leaks, num = len(searched.found), searched.num_samples
    figures = {"num_leaks": float(num_leaks), "num_samples": float(num)}
    small = f"{counted(searched.num_small, 'test image was', 'test images were')} too small to be compared with those of train"
    notes = (small,) if searched.num_small else ()
    if not searched.found:
        return Finding("leaks", True, f"none of {num} test images shows a picture of train or val", figures, notes)
    shown = [f"{leak.file} and {leak.twin} ({leak.split}, {leak.likeness:.2f})" for leak in searched.found[:NUM_SHOWN]]
    more = f" and {num_leaks - NUM_SHOWN} more" if num_leaks > NUM_SHOWN else ""
    rest = _gain_without(case, {leak.digest for leak in searched.found})
    words = (
        f"{counted(num_leaks, 'test image')} of {num} {'shows' if num_leaks == 1 else 'show'} a picture of train or val at "
        f"another size, quality or crop: {'; '.join(shown)}{more}"
    )
    if rest is not None:
        words += f"; on the other samples the candidate gains {rest:+.3f} in accuracy"
        figures["gain_without"] = rest
    return Finding("leaks", False, words, figures, notes)


def _gain_without(case: Case, leaked: set[str]) -> float | None:
    """The gain in accuracy on samples that do not leak; None without a champion, without such samples, or not of classes."""
    kept = [key for key in case.after if key[0] not in leaked]
    if not kept or not case.before or TASK_FACTS[case.task].tells != "class":
        return None

    def right(rows: Rows) -> int:
        return sum(rows[key].predicted == rows[key].truth for key in kept)

    return (right(case.after) - right(case.before)) / len(kept)
