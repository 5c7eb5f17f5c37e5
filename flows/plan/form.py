"""The plan's model: the keys of the YAML file and the fields of the form in one."""

from __future__ import annotations

import difflib
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Annotated, Any, Self

from pydantic import BeforeValidator, ConfigDict, Field, StrictBool, field_validator, model_validator

from flows.records import Workers
from heads.spec import (
    BACKBONE_STAGES,
    FREEZE_POLICIES,
    HEAD_DESIGNS,
    Augment,
    ClassWeights,
    HeadWeights,
    Loss,
    Optimiser,
    Precision,
    Schedule,
    Task,
    Value,
    check_image_size,
    frozen_through,
)

# Those that promotion may go by: a higher one is better.
MEASURES = (
    "accuracy",
    "top5",
    "f1_macro",
    "f1_micro",
    "f1_weighted",
    "precision_macro",
    "recall_macro",
    "auroc",
    "average_precision",
)
LOWER_IS_BETTER = ("loss", "ece", "brier")
WEIGHTS = "imagenet, none, or a weights file (.pth or .pt)"
# Every policy that some backbone understands: what the form offers.
POLICIES = (
    *(policy for policy in FREEZE_POLICIES if ":" not in policy),
    *dict.fromkeys(f"upto:{stage}" for stages in BACKBONE_STAGES.values() for stage in stages),
)
DESIGNS = tuple(dict.fromkeys(design for designs in HEAD_DESIGNS.values() for design in designs))


def suggestion(word: str, allowed: Collection[str]) -> str:
    """The words 'did you mean ...? ' where an allowed word is near, else ''."""
    near = difflib.get_close_matches(word, allowed, n=1, cutoff=0.6)
    return f"did you mean {near[0]!r}? " if near else ""


def _known(kind: str, word: str, allowed: Collection[str]) -> str:
    if word not in allowed:
        raise ValueError(f"{kind} {word!r} is unknown; {suggestion(word, allowed)}allowed: {', '.join(allowed)}")
    return word


def _listed(value: Any) -> Any:
    return [value] if isinstance(value, str | Mapping) else value


def _column(value: Any) -> Any:
    return {"column": value} if isinstance(value, str) else value


def _not_bool(value: Any) -> Any:
    if any(isinstance(one, bool) for one in (value if isinstance(value, list | tuple) else [value])):
        raise ValueError("should be a number, not true or false")
    return value


Some = Field(min_length=1)
Number = BeforeValidator(_not_bool)
Listed = BeforeValidator(_listed)

Count = Annotated[int, Field(gt=0)]
Size = Annotated[int, Field(ge=32, le=1024)]
Seed = Annotated[int, Field(ge=0, lt=2**31)]
Rate = Annotated[float, Field(gt=0, lt=10)]
Decay = Annotated[float, Field(ge=0, lt=1)]
Share = Annotated[float, Field(gt=0, le=1)]
Alpha = Annotated[float, Field(ge=0, le=10)]
Counts = Annotated[Count | Annotated[tuple[Count, ...], Some], Number]
Sizes = Annotated[Size | Annotated[tuple[Size, ...], Some], Number]
Seeds = Annotated[Seed | Annotated[tuple[Seed, ...], Some], Number]
Rates = Annotated[Rate | Annotated[tuple[Rate, ...], Some], Number]
Decays = Annotated[Decay | Annotated[tuple[Decay, ...], Some], Number]
WarmUp = Annotated[float, Field(ge=0, lt=1000)]
Norm = Annotated[float, Field(ge=0, lt=1e6)]
Shares = Annotated[Share | Annotated[tuple[Share, ...], Some], Number]
WarmUps = Annotated[WarmUp | Annotated[tuple[WarmUp, ...], Some], Number]
Norms = Annotated[Norm | Annotated[tuple[Norm, ...], Some], Number]
Alphas = Annotated[Alpha | Annotated[tuple[Alpha, ...], Some], Number]

# `enum` makes the form offer a choice; the words of a refusal are ours, below.
Backbones = Annotated[tuple[Annotated[str, Field(json_schema_extra={"enum": list(BACKBONE_STAGES)})], ...], Some, Listed]
Designs = Annotated[tuple[Annotated[str, Field(json_schema_extra={"enum": list(DESIGNS)})], ...], Some, Listed]
Policies = Annotated[tuple[Annotated[str, Field(json_schema_extra={"enum": list(POLICIES)})], ...], Some, Listed]


class Target(Value):
    """A column to predict."""

    column: str = Field(description="A target column of the data set's manifest.", min_length=1)
    task: Task = Field("classification", description="What is predicted of it.", json_schema_extra={"enum": list(HEAD_DESIGNS)})


class FitGrid(Value):
    """How variants are trained; a list of numbers tries each of them."""

    model_config = ConfigDict(title="Fit")

    epochs: Counts = Field(10, description="Passes over the training samples.")
    batch_size: Counts = Field(32, description="Samples in a step, over all workers together.")
    learning_rate: Rates = Field(1e-3, description="The highest learning rate.")
    weight_decay: Decays = Field(1e-4, description="The optimiser's weight decay.")
    image_size_px: Sizes = Field(224, description="Side of the square that the model sees, in pixels.")
    augment: Augment = Field("light", description="How far training images are varied.")
    seed: Seeds = Field(0, description="Seed of every random choice.")
    precision: Precision = Field("auto", description="Arithmetic: auto is bf16 on a GPU that has it, else fp32; fp16 needs GPUs.")
    patience: Counts | None = Field(None, description="Stop after so many epochs without a better validation; empty: never.")
    optimiser: Optimiser = Field("adamw", description="adamw, or sgd with Nesterov's momentum of 0.9.")
    schedule: Schedule = Field(
        "cosine",
        description="How the learning rate falls: cosine to nothing, step (a tenth at 1/2 and 3/4 of all epochs), plateau "
        "(a tenth after two epochs without a better validation), or constant.",
    )
    warmup: WarmUps | None = Field(
        None, description="Linear warm-up: below 1 a share of a phase, from 1 on epochs; empty: a tenth, at most 100 updates."
    )
    gradient_clip: Norms = Field(1.0, description="Greatest norm of all gradients together; 0: any.")
    accumulate: Counts = Field(1, description="Batches whose gradients make one update, as a batch so many times larger would.")
    flip: StrictBool = Field(False, description="Whether training images are also seen mirrored, left for right.")
    channels_last: StrictBool = Field(True, description="Lay weights and images out channels last, which is mostly faster.")
    compile: StrictBool = Field(False, description="Train through torch.compile: minutes to start, then faster on a GPU.")
    ema: Decays = Field(0.0, description="Decay of a running average of the weights, which is then the model kept; 0: none.")
    stage_decay: Shares = Field(1.0, description="A backbone stage's rate as a share of the next stage's; 1: all alike.")
    loss: Loss = Field("cross_entropy", description="What training minimises; focal (gamma 2) dwells on what is still misread.")
    label_smoothing: Decays = Field(0.0, description="Share of each label that is spread over all classes in training.")
    class_weights: ClassWeights = Field("none", description="balanced: rare classes count more, by inverse frequency in train.")
    head_weights: HeadWeights = Field(
        "equal", description="How losses of several heads add up; uncertainty: weights are learned."
    )
    mixup: Alphas = Field(0.0, description="Blend training images in pairs, by shares from Beta(mixup, mixup); 0: off.")
    cutmix: Alphas = Field(0.0, description="Patch training images with others, by shares from Beta(cutmix, cutmix); 0: off.")

    def grid(self) -> dict[str, tuple[Any, ...]]:
        """Every setting of `heads.spec.Fit` with the values to try."""
        values = {name: getattr(self, name) for name in type(self).model_fields}
        return {name: value if isinstance(value, tuple) else (value,) for name, value in values.items()}


class WorkersSpec(Value):
    """The worker group that trains."""

    model_config = ConfigDict(title="Workers")

    count: Annotated[int, Field(ge=1, le=1024), Number] = Field(1, description="Number of workers.")
    gpus_per_worker: Annotated[float, Field(ge=0, le=64), Number] = Field(0, description="GPUs for each worker; 0: on the CPU.")
    cpus_per_worker: Annotated[float, Field(gt=0, le=1024), Number] = Field(1, description="CPU cores for each worker.")

    def group(self) -> Workers:
        """The same as the value that travels to the cluster."""
        return Workers(self.count, self.gpus_per_worker, self.cpus_per_worker)


class Promotion(Value):
    """When the candidate becomes the champion."""

    metric: str | None = Field(None, description="<column>/<measure> to rank and promote by; empty: the first target's accuracy.")
    min_gain: Annotated[float, Field(ge=0, le=1), Number] = Field(0.0, description="Smallest gain over the champion.")
    alpha: Annotated[float, Field(gt=0, lt=1), Number] = Field(0.05, description="Level of the paired test (exact McNemar).")

    @field_validator("metric")
    @classmethod
    def _known_measure(cls, value: str | None) -> str | None:
        if value is not None:
            column, _, measure = value.rpartition("/")
            if measure in LOWER_IS_BETTER:
                raise ValueError(f"metric {value!r} is better the lower it is, and cannot rank; allowed: {', '.join(MEASURES)}")
            _known("measure", measure, MEASURES)
            if not column:
                raise ValueError(f"metric {value!r} names no target; write <column>/{measure}")
        return value


class Plan(Value):
    """One retraining: which variants to train on the data set's newest version, and when to promote the best."""

    name: str = Field(
        description="The registered model's name: letters, digits, '-' and '_'.",
        pattern=r"^[A-Za-z0-9][A-Za-z0-9_-]*$",
        max_length=100,
    )
    targets: Annotated[tuple[Annotated[Target, BeforeValidator(_column)], ...], Some, Listed] | None = Field(
        None, description="Columns to predict; empty: the data set's one target."
    )
    backbones: Backbones = Field(("mobilenet_v2",), description="Feature extractors to try.")
    weights: str = Field("imagenet", description=f"The backbone's first weights: {WEIGHTS}.")
    heads: Designs = Field(("linear",), description="Head designs to try.")
    freeze: Policies = Field(
        ("all",),
        description="Freeze policies to try: none, all, gradual (thaw stage by stage), lp_ft (heads first, then everything), "
        "adaptive (freeze stages that have stopped moving), upto:<stage>. Left out with weights none: none.",
    )
    fit: FitGrid = Field(FitGrid(), description="Fit settings; lists make a grid.")
    workers: WorkersSpec = Field(WorkersSpec(), description="The worker group.")
    promotion: Promotion = Field(Promotion(), description="The rules of promotion.")

    @model_validator(mode="before")
    @classmethod
    def _thawed_without_weights(cls, data: Any) -> Any:
        if isinstance(data, Mapping) and data.get("weights") == "none" and "freeze" not in data:
            return {**data, "freeze": ["none"]}
        return data

    @field_validator("targets")
    @classmethod
    def _named_once(cls, value: tuple[Target, ...] | None) -> tuple[Target, ...] | None:
        columns = [target.column for target in value or ()]
        if len(set(columns)) != len(columns):
            raise ValueError(f"a column is named twice: {', '.join(columns)}")
        return value

    @field_validator("backbones")
    @classmethod
    def _known_backbones(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        return tuple(_known("backbone", name, BACKBONE_STAGES) for name in value)

    @field_validator("heads")
    @classmethod
    def _known_designs(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        return tuple(_known("head design", name, DESIGNS) for name in value)

    @field_validator("weights")
    @classmethod
    def _known_weights(cls, value: str) -> str:
        if value == "champion" or "://" in value:
            raise ValueError(f"weights {value!r} cannot be used yet; allowed: {WEIGHTS}")
        if value not in ("imagenet", "none") and not Path(value).suffix and "/" not in value:
            raise ValueError(f"weights {value!r} are unknown; {suggestion(value, ('imagenet', 'none'))}allowed: {WEIGHTS}")
        return value

    @model_validator(mode="after")
    def _sizes_fit(self) -> Self:
        for backbone in self.backbones:
            for size in self.fit.grid()["image_size_px"]:
                check_image_size(backbone, size)
        return self

    @model_validator(mode="after")
    def _precision_fits(self) -> Self:
        if self.fit.precision == "fp16" and not self.workers.gpus_per_worker:
            raise ValueError(
                "fit.precision fp16 needs GPUs, but workers.gpus_per_worker is 0; use precision auto, fp32 or bf16, or give GPUs"
            )
        return self

    @model_validator(mode="after")
    def _freezing_fits(self) -> Self:
        for policy in self.freeze:
            for backbone in self.backbones:
                frozen_through(policy, backbone)
            if self.weights == "none" and (policy == "all" or policy.startswith("upto:")):
                raise ValueError(
                    f"freeze {policy!r} with weights 'none' would keep random features for ever; "
                    "use freeze none, gradual, lp_ft or adaptive, or give weights"
                )
        if self.weights not in ("imagenet", "none") and len(set(self.backbones)) > 1:
            raise ValueError(
                f"weights {self.weights!r} is one file and fits one backbone, but the plan lists {', '.join(self.backbones)}; "
                "write a plan for each, or use weights imagenet"
            )
        return self
