"""The plain baseline that a plan's variants are compared with: its value, and the folder that keeps a fitted one.

`baselines/<key>/` under the storage root holds `bundle/` (of one that counts words a file) and then `baseline.json`, written
last: its key is the hash of the frozen trunk, the target and the labels of train and val, so that it is fitted once, whatever
plan or night asks for it.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Literal

from flows.files import read_value
from flows.places import Place, Root, StoredFile, open_place
from heads.catalogue import FIT_FIELDS_OF, TASK_FACTS, Task, Tells
from heads.spec import Fit, Head, Variant

BASELINE, BUNDLE = "baseline.json", "bundle"
Kind = Literal["probe", "tfidf", "word_list", "majority"]
# Settings that vary training samples: a probe sees them plain.
VARYING = frozenset(("augment", "flip", "mixup", "cutmix", "word_dropout", "token_masking"))


@dataclass(frozen=True)
class Counted:
    """A kind of baseline that counts the words of texts and knows no encoder: its name in words, and the file that keeps it.

    The number of its `recipe` is raised when it is fitted otherwise than before, so that older ones are fitted again.
    """

    kind: Kind
    label: str
    file: str
    recipe: int


TFIDF = Counted("tfidf", "TF-IDF regression", "tfidf.npz", 4)
WORD_LIST = Counted("word_list", "word list", "words.json", 1)
COUNTED: Mapping[Tells, Counted] = {"class": TFIDF, "labels": TFIDF, "tags": WORD_LIST}
COUNTED_FILES = {one.kind: one.file for one in COUNTED.values()}


@dataclass(frozen=True, kw_only=True)
class Baseline:
    """A plain model beside the variants of a plan, which is never a candidate: a logistic probe, one that counts words, or a
    constant answer.

    `label` names it in words. `metrics` are named `val/<target>/<measure>`. A probe was fitted on `num_samples` samples with
    the penalty that validation chose, in `seconds`; `bundle` is the name under the storage root of its
    bundle's place, or of the file of one that counts words. `note` says what else there is to know, such as why
    it is no probe.
    """

    kind: Kind
    label: str
    metrics: Mapping[str, float] = field(default_factory=dict)
    num_parameters: int = 0
    num_samples: int = 0
    penalty: float | None = None
    seconds: float = 0.0
    note: str = ""
    bundle: str | None = None

    @property
    def reads(self) -> str:
        """What it answers by, in words."""
        return "counted words" if self.kind in COUNTED_FILES else "the frozen features"


@dataclass(frozen=True)
class BaselineFolder:
    """The folder of a fitted baseline, or of the reason why none could be fitted."""

    place: Place
    key: str

    @classmethod
    def of(cls, storage: Root, key: str) -> BaselineFolder:
        """The folder of the baseline `key` under a storage root."""
        return cls(open_place(storage).within(f"baselines/{key}"), key)

    def filling(self) -> AbstractContextManager[Path]:
        """A folder of this machine for the block, with the same names as this one; all that is written into it is stored."""
        return self.place.filling()

    def is_finished(self) -> bool:
        """Whether there is one, or a reason that another try would only repeat."""
        return self.place.exists(BASELINE)

    def read(self) -> Baseline | str | None:
        """The baseline; or, in words, why there is none; None before either is known."""
        content = StoredFile(self.place, BASELINE).read_json()
        if content is None:
            return None
        if "failure" in content:
            return str(content["failure"])
        stored = COUNTED_FILES.get(content["kind"], BUNDLE)
        return read_value(Baseline, content | {"bundle": f"baselines/{self.key}/{stored}"})

    def write(self, baseline: Baseline) -> None:
        """Write a baseline whose bundle or file is there: the mark that it is fitted."""
        StoredFile(self.place, BASELINE).write_json({name: value for name, value in asdict(baseline).items() if name != "bundle"})

    def write_failure(self, reason: str) -> None:
        """Write why none can be fitted."""
        StoredFile(self.place, BASELINE).write_json({"failure": reason})


def counted_of(task: Task) -> Counted | None:
    """The baseline that counts words for a task; None if there is none."""
    return COUNTED.get(TASK_FACTS[task].tells)


def is_counted(name: str) -> bool:
    """Whether a name or address below the storage root is that of a file of counted words, not of a bundle."""
    return name.rpartition("/")[2] in COUNTED_FILES.values()


def baseline_key(name: str) -> str:
    """The key of the baseline whose bundle or file has this name under the storage root."""
    return name.split("/")[-2]


def probe_of(variant: Variant, target: str, *, is_random: bool) -> Variant:
    """The variant of a probe of one target on the frozen trunk of another variant: a linear head, and no more of its fit than
    changes features. Random weights also depend on the seed."""
    (task,) = (head.task for head in variant.heads if head.target == target)
    names = (FIT_FIELDS_OF[variant.modality] - VARYING) | {"precision"} | ({"seed"} if is_random else set())
    fit = Fit.model_validate({name: getattr(variant.fit, name) for name in sorted(names)})
    if fit.pooling == "attention":
        # By weights that are not learned yet: the mean.
        fit = fit.model_copy(update={"pooling": "mean"})
    return Variant(backbone=variant.backbone, heads=(Head(target=target, task=task, design="linear"),), freeze="all", fit=fit)
