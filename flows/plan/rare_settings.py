"""Settings that few plans change: a plan file has them where they belong, the form shows them together at its end."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Annotated, Any, Self

from pydantic import BaseModel, ConfigDict, Field, GetJsonSchemaHandler, ModelWrapValidatorHandler, model_validator
from pydantic.json_schema import JsonSchemaValue

from flows.plan.fit import CommonFit, Number, RareFit
from heads.spec import Value

Screening = Annotated[
    Annotated[int, Field(ge=1), Number] | None,
    Field(
        description="Of the lp_ft variants only so many, the best after their probe phase, go on into fine-tuning; empty: all."
    ),
]


class Rare(RareFit):
    """Settings of `fit`, and `screening`, that few plans change."""

    model_config = ConfigDict(title="Rare")

    screening: Screening = None


class WithRare(Value):
    """A plan whose rare settings may also come together under `rare`; once read, each is where a file has it."""

    rare: Rare | None = Field(
        None, exclude=True, description="Settings that few plans change: None leaves each as it is by default; Rare shows them."
    )

    @model_validator(mode="wrap")
    @classmethod
    def _put_where_they_belong(cls, data: Any, handler: ModelWrapValidatorHandler[Self]) -> Self:
        plan = handler(data)
        if plan.rare is None or not isinstance(data, Mapping):
            return plan
        given = plan.rare.model_dump(exclude_unset=True)
        places = {name: data if name == "screening" else _as_mapping(data.get("fit")) for name in given}
        if twice := [name for name, place in places.items() if name in place]:
            raise ValueError(f"{', '.join(twice)}: given under rare and where a plan has it; give it once")
        whole = {name: value for name, value in data.items() if name != "rare"}
        if "screening" in given:
            whole["screening"] = given.pop("screening")
        return handler(whole | {"fit": _as_mapping(data.get("fit")) | given})

    @classmethod
    def __get_pydantic_json_schema__(cls, core_schema: Any, handler: GetJsonSchemaHandler) -> JsonSchemaValue:
        schema = handler(core_schema)
        fields = handler.resolve_ref_schema(schema)
        known = fields["properties"]
        fields["patternProperties"] = {"^screening$": known.pop("screening")}
        known["rare"] = known.pop("rare")
        return schema


def _as_mapping(fit: Any) -> dict[str, Any]:
    return fit.model_dump(exclude_unset=True) if isinstance(fit, BaseModel) else dict(fit or {})


def form_values(plan: WithRare) -> dict[str, Any]:
    """A plan as values for the form: every common setting, and `rare`, which is None if all rare settings are defaults."""
    values = plan.model_dump(mode="json")
    rare = {name: values["fit"].pop(name) for name in RareFit.model_fields} | {"screening": values.pop("screening")}
    return values | {"rare": None if rare == Rare().model_dump(mode="json") else rare}


def left_empty(plan: Any) -> tuple[str, ...]:
    """The settings that a person left empty in the form and that have a default, as words such as 'fit.epochs 10'."""
    parts: Mapping[str, tuple[BaseModel, Mapping[str, Any]]] = {
        "fit": (plan.fit, CommonFit.model_fields),
        "workers": (plan.workers, type(plan.workers).model_fields),
        "promotion": (plan.promotion, {n: f for n, f in type(plan.promotion).model_fields.items() if n != "guards"}),
        "promotion.guards": (plan.promotion.guards, type(plan.promotion.guards).model_fields),
    }

    def empty() -> Iterator[str]:
        for part, (values, fields) in parts.items():
            for name, field in fields.items():
                shown = part.partition(".")[0] in plan.model_fields_set and name not in values.model_fields_set
                if shown and field.default is not None:
                    yield f"{part}.{name} {field.default}"

    return tuple(empty())
