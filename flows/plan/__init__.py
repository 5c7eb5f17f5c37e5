"""The plan: reading and checking it, its variants, and the keys of its works. Pure, but for reading the file."""

from flows.plan.checks import check_data
from flows.plan.classes import class_names, count_classes, majority_classes
from flows.plan.expansion import (
    VariantRow,
    describe_variants,
    expand,
    recipe_key,
    recipe_of,
    retraining_key,
    screening_keys,
    start_key,
    variant_label,
    work_key,
)
from flows.plan.form import Plan
from flows.plan.promotion import PRIMARY
from flows.plan.rare_settings import form_values, left_empty
from flows.plan.reading import parse_plan, read_plan
from flows.plan.targets import find_task, groups_of, primary_metric, targets_of
from flows.plan.trunks import TrunkGroup, VariantPhases, group_by_trunk

__all__ = [
    "PRIMARY",
    "Plan",
    "TrunkGroup",
    "VariantPhases",
    "VariantRow",
    "check_data",
    "class_names",
    "count_classes",
    "describe_variants",
    "expand",
    "find_task",
    "form_values",
    "group_by_trunk",
    "groups_of",
    "left_empty",
    "majority_classes",
    "parse_plan",
    "primary_metric",
    "read_plan",
    "recipe_key",
    "recipe_of",
    "retraining_key",
    "screening_keys",
    "start_key",
    "targets_of",
    "variant_label",
    "work_key",
]
