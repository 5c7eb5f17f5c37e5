"""The history of a training: its epochs, the best of them, and whether it has ended."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from heads.phases import Phase
from heads.spec import Fit
from heads.training.schedule import Score
from heads.training.state import Best, Epoch, TrainingOutcome
from heads.training.stopping import why_ended


class History:
    """The epochs of a training and the best of them; `fit.patience` counts in the last phase alone."""

    def __init__(self, fit: Fit, last_phase: Phase) -> None:
        self._fit, self._last_phase = fit, last_phase
        self.epochs: list[Epoch] = []
        self._best: Best | None = None

    @property
    def best(self) -> Best:
        """The results and weights of the best epoch so far; there has to be one."""
        assert self._best is not None
        return self._best

    @property
    def ended(self) -> str | None:
        """Why the training has ended; None while it goes on."""
        if self._best is None:
            return None
        score = self.epochs[self._best.index].score
        return why_ended(self._fit, self._last_phase, len(self.epochs), self._best.index, score)

    @property
    def scores(self) -> list[Score]:
        """The scores of the epochs so far."""
        return [epoch.score for epoch in self.epochs]

    def add(self, epoch: Epoch, keep: Callable[[], Best], decide: Callable[[Epoch], tuple[str, ...]]) -> Epoch:
        """Adds an epoch, and gives it with its end or decisions: `keep` is called if it is the best so far, `decide` if it is not
        the last."""
        if self._best is None or epoch.score > self.epochs[self._best.index].score:
            self._best = keep()
        self.epochs.append(epoch)
        ended = self.ended
        self.epochs[-1] = replace(epoch, ended=ended, decisions=() if ended else decide(epoch))
        return self.epochs[-1]

    def go_back(self, epochs: tuple[Epoch, ...], best: Best) -> None:
        """Goes on from these epochs, as a resumed training does."""
        self.epochs, self._best = list(epochs), best

    def outcome(self, ended: str | None = None) -> TrainingOutcome:
        """The outcome after these epochs; `ended` says why they end before the training's own end."""
        ended = ended or self.ended
        assert ended is not None
        return TrainingOutcome(
            epochs=tuple(self.epochs),
            best_epoch=self.best.index,
            metrics=self.epochs[self.best.index].metrics,
            confusion=self.best.confusion,
            thresholds=self.best.thresholds,
            num_forwarded=sum(epoch.num_forwarded for epoch in self.epochs),
            ended=ended,
            temperatures=self.best.temperatures,
        )
