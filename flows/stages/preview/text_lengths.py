"""How much of a plan's texts its networks read, counted on some of them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from heapq import nsmallest
from time import monotonic
from typing import TYPE_CHECKING

from flows.records import Work
from flows.sample_files import locate
from flows.stages.values import WorkPlan

if TYPE_CHECKING:
    from heads.data.wordpiece import Vocabulary

# What is counted at most: texts, how long, and letters of one text, whose other ones have as many tokens.
MAX_TEXTS, MAX_SECONDS, MAX_LETTERS = 256, 2.0, 2**18
SPLITS = ("train", "val", "test")


@dataclass(frozen=True)
class CutTexts:
    """How many texts have more than the `max_tokens` that a backbone reads, and which share of all tokens it reads.

    Both are of `texts_counted` texts, drawn from all that are trained or measured on.
    """

    backbone: str
    max_tokens: int
    texts: int
    texts_counted: int
    texts_cut: int
    tokens_read_share: float


def count_cut_texts(work_plan: WorkPlan) -> tuple[CutTexts, ...]:
    """A row for each backbone and `max_tokens` of a plan of texts; none for backbones that learn their words in training.

    Raises TextError if a text cannot be read, and what `locate` raises.
    """
    if work_plan.version.modality != "text":
        return ()
    from heads.backbones.table import row_of

    works = {work.variant.backbone: work for work in work_plan.works if not row_of(work.variant.backbone).learns_words}
    num_texts = sum(sample.split in SPLITS for sample in work_plan.version.samples)
    rows = []
    for backbone, work in works.items():
        lengths = list(_lengths(work_plan, work))
        sizes = (other.variant.fit.max_tokens for other in work_plan.works if other.variant.backbone == backbone)
        for most in dict.fromkeys(sizes):
            share = sum(min(length, most) for length in lengths) / sum(lengths)
            cut = sum(length > most for length in lengths)
            rows.append(CutTexts(backbone, most, num_texts, len(lengths), cut, share))
    return tuple(rows)


def _lengths(work_plan: WorkPlan, work: Work) -> Iterator[int]:
    """The tokens of one text after another, in the order of their digests, which is a random one."""
    from heads.data.modalities import preparation_of
    from heads.data.text_preprocess import decode_text

    vocabulary = preparation_of(work.variant.backbone).vocabulary_of(work.variant, work.weights.path, [])
    assert vocabulary, "weights of texts have words"
    asked = (sample for sample in work_plan.version.samples if sample.split in SPLITS)
    end = monotonic() + MAX_SECONDS
    for number, sample in enumerate(nsmallest(MAX_TEXTS, asked, key=lambda sample: sample.digest)):
        if number and monotonic() > end:
            return
        yield _num_tokens(vocabulary, decode_text(locate(work_plan.version, sample)))


def _num_tokens(vocabulary: Vocabulary, text: str) -> int:
    counted = text[:MAX_LETTERS]
    return round(len(vocabulary.encode(counted, max_tokens=2 * len(counted) + 2)) * len(text) / len(counted))
