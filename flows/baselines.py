"""The plain baseline that a plan's variants are compared with: its value, and the folder that keeps a fitted one.

`baselines/<key>/` under the storage root holds `bundle/` and then `baseline.json`, written last: its key is the hash of the
frozen trunk, the target and the labels of train and val, so that it is fitted once, whatever plan or night asks for it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Literal

from flows.files import read_json, read_value, write_json
from heads.catalogue import FIT_FIELDS_OF, MODALITY_OF
from heads.spec import Fit, Head, Variant

BASELINE, BUNDLE = "baseline.json", "bundle"
# Settings that vary training samples: a probe sees them plain.
VARYING = frozenset(("augment", "flip", "mixup", "cutmix"))


@dataclass(frozen=True, kw_only=True)
class Baseline:
    """A plain model beside the variants of a plan, which is never a candidate: a logistic probe, or a constant answer.

    `label` names it in words. `metrics` are named `val/<target>/<measure>`. A probe was fitted on `num_samples` samples with
    the penalty that validation chose, in `seconds`, and lies in `bundle`. `note` says what else there is to know, such as why
    it is no probe.
    """

    kind: Literal["probe", "majority"]
    label: str
    metrics: Mapping[str, float] = field(default_factory=dict)
    num_parameters: int = 0
    num_samples: int = 0
    penalty: float | None = None
    seconds: float = 0.0
    note: str = ""
    bundle: Path | None = None


@dataclass(frozen=True)
class BaselineFolder:
    """The folder of a fitted probe, or of the reason why none could be fitted."""

    path: Path

    @classmethod
    def of(cls, storage: Path, key: str) -> BaselineFolder:
        """The folder of the baseline `key` under a storage root."""
        return cls(storage / "baselines" / key)

    @property
    def bundle(self) -> Path:
        """The folder of the probe's bundle."""
        return self.path / BUNDLE

    def is_finished(self) -> bool:
        """Whether there is a probe, or a reason that another try would only repeat."""
        return (self.path / BASELINE).is_file()

    def read(self) -> Baseline | str | None:
        """The probe; or, in words, why there is none; None before either is known."""
        content = read_json(self.path / BASELINE)
        if content is None:
            return None
        return str(content["failure"]) if "failure" in content else read_value(Baseline, content | {"bundle": self.bundle})

    def write(self, baseline: Baseline) -> None:
        """Write a probe whose bundle is there: the mark that it is fitted."""
        write_json(self.path / BASELINE, {name: value for name, value in asdict(baseline).items() if name != "bundle"})

    def write_failure(self, reason: str) -> None:
        """Write why no probe can be fitted."""
        write_json(self.path / BASELINE, {"failure": reason})


def probe_of(variant: Variant, target: str, *, is_random: bool) -> Variant:
    """The variant of a probe of one target on the frozen trunk of another variant: a linear head, and no more of its fit than
    changes features. Random weights also depend on the seed."""
    (task,) = (head.task for head in variant.heads if head.target == target)
    names = (FIT_FIELDS_OF[MODALITY_OF[variant.backbone]] - VARYING) | {"precision"} | ({"seed"} if is_random else set())
    fit = Fit.model_validate({name: getattr(variant.fit, name) for name in sorted(names)})
    return Variant(backbone=variant.backbone, heads=(Head(target=target, task=task, design="linear"),), freeze="all", fit=fit)
