"""When a training ends, and why."""

from __future__ import annotations

import math
from collections.abc import Mapping

from heads.errors import TrainingDiverged
from heads.phases import Phase
from heads.spec import Fit
from heads.training.metrics import MetricTotals
from heads.training.schedule import Score


def why_ended(fit: Fit, last_phase: Phase, num_epochs: int, best_index: int, best_score: Score) -> str | None:
    """Why a training has ended, or None: all epochs are done, or `fit.patience` of the last phase in a row were no better."""
    if num_epochs >= fit.epochs:
        return f"all {fit.epochs} epochs are done"
    if fit.patience and num_epochs - max(best_index + 1, last_phase.first_epoch) >= fit.patience:
        return (
            f"stopped after {num_epochs} of {fit.epochs} epochs: none of the last {fit.patience} validated better than "
            f"epoch {best_index} (score {best_score[0]:.4f}), and patience is {fit.patience}"
        )
    return None


def check_finite(fit: Fit, epoch: int, totals: Mapping[str, MetricTotals]) -> None:
    """Raises TrainingDiverged if the loss of a target is not finite."""
    for target, total in totals.items():
        if not math.isfinite(total.loss_sum):
            raise TrainingDiverged(
                f"training diverged in epoch {epoch}: the loss of {target!r} is {total.loss_sum}; "
                f"lower learning_rate, now {fit.learning_rate:g}"
            )
