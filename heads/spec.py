"""What a variant is: a backbone, named heads, a freeze policy and fit settings. No torch here."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, PositiveInt, StrictBool, field_validator, model_validator

Task = Literal["classification"]
Augment = Literal["none", "light", "medium", "strong"]
Optimiser = Literal["adamw", "sgd"]
Schedule = Literal["cosine", "step", "plateau", "constant"]
Precision = Literal["auto", "fp32", "bf16", "fp16"]

# Stage names of each backbone, front to back; `heads.backbones` builds exactly these.
BACKBONE_STAGES: Mapping[str, tuple[str, ...]] = {
    "resnet18": ("stem", "layer1", "layer2", "layer3", "layer4"),
    "resnet34": ("stem", "layer1", "layer2", "layer3", "layer4"),
    "resnet50": ("stem", "layer1", "layer2", "layer3", "layer4"),
    "mobilenet_v2": ("stem", "stage1", "stage2", "stage3", "stage4", "stage5", "stage6", "stage7", "top"),
    "mobilenet_v3_small": ("stem", "stage1", "stage2", "stage3", "stage4", "top"),
    "mobilenet_v3_large": ("stem", "stage1", "stage2", "stage3", "stage4", "stage5", "top"),
    "squeezenet1_1": ("stem", "stage1", "stage2", "stage3"),
    "efficientnet_b0": ("stem", "stage1", "stage2", "stage3", "stage4", "stage5", "stage6", "stage7", "top"),
    "shufflenet_v2_x1_0": ("stem", "stage2", "stage3", "stage4", "top"),
    "convnext_tiny": ("stem", "stage1", "stage2", "stage3", "stage4"),
}

HEAD_DESIGNS: Mapping[Task, tuple[str, ...]] = {"classification": ("linear", "mlp")}
FREEZE_POLICIES = ("none", "all", "upto:<stage>", "gradual", "lp_ft", "adaptive")
# What every variant's id tells of its fit; a setting that came later counts only where it is not its default.
FIRST_FIT_SETTINGS = frozenset(
    ["epochs", "batch_size", "learning_rate", "weight_decay", "image_size_px", "augment", "seed", "precision", "patience"]
)


class Value(BaseModel):
    """A frozen pydantic model that refuses unknown keys."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class Head(Value):
    """What turns features into one target's prediction."""

    target: str
    task: Task = "classification"
    design: str = "linear"

    @model_validator(mode="after")
    def _known_design(self) -> Head:
        allowed = HEAD_DESIGNS[self.task]
        if self.design not in allowed:
            raise ValueError(f"head design {self.design!r} is unknown for {self.task}; allowed: {', '.join(allowed)}")
        return self


class Fit(Value):
    """How a variant is trained. `batch_size` is over all workers together."""

    epochs: PositiveInt = 10
    batch_size: PositiveInt = 32
    learning_rate: Annotated[float, Field(gt=0, lt=10)] = 1e-3
    weight_decay: Annotated[float, Field(ge=0, lt=1)] = 1e-4
    image_size_px: Annotated[int, Field(ge=32, le=1024)] = 224
    augment: Augment = "light"
    seed: Annotated[int, Field(ge=0, lt=2**31)] = 0
    precision: Precision = "auto"
    patience: PositiveInt | None = None
    optimiser: Optimiser = "adamw"
    schedule: Schedule = "cosine"
    # Below 1 a share of each phase, from 1 on epochs; None: a tenth of the phase, at most a hundred updates.
    warmup: Annotated[float, Field(ge=0, lt=1000)] | None = None
    # The greatest norm of all gradients together; 0: any.
    gradient_clip: Annotated[float, Field(ge=0, lt=1e6)] = 1.0
    # Batches whose gradients make one update, as one batch so many times as large would: but BatchNorm sees each alone.
    accumulate: PositiveInt = 1
    # Whether training images are also seen mirrored, left for right.
    flip: StrictBool = False
    # Weights and images laid out channels last: faster on every device that was measured.
    channels_last: StrictBool = True
    # Whether torch.compile translates the training's forward pass; it pays on a GPU and many epochs, not on a CPU.
    compile: StrictBool = False
    # How much of itself a running average of the weights keeps at an update; it is what is evaluated and kept. 0: none.
    ema: Annotated[float, Field(ge=0, lt=1)] = 0.0
    # Each backbone stage learns at this factor of the next one's rate; the last at the full one.
    stage_decay: Annotated[float, Field(gt=0, le=1)] = 1.0


class Variant(Value):
    """One model to train. Its `variant_id` is the hash of this spec alone: where weights and data come from is keyed apart."""

    backbone: str
    heads: tuple[Head, ...]
    freeze: str = "all"
    fit: Fit = Fit()

    @field_validator("backbone")
    @classmethod
    def _known_backbone(cls, value: str) -> str:
        if value not in BACKBONE_STAGES:
            raise ValueError(f"backbone {value!r} is unknown; allowed: {', '.join(BACKBONE_STAGES)}")
        return value

    @model_validator(mode="after")
    def _known_freeze(self) -> Variant:
        frozen_through(self.freeze, self.backbone)
        targets = [head.target for head in self.heads]
        if not targets or len(set(targets)) != len(targets):
            raise ValueError(f"a variant needs one head for each target, once; got targets {targets}")
        return self

    @property
    def variant_id(self) -> str:
        """Twelve hex digits of the sha256 of the canonical spec; a new setting left at its default does not change it."""
        spec = self.model_dump(mode="json")
        default = Fit().model_dump(mode="json")
        spec["fit"] = {name: x for name, x in spec["fit"].items() if name in FIRST_FIT_SETTINGS or x != default[name]}
        text = json.dumps(spec, sort_keys=True, separators=(",", ":"))
        return hashlib.sha256(text.encode()).hexdigest()[:12]


def frozen_through(freeze: str, backbone: str) -> str | None:
    """The stage named by `upto:<stage>`, or None for the other policies.

    Raises ValueError, with what is allowed, on a policy or stage that does not exist.
    """
    kind, _, stage = freeze.partition(":")
    plain = [policy for policy in FREEZE_POLICIES if ":" not in policy]
    if kind != "upto":
        if freeze not in plain:
            raise ValueError(f"freeze policy {freeze!r} is unknown; allowed: {', '.join(FREEZE_POLICIES)}")
        return None
    stages = BACKBONE_STAGES[backbone]
    if stage not in stages:
        raise ValueError(f"freeze 'upto:{stage}': {backbone} has no stage {stage!r}; allowed: {', '.join(stages)}")
    return stage
