"""When a training ends, and why."""

from __future__ import annotations

from heads.freezing import Phase
from heads.schedule import Score
from heads.spec import Fit


def why_ended(fit: Fit, last_phase: Phase, num_epochs: int, best_index: int, best_score: Score) -> str | None:
    """That all epochs are done, or that the last phase has brought nothing better for `fit.patience` of them; else None."""
    if num_epochs >= fit.epochs:
        return f"all {fit.epochs} epochs are done"
    if fit.patience and num_epochs - max(best_index + 1, last_phase.first_epoch) >= fit.patience:
        return (
            f"stopped after {num_epochs} of {fit.epochs} epochs: none of the last {fit.patience} validated better than "
            f"epoch {best_index} (mean accuracy {best_score[0]:.4f}), and patience is {fit.patience}"
        )
    return None
