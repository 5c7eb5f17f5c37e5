"""The plan's fit settings: those of `heads.spec.Fit`, where every number may be a list to try."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Annotated, Any

from pydantic import AliasChoices, BeforeValidator, ConfigDict, Field, GetJsonSchemaHandler, StrictBool
from pydantic.json_schema import JsonSchemaValue

from heads.recurrent_size import MAX_LAYERS, MAX_WIDTH, RECURRENT, RecurrentSize
from heads.spec import Activation, Augment, ClassWeights, Fit, HeadWeights, Loss, Optimizer, Pooling, Precision, Schedule, Value


def _not_bool(value: Any) -> Any:
    if any(isinstance(one, bool) for one in (value if isinstance(value, list | tuple) else [value])):
        raise ValueError("should be a number, not true or false")
    return value


Some = Field(min_length=1)
Number = BeforeValidator(_not_bool)

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
Depth = Annotated[int, Field(ge=1, le=8)]
Width = Annotated[int, Field(ge=1, le=16384)]
Alphas = Annotated[Alpha | Annotated[tuple[Alpha, ...], Some], Number]
Depths = Annotated[Depth | Annotated[tuple[Depth, ...], Some], Number]
Token = Annotated[int, Field(ge=8, le=8192)]
Tokens = Annotated[Token | Annotated[tuple[Token, ...], Some], Number]
Widths = Annotated[Width | Annotated[tuple[Width, ...], Some], Number]
Layer = Annotated[int, Field(ge=1, le=MAX_LAYERS)]
Layers = Annotated[Layer | Annotated[tuple[Layer, ...], Some], Number]
CellWidth = Annotated[int, Field(ge=1, le=MAX_WIDTH)]
CellWidths = Annotated[CellWidth | Annotated[tuple[CellWidth, ...], Some], Number]
# They decide a backbone's size, and so its name (`heads.recurrent_size`), not how it is trained.
RECURRENT_FIELDS = frozenset(("recurrent_layers", "recurrent_width", "bidirectional"))


class CommonFit(Value):
    """Fit settings that most plans set."""

    epochs: Counts = Field(10, description="Passes over the training samples.")
    batch_size: Counts = Field(32, description="Samples in a step, over all workers together.")
    learning_rate: Rates = Field(1e-3, description="The highest learning rate.")
    image_size_px: Sizes = Field(224, description="Side of the square that the model sees, in pixels.")
    augment: Augment = Field("light", description="How far training images are varied.")
    seed: Seeds = Field(0, description="Seed of every random choice.")
    precision: Precision = Field("auto", description="Arithmetic: auto is bf16 on a GPU that has it, else fp32; fp16 needs GPUs.")
    patience: Counts | None = Field(None, description="Stop after so many epochs without a better validation; empty: never.")


class RareFit(Value):
    """Fit settings that few plans change."""

    weight_decay: Decays = Field(1e-4, description="The optimiser's weight decay.")
    optimiser: Optimizer = Field(
        "adamw",
        validation_alias=AliasChoices("optimiser", "optimizer"),
        description="adamw, or sgd with Nesterov's momentum of 0.9; written optimizer, too.",
    )
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
    compile: StrictBool = Field(
        False,
        description="Train through torch.compile where it pays back within a phase, by times measured on the machine; results "
        "are equal within rounding only.",
    )
    ema: Decays = Field(0.0, description="Decay of a running average of the weights, which is then the model kept; 0: none.")
    stage_decay: Shares = Field(1.0, description="A backbone stage's rate as a share of the next stage's; 1: all alike.")
    loss: Loss = Field(
        "cross_entropy",
        description="What training minimises; focal (gamma 2) dwells on what is still misread; dice and cross_entropy_dice "
        "(their sum) are of masks: heads of other tasks then minimise cross entropy.",
    )
    label_smoothing: Decays = Field(0.0, description="Share of each label that is spread over all classes in training.")
    class_weights: ClassWeights = Field("none", description="balanced: rare classes count more, by inverse frequency in train.")
    head_weights: HeadWeights = Field(
        "equal", description="How losses of several heads add up; uncertainty: weights are learned."
    )
    mixup: Alphas = Field(0.0, description="Blend training images in pairs, by shares from Beta(mixup, mixup); 0: off.")
    cutmix: Alphas = Field(0.0, description="Patch training images with others, by shares from Beta(cutmix, cutmix); 0: off.")
    views: Counts = Field(
        1,
        description="Views of a training sample that a frozen trunk stores: the plain one and varied ones; epochs take turns.",
    )
    mlp_depth: Depths = Field(1, description="Hidden layers of mlp heads.")
    mlp_width: Widths = Field(256, description="Channels of each hidden layer of mlp heads.")
    mlp_activation: Activation = Field("gelu", description="What stands between the layers of mlp heads.")
    mlp_dropout: Decays = Field(0.2, description="Share of channels that mlp heads drop while they train.")
    max_tokens: Tokens = Field(128, description="Tokens of a text that are read, of longer ones the first.")
    pooling: Pooling = Field(
        "mean",
        description="What heads read of a text: its tokens' mean, the first one (class), or their mean by learned weights.",
    )
    word_dropout: Decays = Field(
        0.0,
        description="Share of a training text's tokens that are left out, anew each time; frozen trunks read whole texts, unless "
        "views says more.",
    )
    token_masking: Decays = Field(
        0.0,
        description="Share of a training text's tokens that are hidden, anew each time; frozen trunks read whole texts, unless "
        "views says more.",
    )
    recurrent_layers: Layers = Field(1, description="Layers of lstm, gru and rnn.")
    recurrent_width: CellWidths = Field(128, description="Channels of each layer of lstm, gru and rnn, of one direction.")
    bidirectional: StrictBool = Field(True, description="Whether lstm, gru and rnn also read a text backwards.")


class FitGrid(RareFit, CommonFit):
    """How variants are trained; a list of numbers tries each of them."""

    model_config = ConfigDict(title="Fit")

    @classmethod
    def __get_pydantic_json_schema__(cls, core_schema: Any, handler: GetJsonSchemaHandler) -> JsonSchemaValue:
        """The form's schema: common settings here, rare ones at the form's end (`flows.plan.rare_settings`); both are taken."""
        schema = handler(core_schema)
        form = handler.resolve_ref_schema(schema)
        form["patternProperties"] = {f"^{name}$": form["properties"].pop(name) for name in RareFit.model_fields}
        return schema

    def grid(self) -> dict[str, tuple[Any, ...]]:
        """Every setting of `heads.spec.Fit` with the values to try."""
        values = {name: getattr(self, name) for name in Fit.model_fields}
        return {name: _tuple(value) for name, value in values.items()}

    def sizes_of(self, backbone: str) -> tuple[str, ...]:
        """A backbone's names with the sizes to try: of a recurrent network each, of others the name itself."""
        if backbone not in RECURRENT:
            return (backbone,)
        grid = itertools.product(_tuple(self.recurrent_layers), _tuple(self.recurrent_width))
        return tuple(dict.fromkeys(RecurrentSize(backbone, *size, self.bidirectional).name for size in grid))

    def refuse_sizes_of_none(self, backbones: Sequence[str]) -> None:
        """Raises ValueError if it has sizes of recurrent networks, and there is none among the backbones."""
        wrong = sorted(RECURRENT_FIELDS & self.model_dump(exclude_defaults=True).keys())
        if wrong and not any(name in RECURRENT for name in backbones):
            raise ValueError(
                f"fit's {', '.join(wrong)} is for {', '.join(RECURRENT)}, and backbones lists {', '.join(backbones)}; "
                "leave it out, or add one of them"
            )


def _tuple(value: Any) -> tuple[Any, ...]:
    return value if isinstance(value, tuple) else (value,)
