"""The probe of a frozen trunk: logistic regression on its features, as the weights of a model's linear head.

It is what features hold without any training of ours (Alain and Bengio, "Understanding intermediate layers using linear
classifier probes", ICLR 2017 workshop): no rate, no epochs and no seed, so that it shows where a training loses what was there.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from heads.catalogue import TASK_FACTS
from heads.data.labels import has_label
from heads.distributed import single_process
from heads.errors import TrainingDiverged
from heads.model.model import Model
from heads.training.logistic import fit_logistic, logits_of
from heads.training.metrics import MetricAccumulator, epoch_score, named_measures, temperatures, thresholds

# From the strongest to the weakest: for descriptors whose channels have a variance of 1, one of them is about right.
PENALTIES = (10.0, 1.0, 0.1, 0.01, 0.001)


class Block(NamedTuple):
    """Stored features of some samples, by the number of their stage, and the samples' labels of the one target."""

    features: Mapping[int, Tensor]
    labels: Tensor


@dataclass(frozen=True)
class FittedProbe:
    """A probe: its measures (`val/<target>/<measure>`), thresholds and temperatures by target, as of a trained variant.

    `penalty` is the one that validation chose, `num_samples` are the labelled samples that the probe was fitted on.
    """

    metrics: dict[str, float]
    thresholds: dict[str, list[float]]
    temperatures: dict[str, float]
    penalty: float
    num_samples: int


def fit_probe(model: Model, train: Iterable[Block], val: Iterable[Block]) -> FittedProbe:
    """Fit the only head of a model, a linear one of classes or labels, on stored features, and leave the weights in it.

    Of a short list of penalties the one is taken that is best on validation, as of a training's epochs: by the task's primary
    measure, then by the lower loss, then the stronger one. Samples without a label count for nothing. Raises TrainingDiverged
    if no training sample has a label, or features are not finite.
    """
    (target,) = model.targets
    task, (stage,) = model.tasks[target], model.taps[target]
    norm, classifier = model.heads[model.head_keys[target]].children()
    assert isinstance(classifier, nn.Linear), "a probe is a linear head"

    def describe(block: Block) -> tuple[Tensor, Tensor]:
        known = has_label(block.labels)
        descriptors: Tensor = norm(block.features[stage][known.to(block.features[stage].device)].float())
        return descriptors, block.labels[known].to(descriptors.device)

    with torch.no_grad(), single_process():
        described = list(map(describe, train))
        if not sum(len(told) for _, told in described):
            raise TrainingDiverged(f"no training sample has a label of {target!r}, so that there is nothing to fit a probe on")
        inputs, labels = (torch.cat(parts) for parts in zip(*described, strict=True))
        if not inputs.isfinite().all():
            raise TrainingDiverged("the stored features are not all finite, so that no probe can be fitted on them")
        exclusive = TASK_FACTS[task].tells == "class"
        truths = F.one_hot(labels, classifier.out_features) if exclusive else labels
        path = fit_logistic(inputs, truths, PENALTIES, exclusive=exclusive)
        measured = [MetricAccumulator({target: task}, keeps_scores=True) for _ in path]
        for descriptors, told in map(describe, val):
            for accumulator, weights in zip(measured, path, strict=True) if len(told) else ():
                logits = {target: logits_of(descriptors, weights)}
                accumulator.add(logits, {target: told}, torch.ones(len(told), device=told.device))
        totals = [accumulator.totals() for accumulator in measured]
        best = max(range(len(path)), key=lambda place: (epoch_score(totals[place]), -place))
        classifier.weight.copy_(path[best][:, :-1])
        classifier.bias.copy_(path[best][:, -1])
    return FittedProbe(
        {f"val/{name}": value for name, value in named_measures(totals[best]).items()},
        thresholds(totals[best]),
        temperatures(totals[best]),
        PENALTIES[best],
        len(inputs),
    )
