"""The task of tags: one tag a word of a text, which mark spans of words by the BIO scheme.

Logits of N sentences are (N, C, W), or of a chain (N, C, W, C) as in `heads.tasks.chains`; labels are of as many words or more,
MISSING_LABEL behind a sentence's last word, or throughout where its tags are not known. Words that the model does not read are
outside of spans: they count for measures, and nothing is learned of them.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from heads.backbones.row import Backbone
from heads.data.labels import MISSING_LABEL
from heads.data.masks import OpenMask
from heads.data.tags import Tags, true_tags
from heads.spec import Fit, Head
from heads.tasks import classifiers, single_choice
from heads.tasks.answers import Extent, ReadMask, TagsPrediction, TextSpan
from heads.tasks.bio import OUTSIDE, read_cell, spans_of, types_in, write_cell
from heads.tasks.chains import best_tags, chain_losses
from heads.tasks.classifiers import hidden_layers, new_classifier
from heads.tasks.names import listed
from heads.tasks.rows import Scored
from heads.tasks.spans import begin_spans, count_spans
from heads.tasks.taggers import ChainTagger, Tagger

taps = classifiers.taps
activate, thresholds, start_head = single_choice.activate, single_choice.thresholds, single_choice.start_head


def build_head(head: Head, fit: Fit, backbone: Backbone, num_classes: int) -> nn.Module:
    """A head from the last stage's features of words to scores of `num_classes` tags."""
    channels = backbone.channels[-1]
    if head.design == "mlp":
        return Tagger(channels, [*hidden_layers(fit, channels), new_classifier(fit.mlp_width, num_classes)])
    layers: list[nn.Module] = [new_classifier(channels, num_classes)]
    return ChainTagger(channels, num_classes, layers) if head.design == "crf" else Tagger(channels, layers)


@dataclass(frozen=True, eq=False)
class Criterion:
    """The loss that a training minimises for one target: the mean over a sentence's words that are read, in nats, so that every
    sentence counts alike. Of words by themselves it is that of `of_words`; of a chain the negative log probability of all tags,
    by the word."""

    by_row: ClassVar[bool] = False
    of_words: single_choice.Criterion = single_choice.PLAIN

    def losses(self, logits: Tensor, labels: Tensor) -> Tensor:
        """The loss of each sentence (N), 0 if its tags are not known."""
        labels = labels[:, : logits.shape[2]]
        known = labels > MISSING_LABEL
        if logits.ndim == 4:
            # A chain goes through words that are not read, outside of spans for certain; a span behind one begins anew.
            told = begin_spans(torch.where(known, labels, 0))
            sums = chain_losses(logits, told, labels != MISSING_LABEL) * known.any(dim=1)
        else:
            # Rows of words, which is what focal loss takes.
            words = self.of_words.losses(logits.transpose(1, 2).flatten(0, 1), labels.clamp(min=MISSING_LABEL).flatten())
            sums = words.reshape(labels.shape).sum(dim=1)
        return sums / known.sum(dim=1).clamp(min=1)


PLAIN = Criterion()


def criterion_of(fit: Fit, counts: Tensor, num_samples: int, device: torch.device) -> Criterion:
    """The criterion, on `device`, of a target whose tags (C) occur `counts` times in the train split.

    Class weights, label smoothing and focal terms are those of classification, a word for a sample. A chain has none of them.
    """
    return Criterion(single_choice.criterion_of(fit, counts, num_samples, device))


def decode(logits: Tensor, known: Tensor) -> Tensor:
    """The best tags (N, W) of sentences whose words are `known` (N, W)."""
    return best_tags(logits, known) if logits.ndim == 4 else logits.argmax(dim=1)


def count(logits: Tensor, labels: Tensor, weights: Tensor) -> Tensor:
    """One row: the confusion (true tag, predicted tag) of a batch's words (C * C), then the spans of `count_spans` (3 * T)."""
    num_tags, num_words, known = logits.shape[1], logits.shape[2], labels != MISSING_LABEL
    counted = known & (weights > 0)[:, None]
    # What does not count is outside of spans, in truth and answer, and so are in the answer words behind the logits.
    told = F.pad(decode(logits.float(), known[:, :num_words]), (0, labels.shape[1] - num_words))
    truths, guesses = torch.where(counted, true_tags(labels), 0), torch.where(counted, told, 0)
    cells = torch.where(counted, truths * num_tags + guesses, num_tags**2)
    confusion = torch.bincount(cells.flatten(), minlength=num_tags**2 + 1)[:-1].double()
    return torch.cat([confusion, count_spans(truths, guesses, num_tags // 2).flatten()])


def score(logits: Tensor, labels: Tensor, weights: Tensor) -> None:
    """None: spans are measured by counts alone."""


def temperatures(scores: Tensor) -> Sequence[float | None]:
    """None of each: tags are told without probabilities."""
    return [None] * len(scores)


def measures(counts: Tensor, scores: Tensor | None) -> dict[str, float]:
    """`span_f1`, `span_precision` and `span_recall` over all spans together, and `token_accuracy`; NaN of no words.

    A span counts if its words and its type are right, as in `conlleval` and in seqeval's default mode; 0 of no spans.
    """
    table, spans = _parts(counts)
    words = table.sum()
    found = _span_measures(spans.sum(dim=1)) if words else dict.fromkeys(SPAN_MEASURES, float("nan"))
    return {**found, "token_accuracy": (table.diagonal().sum() / words).item()}


SPAN_MEASURES = ("span_f1", "span_precision", "span_recall")


def _span_measures(sums: Tensor) -> dict[str, float]:
    """The measures of spans from how many there are in the truth, in the answer, and in both (3)."""
    truths, guesses, hits = sums.tolist()
    shares = (2 * hits, truths + guesses), (hits, guesses), (hits, truths)
    return {name: part / whole if whole else 0.0 for name, (part, whole) in zip(SPAN_MEASURES, shares, strict=True)}


def measures_of_each(counts: Tensor, scores: Tensor | None) -> list[dict[str, float]]:
    """The `measures` of several models from their counts (V, K)."""
    return [measures(row, None) for row in counts]


def _parts(counts: Tensor) -> tuple[Tensor, Tensor]:
    """The confusion (C, C) and the spans (3, T) of a summed `count`."""
    # Of T types there are C = 1 + 2 T tags, and so 4 T**2 + 7 T + 1 counts.
    num_types = round(((33 + 16 * len(counts)) ** 0.5 - 7) / 8)
    num_tags = 1 + 2 * num_types
    return counts[: num_tags**2].reshape(num_tags, num_tags), counts[num_tags**2 :].reshape(3, num_types)


def confusion(counts: Tensor) -> list[list[int]]:
    """Counts of words (true tag, predicted tag)."""
    return single_choice.confusion(_parts(counts)[0])


def encode(cells: Sequence[str | None], names: Sequence[str], open_mask: OpenMask) -> Tags:
    """The number of each word's tag; of a sentence with a type that is not among the names, none is known."""
    numbers: Mapping[str, int] = {name: number for number, name in enumerate(names)}
    tags = [None if cell is None else read_cell(cell) for cell in cells]
    known = [found if found and all(tag in numbers for tag in found) else None for found in tags]
    rows = [None if found is None else torch.tensor([numbers[tag] for tag in found]) for found in known]
    told = torch.cat([row for row in rows if row is not None] or [torch.zeros(0, dtype=torch.int64)])
    return Tags(rows, told.bincount(minlength=len(names)))


def answer(names: Sequence[str], logits: Tensor, extent: Extent, thresholds: Sequence[float] | None = None) -> TagsPrediction:
    """The best tags of one text's words, which are `extent`, by its logits (C, W), or of a chain (C, W, C); O where these end."""
    words = tuple(map(str, extent))
    if not words:
        return TagsPrediction((), (), ())
    cut = logits.float()[None, :, : len(words)]
    numbers = decode(cut, torch.ones(1, cut.shape[2], dtype=torch.bool, device=cut.device))[0].tolist()
    tags = (*(names[number] for number in numbers), *[OUTSIDE] * (len(words) - len(numbers)))
    spans = tuple(TextSpan(one.type, " ".join(words[one.start : one.end]), one.start, one.end) for one in spans_of(tags))
    return TagsPrediction(words, tags, spans)


def judge(digest: str, answer: TagsPrediction, truth: str, head: Head, read_mask: ReadMask) -> Scored:
    """The answer and the true tags as a row, with the spans that are right, missed, and too many, by type."""
    tags = read_cell(truth)
    true, told = set(spans_of(tags)), set(spans_of(answer.tags))
    pairs = Counter([(one.type, one.type) for one in true & told])
    pairs += Counter([(one.type, "") for one in true - told]) + Counter([("", one.type) for one in told - true])
    right = sum(one == other for one, other in zip(tags, answer.tags, strict=True))
    spans = tuple((*pair, number) for pair, number in sorted(pairs.items()))
    return Scored(digest, head.target, truth, write_cell(answer.tags), right / len(tags), {}, spans)


def measure_rows(rows: Sequence[Scored], names: Sequence[str], thresholds: Sequence[float] | None) -> dict[str, float]:
    """Every measure over the words and spans of scored answers, and `f1_<type>` of each type that occurs."""
    types = sorted({name for row in rows for pair in row.pixels for name in pair[:2]} - {""})
    number = {name: index for index, name in enumerate(types)}
    spans = torch.zeros(3, len(types), dtype=torch.float64)
    for row in rows:
        for true, told, times in row.pixels:
            for place, name in ((0, true), (1, told), (2, true if true == told else "")):
                if name:
                    spans[place, number[name]] += times
    sides = [(read_cell(row.truth), read_cell(row.predicted)) for row in rows]
    right = sum(one == other for truth, told in sides for one, other in zip(truth, told, strict=True))
    of_types = {f"f1_{name}": _span_measures(spans[:, index])["span_f1"] for name, index in number.items()}
    return {**_span_measures(spans.sum(dim=1)), "token_accuracy": right / sum(len(truth) for truth, _ in sides), **of_types}


def class_measures(confusion: Sequence[Sequence[int]], names: Sequence[str]) -> dict[str, float]:
    """Empty: a confusion of words does not say which spans are whole."""
    return {}


def describe(head: Head, names: Sequence[str], thresholds: Sequence[float] | None) -> str:
    """The types of spans, in a card's words."""
    types = sorted(types_in(names))
    return f"spans of {len(types)} types, told by tags of words (BIO): {listed(types)}"
