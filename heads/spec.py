"""The spec of a variant: a backbone, named heads, a freeze policy and fit settings. No torch here."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, PositiveInt, StrictBool, field_validator, model_validator

from heads.bert_size import is_backbone, modality_of, parse_bert_size, stages_of
from heads.catalogue import BACKBONE_STAGES, FIT_FIELDS_OF, HEAD_DESIGNS, TASK_FACTS, Modality, Task, Tells, check_image_size

Augment = Literal["none", "light", "medium", "strong"]
Optimizer = Literal["adamw", "sgd"]
Schedule = Literal["cosine", "step", "plateau", "constant"]
Precision = Literal["auto", "fp32", "bf16", "fp16"]
Loss = Literal["cross_entropy", "focal", "dice", "cross_entropy_dice"]
Activation = Literal["gelu", "relu", "silu"]
ClassWeights = Literal["none", "balanced"]
HeadWeights = Literal["equal", "uncertainty"]
Pooling = Literal["mean", "class", "attention"]

# What Fit held at first. A later field enters a variant's hash only where it differs from its default, so that finished work
# keeps its id: such a default means what was done before the field came, and never changes.
FIRST_FIT_FIELDS = frozenset(
    ("epochs", "batch_size", "learning_rate", "weight_decay", "image_size_px", "augment", "seed", "precision", "patience")
)
# Raised when the same spec is trained otherwise than before, so that work done by an older recipe is not reused.
# 2: frozen trunks read stored views, plain ones unless `views` says more.
RECIPE = 2
# With a head that tells such; of tags 3: words that are not read teach nothing; of labels 3: a new head begins at their shares.
RECIPE_OF: Mapping[Tells, int] = {"tags": 3, "labels": 3}
FREEZE_POLICIES = ("none", "all", "upto:<stage>", "gradual", "lp_ft", "adaptive")


class Value(BaseModel):
    """A frozen pydantic model that refuses unknown keys; its repr leaves out fields at their defaults."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    def __repr_args__(self) -> Iterator[tuple[str | None, object]]:
        changed = self.model_dump(exclude_defaults=True).keys()
        return ((name, value) for name, value in super().__repr_args__() if name in changed)


class Head(Value):
    """What turns features into one target's prediction.

    `weight` multiplies its loss beside other heads' losses; pixels whose mask value is in `ignore` count for nothing.
    """

    target: str
    task: Task = "classification"
    design: str = "linear"
    weight: Annotated[float, Field(gt=0, le=1000)] = 1.0
    ignore: tuple[Annotated[int, Field(ge=0, lt=2**16)], ...] = ()

    @model_validator(mode="after")
    def _known_design(self) -> Head:
        allowed = HEAD_DESIGNS[self.task]
        if self.design not in allowed:
            raise ValueError(f"head design {self.design!r} is unknown for {self.task}; allowed: {', '.join(allowed)}")
        if self.ignore and TASK_FACTS[self.task].tells != "pixels":
            raise ValueError(f"ignore {list(self.ignore)} is for masks, and {self.target!r} is {self.task}; leave it out")
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
    optimiser: Optimizer = "adamw"
    schedule: Schedule = "cosine"
    # Below 1 a share of each phase, from 1 on a number of epochs; None: a tenth of the phase, at most a hundred updates.
    warmup: Annotated[float, Field(ge=0, lt=1000)] | None = None
    gradient_clip: Annotated[float, Field(ge=0, lt=1e6)] = 1.0  # the norm of all gradients together; 0: no clipping
    # How many batches make one update, as one batch that many times as large would, but that BatchNorm sees each alone.
    accumulate: PositiveInt = 1
    # Whether training images are also seen mirrored, left for right.
    flip: StrictBool = False
    # Weights and images laid out channels last, which is faster.
    channels_last: StrictBool = True
    # Whether torch.compile may translate the training's forward pass, where measured times say that it pays back.
    compile: StrictBool = False
    # The decay of a running average of the weights, which is then evaluated and kept in their place. 0: none.
    ema: Annotated[float, Field(ge=0, lt=1)] = 0.0
    # A backbone stage's learning rate is this factor of the next stage's; the last stage has the full rate.
    stage_decay: Annotated[float, Field(gt=0, le=1)] = 1.0
    # Dice is for masks: heads of other tasks then minimise cross entropy.
    loss: Loss = "cross_entropy"
    label_smoothing: Annotated[float, Field(ge=0, lt=1)] = 0.0
    class_weights: ClassWeights = "none"
    head_weights: HeadWeights = "equal"
    mixup: Annotated[float, Field(ge=0, le=10)] = 0.0
    cutmix: Annotated[float, Field(ge=0, le=10)] = 0.0
    # Views of a training sample that the feature store holds: the plain one, then augmented ones; epoch e reads e modulo this.
    views: PositiveInt = 1
    # The shape of `mlp` heads: hidden layers, channels of each, activation and dropout after each.
    mlp_depth: Annotated[int, Field(ge=1, le=8)] = 1
    mlp_width: Annotated[int, Field(ge=1, le=16384)] = 256
    mlp_activation: Activation = "gelu"
    mlp_dropout: Annotated[float, Field(ge=0, lt=1)] = 0.2
    # A longer text is cut to so many tokens, its start and end mark included.
    max_tokens: Annotated[int, Field(ge=8, le=8192)] = 128
    # What `linear`, `mlp` and `cosine` read of a text's tokens: their mean, the first, which marks the start, or a weighted mean.
    pooling: Pooling = "mean"
    # Shares of a training text's tokens that are left out, or hidden behind the mask token, anew each time.
    word_dropout: Annotated[float, Field(ge=0, lt=1)] = 0.0
    token_masking: Annotated[float, Field(ge=0, lt=1)] = 0.0

    @model_validator(mode="after")
    def _varied_views(self) -> Fit:
        if self.views > 1 and self.augment == "none" and not self.flip:
            raise ValueError(f"views {self.views} with augment 'none' and no flip would all be one; use views 1, or augment")
        return self


class Variant(Value):
    """One model to train. Its `variant_id` is the hash of this spec alone: weights and data are keyed apart."""

    backbone: str
    heads: tuple[Head, ...]
    freeze: str = "all"
    fit: Fit = Fit()

    @field_validator("backbone")
    @classmethod
    def _known_backbone(cls, value: str) -> str:
        if not is_backbone(value):
            raise ValueError(f"backbone {value!r} is unknown; allowed: {', '.join(BACKBONE_STAGES)}")
        return value

    @model_validator(mode="after")
    def _known_freeze(self) -> Variant:
        frozen_through(self.freeze, self.backbone)
        targets = [head.target for head in self.heads]
        if not targets or len(set(targets)) != len(targets):
            raise ValueError(f"a variant needs one head for each target, once; got targets {targets}")
        return self

    @model_validator(mode="after")
    def _own_fields(self) -> Variant:
        own = self.modality
        foreign = {name: other for other, names in FIT_FIELDS_OF.items() if other != own for name in names}
        if wrong := sorted(foreign.keys() & self.fit.model_dump(exclude_defaults=True).keys()):
            allowed = ", ".join(name for name in Fit.model_fields if name not in foreign)
            raise ValueError(
                f"fit's {', '.join(wrong)} is for {foreign[wrong[0]]}s, and {self.backbone} reads {own}s; "
                f"leave it out; allowed: {allowed}"
            )
        return self

    @model_validator(mode="after")
    def _fitting_size(self) -> Variant:
        if self.modality == "image":
            check_image_size(self.backbone, self.fit.image_size_px)
        size = parse_bert_size(self.backbone)
        if size and self.fit.max_tokens > (most := size.num_positions):
            raise ValueError(f"max_tokens {self.fit.max_tokens} does not fit the places of {self.backbone}; allowed: 8 to {most}")
        return self

    @model_validator(mode="after")
    def _varied_texts(self) -> Variant:
        fit = self.fit
        if self.modality == "text" and fit.views > 1 and not (fit.word_dropout or fit.token_masking):
            raise ValueError(f"views {fit.views} of texts that nothing varies would all be one; use views 1, or word_dropout")
        return self

    @model_validator(mode="after")
    def _tagged_words(self) -> Variant:
        tagged = [head.target for head in self.heads if TASK_FACTS[head.task].tells == "tags"]
        if tagged and self.modality != "text":
            raise ValueError(f"{tagged[0]!r} holds tags of a text's words, and {self.backbone} reads {self.modality}s")
        if tagged and self.fit.word_dropout:
            raise ValueError(
                f"word_dropout {self.fit.word_dropout} leaves out words whose tags {tagged[0]!r} asks for; use token_masking"
            )
        return self

    @property
    def modality(self) -> Modality:
        """What kind of sample it reads."""
        return modality_of(self.backbone)

    @property
    def sample_size(self) -> int:
        """The size of samples as its network sees them, on which costs depend: an image's side in pixels, a text's tokens."""
        return self.fit.image_size_px if self.modality == "image" else self.fit.max_tokens

    @property
    def stages(self) -> tuple[str, ...]:
        """The names of its backbone's stages, front to back."""
        return stages_of(self.backbone)

    @property
    def num_stages(self) -> int:
        """How many stages its backbone has."""
        return len(self.stages)

    @property
    def sees_whole(self) -> bool:
        """Whether images are resized whole to the model's square, not cropped: a mask is predicted to the image's edges."""
        return any(TASK_FACTS[head.task].tells == "pixels" for head in self.heads)

    @property
    def variant_id(self) -> str:
        """Twelve hex digits of the sha256 of the canonical spec."""
        spec = self.model_dump(mode="json")
        # As with fit: a later field is hashed only where it differs from its default.
        spec["heads"] = [
            {name: value for name, value in head.items() if (name, value) not in (("ignore", []), ("weight", 1.0))}
            for head in spec["heads"]
        ]
        hashed = FIRST_FIT_FIELDS | self.fit.model_dump(exclude_defaults=True).keys()
        spec["fit"] = {name: value for name, value in spec["fit"].items() if name in hashed}
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
    stages = stages_of(backbone)
    if stage not in stages:
        raise ValueError(f"freeze 'upto:{stage}': {backbone} has no stage {stage!r}; allowed: {', '.join(stages)}")
    return stage


def is_screened(variant: Variant) -> bool:
    """Whether screening may end a variant early: it probes with a frozen backbone first, and fine-tunes only then."""
    return variant.freeze == "lp_ft" and variant.fit.epochs > 1
