"""Logistic regression on descriptors, in float64, to its minimum: nothing is random, and no rate has to be chosen."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from heads.training.optimizer import leave_compiler_out

# The greatest slope at which a minimum counts as found, and the most steps on the way there.
TOLERANCE = 1e-5
MAX_STEPS = 1000
HISTORY = 10


def fit_logistic(descriptors: Tensor, truths: Tensor, penalties: Sequence[float], *, exclusive: bool) -> list[Tensor]:
    """The weights (C, D + 1), biases last, for each penalty: from descriptors (N, D) to logits of C classes or labels.

    They minimise the mean cross entropy of N samples in nats, plus half the penalty times the sum of all squared weights, biases
    among them: so there is one minimum, also where a class never occurs or descriptors part all classes. If `exclusive`, a
    sample has one class and its cross entropy is that of a softmax; else it is the sum over C labels, each yes or no as
    `truths` (N, C) says, zeros and ones. It is scikit-learn's LogisticRegression with a column of ones in place of an intercept
    and C = 1 / (penalty * N), twice that for two classes, of which it penalises one. Found by L-BFGS (Liu and Nocedal 1989,
    Math. Program. 45:503-528), for each penalty from the weights of the one before: the list begins with the strongest.
    """
    inputs = F.pad(descriptors.double(), (0, 1), value=1.0)
    wanted = truths.double()
    weights = torch.zeros(truths.shape[1], inputs.shape[1], dtype=torch.float64, device=inputs.device)
    path = []
    for penalty in penalties:
        weights = _minimise(inputs, wanted, penalty, weights, exclusive=exclusive)
        path.append(weights)
    return path


def logits_of(descriptors: Tensor, weights: Tensor) -> Tensor:
    """The logits (N, C) of descriptors (N, D) by weights of `fit_logistic`, in the arithmetic of the descriptors."""
    own = weights.to(descriptors)
    return F.linear(descriptors, own[:, :-1], own[:, -1])


def _minimise(inputs: Tensor, truths: Tensor, penalty: float, start: Tensor, *, exclusive: bool) -> Tensor:
    weights = start.clone()
    leave_compiler_out()
    optimizer = torch.optim.LBFGS(
        [weights],
        max_iter=MAX_STEPS,
        tolerance_grad=TOLERANCE,
        tolerance_change=0.0,
        history_size=HISTORY,
        line_search_fn="strong_wolfe",
    )

    # The slope is written down, so that autograd keeps nothing. Samples times classes are many: each is gone through few times.
    def evaluate() -> Tensor:
        logits = inputs @ weights.T
        fits = torch.vdot(truths.flatten(), logits.flatten())
        if exclusive:
            greatest = logits.amax(dim=1, keepdim=True)
            told = logits.sub_(greatest).exp_()
            sums = told.sum(dim=1, keepdim=True)
            told.div_(sums)
            entropy = (greatest + sums.log_()).sum() - fits
        else:
            entropy = F.softplus(logits).sum() - fits
            told = logits.sigmoid_()
        slope = told.sub_(truths).T @ inputs
        weights.grad = slope.div_(len(inputs)).add_(weights, alpha=penalty)
        return entropy / len(inputs) + penalty / 2 * weights.square().sum()

    optimizer.step(evaluate)  # type: ignore[no-untyped-call]
    return weights.detach()
