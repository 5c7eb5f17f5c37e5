"""The plan: what a person asks for, read and checked; its variants; the keys of its work. Pure, but for reading the file."""

from flows.plan.expansion import (
    VariantRow,
    check_data,
    describe,
    expand,
    label,
    primary_metric,
    retraining_key,
    targets_of,
    work_key,
)
from flows.plan.form import MEASURES, FitGrid, Plan, Promotion, Target, WorkersSpec
from flows.plan.reading import parse_plan, read_plan

__all__ = [
    "MEASURES",
    "FitGrid",
    "Plan",
    "Promotion",
    "Target",
    "VariantRow",
    "WorkersSpec",
    "check_data",
    "describe",
    "expand",
    "label",
    "parse_plan",
    "primary_metric",
    "read_plan",
    "retraining_key",
    "targets_of",
    "work_key",
]
