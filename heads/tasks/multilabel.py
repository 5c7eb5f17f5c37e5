"""The task of label sets: any number of several labels for an image, each yes or no."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from heads.data.labels import MISSING_LABEL, has_label
from heads.data.masks import OpenMask
from heads.spec import Fit, Head
from heads.tasks import classifiers, single_choice
from heads.tasks import measures as sample_measures
from heads.tasks.answers import Extent, Labels, ReadMask, probability_table
from heads.tasks.names import listed, split_labels
from heads.tasks.rows import Scored
from heads.tasks.temperature import log_odds, of_labels
from heads.tasks.thresholds import EVEN, decide, tune_thresholds

# However rare or common a label is in train, its positives weigh at most this, and at least the inverse of it.
MOST_WEIGHT = 100.0

taps, build_head = classifiers.taps, classifiers.build_head


@dataclass(frozen=True, eq=False)
class Criterion:
    """The loss that a training minimises for one target: the mean binary cross entropy of a sample's labels, in nats.

    `gamma` above 0 makes it focal: each term times (1 - the probability of the truth) ** gamma. `positive_weights` (C)
    multiply the terms of labels that are there; `label_smoothing` spreads that share of a label evenly over yes and no.
    """

    by_row: ClassVar[bool] = False
    gamma: float = 0.0
    label_smoothing: float = 0.0
    positive_weights: Tensor | None = None

    def losses(self, logits: Tensor, labels: Tensor) -> Tensor:
        """The loss of each sample (N), 0 if its labels are missing."""
        logits, known = logits.float(), has_label(labels)
        truths = labels.clamp(min=0).to(logits.dtype) * (1 - self.label_smoothing) + self.label_smoothing / 2
        yes = truths * F.softplus(-logits) * logits.neg().sigmoid() ** self.gamma
        no = (1 - truths) * F.softplus(logits) * logits.sigmoid() ** self.gamma
        terms = no + (yes if self.positive_weights is None else yes * self.positive_weights)
        return terms.mean(dim=1) * known


PLAIN = Criterion()


def criterion_of(fit: Fit, counts: Tensor, num_samples: int, device: torch.device) -> Criterion:
    """The criterion, on `device`, of a target whose labels occur `counts` (C) times in `num_samples` samples of train.

    Balanced weights are each label's negatives over its positives, 1 for a label that never occurs, and between 1/100 and 100.
    Focal is that of Lin et al., "Focal Loss for Dense Object Detection", ICCV 2017, with their gamma of 2 and no alpha.
    """
    weights = _balanced(counts, num_samples).float().to(device) if fit.class_weights == "balanced" else None
    return Criterion(single_choice.FOCAL_GAMMA if fit.loss == "focal" else 0.0, fit.label_smoothing, weights)


def _balanced(counts: Tensor, num_samples: int) -> Tensor:
    positives = counts.double()
    ratios = ((num_samples - positives) / positives).clamp(1 / MOST_WEIGHT, MOST_WEIGHT)
    return torch.where(positives > 0, ratios, 1.0)


@torch.no_grad()
def start_head(net: nn.Module, fit: Fit, counts: Tensor, num_samples: int) -> None:
    """Let a new head tell each label, of whatever sample, with the chance by which it occurs `counts` (C) times in the samples.

    From one half for all, a training on hundreds of rare labels spends its steps on learning that they are rare; Lin et al. 2017,
    section 3.3, start so, too. With balanced weights that chance is one half, and a `cosine` head has no bias to set.
    """
    assert isinstance(net, nn.Sequential), "a head of labels is a pooling and layers"
    if isinstance(net[-1], nn.Linear):
        positives, weights = counts.double(), _balanced(counts, num_samples) if fit.class_weights == "balanced" else 1.0
        # One more of each than there are: no label is impossible.
        net[-1].bias.copy_(((positives * weights + 1) / (num_samples - positives + 1)).log())


def count(logits: Tensor, labels: Tensor, weights: Tensor) -> Tensor:
    """True and false positives, false and true negatives of each label at even odds, then the exact matches: (4 * C + 1), of a
    stack (V, N, C) as (V, 4 * C + 1)."""
    # A probability is at least one half just where its logit is at least 0.
    return _count(logits >= 0, labels > 0, has_label(labels) & (weights > 0))


def score(logits: Tensor, labels: Tensor, weights: Tensor) -> Tensor:
    """Each sample's truths, then its probabilities (N, C + C)."""
    truths = torch.where((weights > 0)[:, None], labels, MISSING_LABEL).float()
    return torch.cat([truths, activate(logits.detach())], dim=1)


def measures(counts: Tensor, scores: Tensor | None) -> dict[str, float]:
    """Every measure: of `scores` at thresholds tuned on these very rows, or else those that counts at even odds give."""
    return measures_of_each(counts[None], None if scores is None else scores[None])[0]


def measures_of_each(counts: Tensor, scores: Tensor | None) -> list[dict[str, float]]:
    """The `measures` of several models on the same samples, from counts (V, 4 * C + 1) and scores (V, N, 2 * C)."""
    found = _from_counts(counts) if scores is None else measures_at(scores, tune_thresholds(scores))
    return sample_measures.of_each(found)


def measures_at(scores: Tensor, thresholds: Tensor) -> dict[str, Tensor]:
    """Every measure (...) from the rows (..., N, 2 * C) of labelled samples, with labels predicted at thresholds (..., C).

    As scikit-learn has them with zero_division=0: `accuracy` is the share of samples whose labels are all right; `auroc` and
    `average_precision` are the mean over the labels they are defined for. `ece` and `brier` take each label of each sample as
    one yes or no: calibration in 15 bins by the probability of what is likelier (see `heads.tasks.measures`), and the mean
    squared distance to the truth.
    """
    truths, probabilities = scores.chunk(2, dim=-1)
    all_rows = torch.ones(scores.shape[-2], dtype=torch.bool, device=scores.device)
    counted = _from_counts(_count(decide(probabilities, thresholds), truths > 0, all_rows))
    return counted | _from_scores(probabilities.double(), truths > 0) if len(all_rows) else counted


def confusion(counts: Tensor) -> None:
    """None: sets of labels have no table of true and predicted classes."""


def temperatures(scores: Tensor) -> Sequence[float | None]:
    """The one temperature of all labels' logits of each model, from its rows (V, N, 2 * C)."""
    truths, probabilities = scores.chunk(2, dim=-1)
    return of_labels(log_odds(probabilities), truths > 0)


def thresholds(scores: Tensor, temperature: float = 1.0) -> list[float]:
    """The probability from which on each label is predicted: see `tune_thresholds`, whose decisions no temperature changes."""
    tuned = tune_thresholds(scores)
    found: list[float] = (tuned if temperature == 1 else (log_odds(tuned) / temperature).sigmoid()).tolist()
    return found


def activate(logits: Tensor) -> Tensor:
    """Every label's probability (N, C)."""
    # Converted only if need be: by the conversion torch.export would tie a program to a device.
    return (logits if logits.dtype == torch.float32 else logits.float()).sigmoid()


def encode(cells: Sequence[str | None], names: Sequence[str], open_mask: OpenMask) -> Tensor:
    """A row a cell (N, C): 1 if the label is in it, else 0; MISSING_LABEL throughout if the cell is empty."""
    numbers = {name: number for number, name in enumerate(names)}
    table = torch.full((len(cells), len(names)), MISSING_LABEL, dtype=torch.int64)
    for row, cell in enumerate(cells):
        if cell is not None:
            table[row] = 0
            table[row, [numbers[name] for name in split_labels(cell) if name in numbers]] = 1
    return table


def answer(names: Sequence[str], logits: Tensor, extent: Extent, thresholds: Sequence[float] | None = None) -> Labels:
    """The labels of one image whose probability, by its logits (C), reaches their threshold."""
    row, least = activate(logits[None])[0].tolist(), thresholds or [EVEN] * len(names)
    chosen = tuple(name for name, x, t in zip(names, row, least, strict=True) if x >= t)
    return Labels(chosen, dict(zip(names, row, strict=True)))


def judge(digest: str, answer: Labels, truth: str, head: Head, read_mask: ReadMask) -> Scored:
    """The answer and the true labels as a row."""
    sure = min((max(x, 1 - x) for x in answer.probabilities.values()), default=0.0)
    return Scored(digest, head.target, "|".join(split_labels(truth)), "|".join(sorted(answer.labels)), sure, answer.probabilities)


def measure_rows(rows: Sequence[Scored], names: Sequence[str], thresholds: Sequence[float] | None) -> dict[str, float]:
    """Every measure of scored answers at the model's thresholds; labels that it does not know it never predicts."""
    least = dict(zip(names, thresholds or [EVEN] * len(names), strict=True))
    truths = [set(row.truth.split("|")) - {""} for row in rows]
    known = sorted({*names, *(name for there in truths for name in there)})
    table = torch.tensor([[float(name in there) for name in known] for there in truths], dtype=torch.float64)
    probabilities = probability_table(rows, known)
    bounds = torch.tensor([least.get(name, 2.0) for name in known], dtype=torch.float64)
    measured = measures_at(torch.cat([table, probabilities], dim=1), bounds)
    chances = torch.where(table > 0, probabilities, 1 - probabilities).clamp(min=single_choice.LEAST_PROBABILITY)
    return {**sample_measures.as_floats(measured), "loss": -chances.log().mean().item()}


def class_measures(confusion: Sequence[Sequence[int]], names: Sequence[str]) -> dict[str, float]:
    """Empty: sets of labels have no confusion."""
    return {}


def describe(head: Head, names: Sequence[str], thresholds: Sequence[float] | None) -> str:
    """The head's labels and thresholds, in a card's words."""
    labels = [f"{name} ({x:.3f})" for name, x in zip(names, thresholds, strict=True)] if thresholds else list(names)
    since = "the probability in brackets" if thresholds else f"a probability of {EVEN}"
    return f"{len(names)} labels, each told from {since} on: {listed(labels)}"


def _count(guessed: Tensor, there: Tensor, counted: Tensor) -> Tensor:
    """The counts (..., 4 * C + 1) of guesses (..., N, C) and truths of the samples that are `counted` (N)."""
    cells = torch.stack([guessed & there, guessed & ~there, ~guessed & there, ~guessed & ~there], dim=-3) & counted[:, None]
    matches = (guessed == there).all(dim=-1) & counted
    return torch.cat([cells.sum(dim=-2).flatten(-2), matches.sum(dim=-1, keepdim=True)], dim=-1).double()


def _from_counts(counts: Tensor) -> dict[str, Tensor]:
    hits, false_alarms, misses, rejections = counts[..., :-1].double().chunk(4, dim=-1)
    num_samples = (hits + false_alarms + misses + rejections)[..., 0]
    truths, guesses = hits + misses, hits + false_alarms
    divided = sample_measures.zero_divided
    f1 = divided(2 * hits, truths + guesses)
    measured = {
        "accuracy": counts[..., -1].double() / num_samples,
        "f1_macro": f1.mean(dim=-1),
        "f1_micro": divided(2 * hits.sum(dim=-1), (truths + guesses).sum(dim=-1)),
        "f1_weighted": divided((f1 * truths).sum(dim=-1), truths.sum(dim=-1)),
        "precision_macro": divided(hits, guesses).mean(dim=-1),
        "recall_macro": divided(hits, truths).mean(dim=-1),
    }
    return {name: torch.where(num_samples > 0, value, torch.nan) for name, value in measured.items()}


def _from_scores(probabilities: Tensor, there: Tensor) -> dict[str, Tensor]:
    # Class 0 is "there", so that it is the prediction at even odds, as at a threshold of one half.
    sides = torch.stack([probabilities, 1 - probabilities], dim=-1).flatten(-3, -2)
    return {
        **sample_measures.from_ranks(probabilities, there),
        "ece": sample_measures.calibration_error(sides, (~there).long().flatten(-2)),
        "brier": (probabilities - there.double()).square().mean(dim=(-2, -1)),
    }
