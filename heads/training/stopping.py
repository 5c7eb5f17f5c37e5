"""When a training ends, and why."""

from __future__ import annotations

from heads.phases import Phase
from heads.spec import Fit
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
