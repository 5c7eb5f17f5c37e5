"""The classification head: one class label out of several for an image."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from heads.backbones import Backbone
from heads.data.labels import MISSING_LABEL
from heads.spec import Activation, Fit, Head
from heads.tasks import measures as sample_measures

PRIMARY = "accuracy"
COSINE_SCALE = 10.0
COSINE_SPREAD = 0.1
FOCAL_GAMMA = 2.0


class PooledNorm(nn.Module):
    """Features to descriptors (N, C): maps (N, C, H, W) by the mean over positions, tokens (N, 1 + L, C) by their class
    token, as the backbones' own classifiers do; then normalised over channels.

    Backbones end at very different loudness, and a frozen one is read for a few dozen steps only. With this norm and a
    classifier that starts near zero, `linear` read frozen MobileNetV2 on three pet breeds after 32 AdamW steps at 1e-3
    with 0.976 accuracy (worst of 8 seeds 0.973), against 0.961 (0.946) for a bare nn.Linear; SqueezeNet gained 0.08.
    Batch statistics gained less, fail on a batch of one and let padding in.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(channels, elementwise_affine=False)

    def forward(self, features: Tensor) -> Tensor:
        normed: Tensor = self.norm(_pooled(features))
        return normed


def _pooled(features: Tensor) -> Tensor:
    if features.ndim == 3:
        return features[:, 0]
    # Stored features are pooled already: a mean over one position takes as long as the layer after it.
    return features.flatten(1) if features.shape[2:] == (1, 1) else features.mean(dim=(2, 3))


class AttentionPool(nn.Module):
    """Features to normalised descriptors (N, C): the mean over a map's positions, or patch tokens, weighted by a learned query.

    Attention pooling after Ilse et al., "Attention-based Deep Multiple Instance Learning", ICML 2018, with the dot product of
    the query and each position's normalised features as its score. A query of zeros weighs all alike: it starts as a mean.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(channels, elementwise_affine=False)
        self.query = nn.Parameter(torch.zeros(channels))

    def weigh(self, positions: Tensor) -> Tensor:
        """The weight of each position of (N, L, C), as (N, L): 0 or more, 1 in sum over an image."""
        scores = (self.norm(positions) * self.query).sum(dim=-1) / self.query.numel() ** 0.5
        weights: Tensor = scores.softmax(dim=1)
        return weights

    def forward(self, features: Tensor) -> Tensor:
        positions = _positions(features)
        normed: Tensor = self.norm((positions * self.weigh(positions).unsqueeze(-1)).sum(dim=1))
        return normed


class AttentionHead(nn.Sequential):
    """Attention pooling and a linear classifier."""

    def __init__(self, channels: int, num_classes: int) -> None:
        super().__init__(AttentionPool(channels), _classifier(channels, num_classes))

    def attention(self, features: Tensor) -> Tensor:
        """Where the head looks: weights (N, H, W) that sum to 1 over an image; tokens come from a square of patches."""
        pool = self[0]
        assert isinstance(pool, AttentionPool)
        weights = pool.weigh(_positions(features))
        height, width = features.shape[2:] if features.ndim == 4 else (math.isqrt(weights.shape[1]),) * 2
        return weights.reshape(-1, height, width)


def _positions(features: Tensor) -> Tensor:
    """Maps (N, C, H, W) or tokens with a class token first (N, 1 + L, C) as positions (N, L, C)."""
    return features[:, 1:] if features.ndim == 3 else features.flatten(2).transpose(1, 2)


class CosineClassifier(nn.Module):
    """Descriptors (N, C) to logits: their cosine with each class's prototype, times a learned scale (an inverse temperature).

    After Gidaris & Komodakis, "Dynamic Few-Shot Visual Learning without Forgetting", CVPR 2018. The prototypes start close to
    one random direction, so that a new head favours no class.
    """

    def __init__(self, channels: int, num_classes: int) -> None:
        super().__init__()
        directions = torch.randn(1, channels) + COSINE_SPREAD * torch.randn(num_classes, channels)
        self.weight = nn.Parameter(F.normalize(directions, dim=1))
        self.log_scale = nn.Parameter(torch.tensor(COSINE_SCALE).log())

    def forward(self, descriptors: Tensor) -> Tensor:
        cosines = F.linear(F.normalize(descriptors, dim=1), F.normalize(self.weight, dim=1))
        return cosines * self.log_scale.exp()


def _linear(fit: Fit, channels: int, num_outputs: int) -> nn.Sequential:
    return nn.Sequential(PooledNorm(channels), _classifier(channels, num_outputs))


def _mlp(fit: Fit, channels: int, num_outputs: int) -> nn.Sequential:
    widths = [channels, *[fit.mlp_width] * fit.mlp_depth]
    hidden = [
        layer
        for before, after in pairwise(widths)
        for layer in (nn.Linear(before, after), ACTIVATIONS[fit.mlp_activation](), nn.Dropout(fit.mlp_dropout))
    ]
    return nn.Sequential(PooledNorm(channels), *hidden, _classifier(fit.mlp_width, num_outputs))


def _attention(fit: Fit, channels: int, num_outputs: int) -> nn.Sequential:
    return AttentionHead(channels, num_outputs)


def _cosine(fit: Fit, channels: int, num_outputs: int) -> nn.Sequential:
    return nn.Sequential(PooledNorm(channels), CosineClassifier(channels, num_outputs))


def _classifier(channels: int, num_outputs: int) -> nn.Linear:
    layer = nn.Linear(channels, num_outputs)
    nn.init.normal_(layer.weight, std=1e-3)
    nn.init.zeros_(layer.bias)
    return layer


ACTIVATIONS: Mapping[Activation, type[nn.Module]] = {"gelu": nn.GELU, "relu": nn.ReLU, "silu": nn.SiLU}
DESIGNS: Mapping[str, Callable[[Fit, int, int], nn.Sequential]] = {
    "linear": _linear,
    "mlp": _mlp,
    "attention": _attention,
    "cosine": _cosine,
}


def build_net(design: str, fit: Fit, channels: int, num_outputs: int) -> nn.Module:
    """A net from feature maps (N, `channels`, H, W) or tokens (N, 1 + L, `channels`) to numbers (N, `num_outputs`)."""
    return DESIGNS[design](fit, channels, num_outputs)


def taps(design: str, backbone: Backbone) -> tuple[int, ...]:
    """The last stage alone, whatever the design."""
    return (len(backbone.channels) - 1,)


def build_head(head: Head, fit: Fit, backbone: Backbone, num_classes: int) -> nn.Module:
    """A head from the last stage's features to logits (N, `num_classes`)."""
    return build_net(head.design, fit, backbone.channels[-1], num_classes)


@dataclass(frozen=True, eq=False)
class Criterion:
    """What a training minimises for one target: cross entropy in nats, or what the fit settings make of it.

    `gamma` above 0 makes it focal: each class's term times (1 - its probability) ** gamma. `class_weights` multiply the
    terms of their classes (0 for classes beyond them); `label_smoothing` spreads that share of a label evenly over all classes.
    """

    gamma: float = 0.0
    label_smoothing: float = 0.0
    class_weights: Tensor | None = None

    @property
    def by_row(self) -> bool:
        """Whether a sample's loss and its gradient are, to the bit, what they are beside any other samples."""
        return not self.gamma

    def losses(self, logits: Tensor, labels: Tensor) -> Tensor:
        """The loss of each sample (N), 0 where the label is missing."""
        num_classes, smoothing, weights = logits.shape[1], self.label_smoothing, self.class_weights
        if weights is not None:
            weights = F.pad(weights, (0, num_classes - len(weights)))
        if not self.gamma:
            return F.cross_entropy(
                logits, labels, weights, ignore_index=MISSING_LABEL, reduction="none", label_smoothing=smoothing
            )
        logs = logits.log_softmax(dim=1)
        truths = F.one_hot(labels.clamp(min=0), num_classes) * (1 - smoothing) + smoothing / num_classes
        terms = truths * -logs * (-torch.expm1(logs)) ** self.gamma
        return (terms if weights is None else terms * weights).sum(dim=1) * (labels != MISSING_LABEL)


PLAIN = Criterion()


def criterion_of(fit: Fit, counts: Tensor, num_samples: int, device: torch.device) -> Criterion:
    """The criterion, on `device`, of a target whose classes (C) occur `counts` times in the whole train split.

    Balanced class weights are inverse to how often a class occurs there, with a mean of 1 over its labels (scikit-learn's
    `balanced`; 0 for a class that never occurs). Focal is that of Lin et al., "Focal Loss for Dense Object Detection", ICCV
    2017, with their gamma of 2; smoothing that of Szegedy et al., "Rethinking the Inception Architecture", CVPR 2016.
    """
    weights = balanced_weights(counts).to(device) if fit.class_weights == "balanced" else None
    return Criterion(FOCAL_GAMMA if fit.loss == "focal" else 0.0, fit.label_smoothing, weights)


def balanced_weights(counts: Tensor) -> Tensor:
    """A weight a class, float32 (C): inverse to its count, with a mean of 1 over all that is counted; 0 for a count of 0."""
    counts = counts.double()
    shares = counts.sum() / ((counts > 0).sum() * counts)
    return torch.where(counts > 0, shares, 0.0).float()


def count(logits: Tensor, labels: Tensor, weights: Tensor) -> Tensor:
    """The confusion (true class, predicted class) of a batch as one row (C * C)."""
    num_classes = logits.shape[1]
    cells = labels.clamp(min=0) * num_classes + logits.argmax(dim=1)
    counted = (weights * (labels != MISSING_LABEL)).double()
    return torch.zeros(num_classes**2, dtype=torch.float64, device=logits.device).index_add_(0, cells, counted)


def score(logits: Tensor, labels: Tensor, weights: Tensor) -> Tensor:
    """The true class and every class's probability of each sample (N, 1 + C)."""
    truths = torch.where(weights > 0, labels, MISSING_LABEL).float()
    return torch.cat([truths[:, None], activate(logits.detach())], dim=1)


def measures(counts: Tensor, scores: Tensor | None) -> dict[str, float]:
    """Every measure, those of probabilities only where `scores` were kept."""
    counted = sample_measures.from_counts(_table(counts))
    return counted if scores is None else counted | sample_measures.from_scores(scores[:, 1:], scores[:, 0].long())


def confusion(counts: Tensor) -> list[list[int]]:
    """Counts (true class, predicted class)."""
    table: list[list[int]] = _table(counts).round().long().tolist()
    return table


def thresholds(scores: Tensor) -> None:
    """None: the likeliest class is meant."""


def activate(logits: Tensor) -> Tensor:
    """Every class's probability (N, C), 1 in sum."""
    return logits.softmax(dim=1, dtype=torch.float32)


def _table(counts: Tensor) -> Tensor:
    num_classes = round(len(counts) ** 0.5)
    return counts.reshape(num_classes, num_classes)
