"""Predictions as values: an answer a target, a reading a sample."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from flows.stages.predicting.asked import Unread

if TYPE_CHECKING:
    from heads.tasks.answers import TextSpan


@dataclass(frozen=True)
class ClassAnswer:
    """The predicted class, and its probability."""

    label: str
    probability: float


@dataclass(frozen=True)
class LabelsAnswer:
    """The predicted set of labels, and the probability of every label."""

    labels: tuple[str, ...]
    probabilities: Mapping[str, float]


@dataclass(frozen=True)
class MaskAnswer:
    """The file of the predicted mask, None if it was not written, and each class's share of its pixels."""

    mask: str | None
    shares: Mapping[str, float]


@dataclass(frozen=True)
class TagsAnswer:
    """The words of a text, the tag of each, and the spans that these mark."""

    words: tuple[str, ...]
    tags: tuple[str, ...]
    spans: tuple[TextSpan, ...]


Answered = ClassAnswer | LabelsAnswer | MaskAnswer | TagsAnswer


@dataclass(frozen=True)
class Reading:
    """The predictions for one sample, by target; `file` is its file, its line of a CSV, or a text itself."""

    file: str
    answers: Mapping[str, Answered]


@dataclass(frozen=True)
class Readings:
    """The predictions in the order of what was asked, and between them what of folders and CSV files cannot be read."""

    told: tuple[Reading | Unread, ...]
    warnings: tuple[str, ...] = ()

    @property
    def rows(self) -> list[Reading]:
        """The predictions alone."""
        return [each for each in self.told if isinstance(each, Reading)]

    @property
    def unread(self) -> list[Unread]:
        """What cannot be read."""
        return [each for each in self.told if isinstance(each, Unread)]
