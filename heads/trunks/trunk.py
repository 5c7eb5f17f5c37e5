"""Which features of a frozen trunk each phase of a training may read from the feature store, and their names."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from importlib.metadata import version

import torch
from torch import Tensor

from heads.backbones.table import row_of
from heads.bert_size import stages_of
from heads.catalogue import TASK_FACTS
from heads.data.modalities import preparation_of, preprocess_of
from heads.data.samples import Preprocess
from heads.features import trunk_id
from heads.features.keys import MAX_VIEWS
from heads.model.precision import computing_dtype
from heads.phases import Form, Phase, PhaseInputs, Tap, compile_policy
from heads.spec import Pooling, Precision, Variant
from heads.tasks.table import TASKS
from heads.trunks.pricing import price

# Designs that read a stage's mean over positions, or its class token, alone: a few kilobytes a sample instead of hundreds.
POOLING_DESIGNS = ("linear", "mlp", "cosine")


@dataclass(frozen=True)
class Trunk:
    """All that determines a backbone's features until training changes it; frozen prefixes of any length share it.

    `weights` is the digest of the weights, or the seed of random ones. `view` holds the settings that vary its samples: for
    images, augmentation and whether they are mirrored. `prepared_on` says where samples are prepared, if not on the CPU.
    """

    backbone: str
    weights: str
    preprocess: Preprocess
    dtype: str
    view: tuple[str | bool, ...]
    prepared_on: str = ""

    @property
    def id(self) -> str:
        """The trunk id, under which the feature store keeps its features."""
        return trunk_id(
            {
                "backbone": self.backbone,
                "stages": stages_of(self.backbone),
                "weights": self.weights,
                "preprocess": self.preprocess.to_json(),
                "dtype": self.dtype,
                "views": list(self.view),
                "libraries": _library_versions(preparation_of(self.backbone).LIBRARIES),
            }
            | ({"prepared_on": self.prepared_on} if self.prepared_on else {})
        )


@cache
def _library_versions(names: tuple[str, ...]) -> dict[str, str]:
    return {name: version(name) for name in names}


def trunk_of(variant: Variant, weights_digest: str, device: torch.device, *, varied: bool = False) -> Trunk:
    """The trunk of a variant on `device`, for its plain view or, if `varied`, for the others."""
    fit = variant.fit
    weights = f"random {fit.seed}" if weights_digest == "none" else weights_digest
    dtype, preparation = str(feature_dtype(device, fit.precision)).removeprefix("torch."), preparation_of(variant.backbone)
    view = preparation.varied_view(fit) if varied else preparation.PLAIN_VIEW
    return Trunk(variant.backbone, weights, preprocess_of(variant), dtype, view, preparation.prepared_on(device))


def feature_dtype(device: torch.device, precision: Precision) -> torch.dtype:
    """The dtype of stored features: the one they are computed in, which loses nothing and is half as large on a GPU."""
    return computing_dtype(device, precision)


def stored_taps(variant: Variant) -> dict[Phase, tuple[Tap, ...]]:
    """The taps that each phase trains from instead of samples; phases that train from samples are left out."""
    return {phase: inputs.taps for phase, inputs in choose_taps(variant).items() if inputs.taps}


def is_probe(variant: Variant) -> bool:
    """Whether a variant trains only heads, on stored features, from the first epoch to the last."""
    frozen = all(phase.num_frozen_stages == variant.num_stages for phase in compile_policy(variant))
    return frozen and len(stored_taps(variant)) == len(compile_policy(variant))


def choose_taps(variant: Variant) -> dict[Phase, PhaseInputs]:
    """What each phase trains from; the same on every machine, since it follows from the variant alone.

    A phase reads stored features if its frozen stages are as the weights file has them (from the first epoch on, and not
    those that `adaptive` freezes after they moved), and if storing them is cheaper than computing them, by the rates of
    `heads.trunks.pricing`. Mixup and CutMix blend images, and so need them.
    """
    fit, row = variant.fit, row_of(variant.backbone)
    chosen, untouched = {}, variant.num_stages
    for phase in compile_policy(variant):
        untouched = min(untouched, phase.num_frozen_stages)
        if variant.freeze == "adaptive":
            chosen[phase] = PhaseInputs((), "adaptive freezes stages after they moved")
        elif not phase.num_frozen_stages:
            chosen[phase] = PhaseInputs((), "the whole backbone is trained")
        elif phase.num_frozen_stages > untouched:
            chosen[phase] = PhaseInputs((), "stages are frozen after they moved")
        elif row.learns_words:
            chosen[phase] = PhaseInputs((), "its words are learned from this data version alone")
        elif fit.mixup or fit.cutmix:
            chosen[phase] = PhaseInputs((), f"{'mixup' if fit.mixup else 'cutmix'} blends images")
        else:
            chosen[phase] = _weigh(variant, phase.num_frozen_stages)
    return chosen


def _weigh(variant: Variant, num_frozen: int) -> PhaseInputs:
    taps, value_bytes = _taps(variant, num_frozen), 2 if variant.fit.precision in ("bf16", "fp16") else 4
    drops = variant.fit.views > 1 and variant.fit.word_dropout
    if is_by_token(variant.backbone, taps) and (drops or variant.fit.views > MAX_VIEWS):
        return PhaseInputs((), "features of tokens are not stored in views that lack some of a text's")
    cost = price(variant.backbone, preparation_of(variant.backbone).size_of(variant.fit), taps, value_bytes)
    frozen = f"frozen through {variant.stages[num_frozen - 1]}"
    return PhaseInputs(taps if cost.pays else (), f"{frozen}: {cost}")


def _taps(variant: Variant, num_frozen: int) -> tuple[Tap, ...]:
    """The taps that heads read of the first `num_frozen` stages, and the last of these if thawed stages go on from it."""
    row = row_of(variant.backbone)
    # Of what a head weighs itself, as it is trained, all tokens are needed.
    forms_of: Mapping[Pooling, Form] = {"mean": "pooled", "class": "class", "attention": "map"}
    pooled = forms_of[variant.fit.pooling] if variant.modality == "text" else "pooled"
    forms: dict[int, Form] = {} if num_frozen == len(row.channels) else {num_frozen - 1: "map"}
    for head in variant.heads:
        for stage in TASKS[head.task].taps(head.design, row):
            if stage < num_frozen:
                is_pooling = head.design in POOLING_DESIGNS and TASK_FACTS[head.task].tells != "tags"
                pools = is_pooling and forms.get(stage, pooled) == pooled
                forms[stage] = pooled if pools else "map"
    return tuple(Tap(stage, form) for stage, form in sorted(forms.items()))


def is_by_token(backbone: str, taps: Collection[Tap]) -> bool:
    """Whether one of these taps of a backbone is stored token by token, since their number differs from sample to sample."""
    return row_of(backbone).layout == "text" and any(tap.form == "map" for tap in taps)


def num_rows(backbone: str, tap: Tap, length: int) -> int:
    """How many tokens a text of this length has at a tap: after the last stage, the mean of all stands before them."""
    return length + (tap.stage == len(stages_of(backbone)) - 1)


def inputs_of(features: Mapping[str, Tensor], taps: Sequence[Tap]) -> dict[int, Tensor]:
    """Stored features by tap name as a model's inputs, by stage."""
    return {tap.stage: features[tap.name] for tap in taps}
