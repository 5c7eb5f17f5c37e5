"""The plan's model: the keys of the YAML file and the fields of the form in one."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Self

from pydantic import BeforeValidator, ConfigDict, Field, field_validator, model_validator

from flows.plan.allowed import known
from flows.plan.fit import FitGrid, Number, Some
from flows.plan.named_weights import EACH_WEIGHTS, WEIGHTS, check_weights, check_weights_of_texts
from flows.plan.promotion import Promotion
from flows.plan.rare_settings import Screening, WithRare
from flows.records import Workers
from heads.catalogue import BACKBONE_STAGES, HEAD_DESIGNS, IMAGE_SIZES, TEXT_BACKBONES, Task, check_image_size
from heads.spec import FREEZE_POLICIES, Value, frozen_through

# Every policy that some backbone understands: what the form offers.
POLICIES = (
    *(policy for policy in FREEZE_POLICIES if ":" not in policy),
    *dict.fromkeys(f"upto:{stage}" for stages in BACKBONE_STAGES.values() for stage in stages),
)
DESIGNS = tuple(dict.fromkeys(design for designs in HEAD_DESIGNS.values() for design in designs))


def _listed(value: Any) -> Any:
    return [value] if isinstance(value, str | Mapping) else value


def _column(value: Any) -> Any:
    return {"column": value} if isinstance(value, str) else value


def _blank(value: Any) -> Any:
    return None if value == "" else value


def _values(value: Any) -> Any:
    return () if value is None else (value,) if isinstance(value, int) else value


Listed = BeforeValidator(_listed)
WorkerCount = Annotated[int, Field(ge=1, le=1024)]
WorkerCounts = Annotated[WorkerCount | tuple[WorkerCount, ...], Number]
Ignored = Annotated[tuple[Annotated[int, Field(ge=0, lt=2**16)], ...], BeforeValidator(_values), Number]

# `enum` only makes the form offer a choice: the validators below refuse other values, in our own words.
Backbones = Annotated[tuple[Annotated[str, Field(json_schema_extra={"enum": list(BACKBONE_STAGES)})], ...], Some, Listed]
Designs = Annotated[tuple[Annotated[str, Field(json_schema_extra={"enum": list(DESIGNS)})], ...], Some, Listed]
Policies = Annotated[tuple[Annotated[str, Field(json_schema_extra={"enum": list(POLICIES)})], ...], Some, Listed]


class Target(Value):
    """A column to predict."""

    column: str = Field(description="A target column of the data set's manifest.", min_length=1)
    task: Annotated[Task | None, BeforeValidator(_blank)] = Field(
        None,
        description="What is predicted of it; empty: segmentation for a column of masks, multilabel where a cell has several "
        "labels (a|b), else classification.",
    )
    ignore: Ignored = Field((), description="Values of masks that count for nothing, such as void or border.")
    weight: Annotated[float, Field(gt=0, le=1000), Number] = Field(
        1.0, description="What its loss counts in training, beside those of other targets."
    )


class WorkersSpec(Value):
    """The worker group that trains."""

    model_config = ConfigDict(title="Workers")

    count: WorkerCounts = Field(
        1,
        description="Number of workers; [least, most]: as many as there is room for, fewer after a node was lost, more once one "
        "has joined.",
    )
    gpus_per_worker: Annotated[float, Field(ge=0, le=64), Number] = Field(0, description="GPUs for each worker; 0: on the CPU.")
    cpus_per_worker: Annotated[float, Field(gt=0, le=1024), Number] = Field(1, description="CPU cores for each worker.")

    @field_validator("count")
    @classmethod
    def _range_is_one(cls, value: int | tuple[int, ...]) -> int | tuple[int, ...]:
        if isinstance(value, tuple) and (len(value) != 2 or value[0] > value[1]):
            raise ValueError(f"{list(value)} is no range of workers; give a number, or [least, most], such as [1, 4]")
        return value

    @model_validator(mode="after")
    def _whole_gpus(self) -> Self:
        gpus, most = self.gpus_per_worker, self.count if isinstance(self.count, int) else self.count[-1]
        if gpus > 1 and gpus != int(gpus):
            raise ValueError(
                f"gpus_per_worker {gpus:g} is neither whole nor below 1, and Ray gives no such share; write {int(gpus)}"
            )
        if most > 1 and 0 < gpus <= 0.5:
            raise ValueError(
                f"{most} workers of {gpus:g} GPUs could share a device, and NCCL refuses two processes of a group on one; "
                f"write {{count: 1, gpus_per_worker: {gpus:g}}} for a share of a GPU, {{count: 1, gpus_per_worker: 1}} for "
                f"all of it, or {{count: {most}, gpus_per_worker: 1}} for a GPU each"
            )
        return self

    def group(self) -> Workers:
        """The worker group as the value that travels to the cluster."""
        least, most = self.count if isinstance(self.count, tuple) else (self.count, self.count)
        return Workers(most, self.gpus_per_worker, self.cpus_per_worker, least if least < most else None)


class Plan(WithRare):
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
    weights: str | dict[str, str] = Field(
        "imagenet",
        description=f"The backbone's first weights: {WEIGHTS}; or such for each backbone, {EACH_WEIGHTS}.",
    )
    heads: Designs = Field(("linear", "lraspp"), description="Head designs to try: each target tries those of its task.")
    freeze: Policies = Field(
        ("all",),
        description="Freeze policies to try: none, all, gradual (thaw stage by stage), lp_ft (heads first, then everything), "
        "adaptive (freeze stages that have stopped moving), `upto:<stage>`. Left out with weights none: none.",
    )
    screening: Screening = None
    fit: FitGrid = Field(FitGrid(), description="Fit settings; lists make a grid.")
    workers: WorkersSpec = Field(WorkersSpec(), description="The worker group.")
    promotion: Promotion = Field(Promotion(), description="The rules of promotion.")

    @model_validator(mode="before")
    @classmethod
    def _thawed_without_weights(cls, data: Any) -> Any:
        if isinstance(data, Mapping) and "weights" not in data and "backbones" in data:
            named = _listed(data["backbones"])
            # No weights of networks of texts are published.
            if isinstance(named, list | tuple) and named and all(name in TEXT_BACKBONES for name in named):
                data = {**data, "weights": "none"}
        if isinstance(data, Mapping) and "freeze" not in data:
            weights = data.get("weights")
            named = list(weights.values()) if isinstance(weights, Mapping) else [weights]
            if named and all(one == "none" for one in named):
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
        return tuple(known("backbone", name, BACKBONE_STAGES) for name in value)

    @field_validator("heads")
    @classmethod
    def _known_designs(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        return tuple(known("head design", name, DESIGNS) for name in value)

    @field_validator("weights")
    @classmethod
    def _known_weights(cls, value: str | dict[str, str]) -> str | dict[str, str]:
        for named in (value,) if isinstance(value, str) else value.values():
            check_weights(named)
        return value

    @model_validator(mode="after")
    def _weights_name_backbones(self) -> Self:
        if isinstance(self.weights, dict) and self.weights.keys() != set(self.backbones):
            raise ValueError(
                f"weights are of {', '.join(self.weights) or 'no backbone'}, and backbones lists {', '.join(self.backbones)}; "
                f"give each its weights, {EACH_WEIGHTS}, or one word for all"
            )
        return self

    def weights_of(self, backbone: str) -> str:
        """The first weights of one of its backbones, of whatever size, as the plan names them."""
        return self.weights if isinstance(self.weights, str) else self.weights[backbone.partition("-")[0]]

    @property
    def starts_from_champion(self) -> bool:
        """Whether any of its backbones starts from the champion's."""
        return "champion" in (self.weights_of(backbone) for backbone in self.backbones)

    @model_validator(mode="after")
    def _screening_fits(self) -> Self:
        if self.screening is not None and "lp_ft" not in self.freeze:
            raise ValueError(
                f"screening {self.screening} is of variants that probe before they fine-tune, and freeze lists "
                f"{', '.join(self.freeze)}; add lp_ft, or leave screening out"
            )
        return self

    @model_validator(mode="after")
    def _sizes_fit(self) -> Self:
        self.fit.refuse_sizes_of_none(self.backbones)
        for backbone in (name for name in self.backbones if name in IMAGE_SIZES):
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
    def _words_known(self) -> Self:
        for backbone in dict.fromkeys(name for name in self.backbones if name in TEXT_BACKBONES):
            check_weights_of_texts(backbone, self.weights_of(backbone))
        return self

    @property
    def sized_backbones(self) -> tuple[str, ...]:
        """Its backbones, recurrent ones with every size to try in their names."""
        return tuple(dict.fromkeys(name for backbone in self.backbones for name in self.fit.sizes_of(backbone)))

    @model_validator(mode="after")
    def _freezing_fits(self) -> Self:
        for policy in self.freeze:
            for backbone in self.sized_backbones:
                frozen_through(policy, backbone)
            random = any(self.weights_of(backbone) == "none" for backbone in self.backbones)
            if random and (policy == "all" or policy.startswith("upto:")):
                raise ValueError(
                    f"freeze {policy!r} with weights 'none' would keep random features for ever; "
                    "use freeze none, gradual, lp_ft or adaptive, or give weights"
                )
        if isinstance(self.weights, str) and self.weights not in ("imagenet", "none") and len(set(self.backbones)) > 1:
            what = "one model" if self.weights == "champion" else "one file"
            raise ValueError(
                f"weights {self.weights!r} is {what} and fits one backbone, but the plan lists {', '.join(self.backbones)}; "
                f"give each its own, {EACH_WEIGHTS}, or use weights imagenet"
            )
        return self
