"""The plan's rules of promotion: by which measure, how sure, and which guards block or only warn."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal, Self

from pydantic import BeforeValidator, Field, field_validator, model_validator

from flows.plan.allowed import known
from flows.plan.fit import Number
from flows.records import Severity
from heads.catalogue import TASK_FACTS, Task
from heads.spec import Value

# The measures that may promote: all are better the higher they are.
MEASURES_OF: Mapping[Task, tuple[str, ...]] = {task: facts.promotable for task, facts in TASK_FACTS.items()}
MEASURES = tuple(dict.fromkeys(measure for measures in MEASURES_OF.values() for measure in measures))
# The measure that ranks and promotes if the plan names none.
PRIMARY: Mapping[Task, str] = {task: facts.primary for task, facts in TASK_FACTS.items()}
# The measures that new samples may decide: means over samples of values from 0 to 1.
FRESH_MEASURES = ("accuracy", "top5")
LOWER_IS_BETTER = ("loss", "ece", "brier")


def _severity(value: Any) -> Any:
    # YAML 1.1 reads the word off as false.
    return "off" if value is False else value


Chosen = Annotated[Severity, BeforeValidator(_severity)]


class Guards(Value):
    """What each guard of the gate may do besides the test itself: block a promotion, only warn, or nothing."""

    baseline: Chosen = Field("block", description="A first model that is worse than a logistic probe on frozen features.")
    worst_class: Chosen = Field("warn", description="A class or label that the candidate reads worse than the champion.")
    worst_group: Chosen = Field("warn", description="A group of samples that the candidate reads worse than the champion.")
    calibration: Chosen = Field("warn", description="Probabilities that are further from how often they are right.")
    negative_flips: Chosen = Field("warn", description="Samples that the champion read rightly and the candidate does not.")
    leaks: Chosen = Field("warn", description="Holdout pictures that also lie in train or val, at another size, quality or crop.")
    robustness: Chosen = Field("off", description="Accuracy under attacks and corruptions; costs minutes.")
    latency: Chosen = Field("warn", description="A candidate that takes longer to serve than the champion.")
    loads: Chosen = Field("block", description="A bundle that does not load, or answers otherwise, where it is served.")

    @property
    def severities(self) -> Mapping[str, Severity]:
        """What each guard may do, by its name."""
        return self.model_dump()


class Promotion(Value):
    """When the candidate becomes the champion."""

    metric: str | None = Field(
        None,
        description="`<column>/<measure>` to rank and promote by; empty: of the first target, accuracy for classes, "
        "average_precision for labels, miou for masks.",
    )
    min_gain: Annotated[float, Field(ge=0, le=1), Number] = Field(0.0, description="Smallest gain over the champion.")
    alpha: Annotated[float, Field(gt=0, lt=1), Number] = Field(
        0.05,
        description="The chance that a year of nightly challengers that are no better than the champion holds any promotion; "
        "of a first model, the level of its test against a constant answer. Classes are tested by McNemar's exact test of "
        "accuracy, labels and masks by a paired bootstrap of the measure.",
    )
    mode: Literal["superior", "non_inferior"] = Field(
        "superior",
        description="superior: the candidate must be better than the champion; non_inferior: not worse by `margin` or more than "
        "the last model that was promoted as superior, so that small losses cannot add up.",
    )
    margin: Annotated[float | None, Field(gt=0, lt=1), Number] = Field(
        None, description="With mode non_inferior: the loss in the measure that would be too much, such as 0.005."
    )
    evidence: Literal["holdout", "fresh"] = Field(
        "holdout",
        description="holdout: candidate and champion are tested on the test split; fresh: an earlier candidate and the champion "
        "on labels that arrived after both were made, for streams of a hundred labels a night and more.",
    )
    manual: bool = Field(
        False,
        description="Let a candidate that is proven wait for a person: headstart models approve, or the deployment approve.",
    )
    group: Annotated[str | None, BeforeValidator(lambda value: None if value == "" else value)] = Field(
        None, description="The manifest column whose cells are the groups of the guard worst_group; empty: the column group."
    )
    max_slowdown: Annotated[float, Field(ge=1, le=100), Number] = Field(
        1.5, description="How many times as long as with the champion a sample may take, before the guard latency says so."
    )
    guards: Guards = Field(Guards(), description="What each guard may do: block a promotion, only warn, or off.")

    @field_validator("metric")
    @classmethod
    def _known_measure(cls, value: str | None) -> str | None:
        if value is not None:
            column, _, measure = value.rpartition("/")
            if measure in LOWER_IS_BETTER:
                raise ValueError(f"metric {value!r} is better the lower it is, and cannot rank; allowed: {', '.join(MEASURES)}")
            known("measure", measure, MEASURES)
            if not column:
                raise ValueError(f"metric {value!r} names no target; write <column>/{measure}")
        return value

    @model_validator(mode="after")
    def _evidence_fits(self) -> Self:
        if self.evidence == "fresh":
            if self.mode != "superior":
                raise ValueError(f"evidence fresh only shows that a model is better; with mode {self.mode} use evidence holdout")
            refuse_unfit(self.metric)
        return self

    @model_validator(mode="after")
    def _margin_fits(self) -> Self:
        if self.mode == "non_inferior" and self.margin is None:
            raise ValueError("mode non_inferior needs a margin: the loss that would be too much, such as margin: 0.005")
        if self.mode == "non_inferior" and self.min_gain:
            raise ValueError(f"min_gain {self.min_gain:g} contradicts mode non_inferior; leave it out, or use mode superior")
        if self.mode == "superior" and self.margin is not None:
            raise ValueError(f"margin {self.margin:g} means nothing with mode superior; leave it out, or use mode non_inferior")
        return self


def refuse_unfit(metric: str | None) -> None:
    """Raise ValueError on a measure that new samples cannot decide."""
    if metric is not None and metric.rpartition("/")[2] not in FRESH_MEASURES:
        raise ValueError(
            f"evidence fresh needs a measure that is a mean over samples, and {metric} is none; allowed for promotion.metric: "
            f"<column>/{' or <column>/'.join(FRESH_MEASURES)}; or use evidence holdout"
        )
