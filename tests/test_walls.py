"""The walls that only a fresh process shows, what comes along when a room is imported; and how far it is from top to bottom."""

import ast
import subprocess
import sys
from collections.abc import Collection, Iterator
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
MODULES = {
    ".".join(file.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): file
    for package in ("flows", "heads")
    for file in (ROOT / package).rglob("*.py")
}
LONGEST_CHAIN = 14
HEAVY = ("torch", "torchvision", "prefect", "ray", "mlflow", "dvc", "boto3", "sklearn", "matplotlib", "pandas")


def _loaded_after(statement: str) -> set[str]:
    return {module.split(".")[0] for module in _modules_after(statement)}


@cache
def _modules_after(statement: str) -> set[str]:
    code = f"{statement}\nimport sys\nprint(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return set(done.stdout.split())


@pytest.mark.parametrize(
    "room", ["heads.spec", "flows.records", "flows.plan", "flows.gate", "flows.settings", "flows.cli", "flows.cli.verbs"]
)
def test_a_light_room_brings_nothing_heavy_along(room: str) -> None:
    assert _loaded_after(f"import {room}").isdisjoint(HEAVY)


@pytest.mark.parametrize(
    ("program", "unneeded"),
    [
        ("flows.job.__main__", HEAVY),
        ("flows.cli.retraining", HEAVY),
        ("flows.stack.__main__", {"torch", "torchvision", "ray", "sklearn", "matplotlib", "scipy.stats"}),
        ("flows.pipeline", {"torch", "torchvision", "ray", "mlflow", "dvc", "sklearn", "matplotlib", "pandas", "scipy.stats"}),
        ("flows.job.holdout.scoring", {"ray", "mlflow", "prefect", "pandas", "torch._dynamo", "scipy.stats"}),
        ("heads.bundle", {"torch._dynamo", "torch._inductor", "sympy.core"}),
    ],
)
def test_a_program_loads_late_what_it_may_not_need(program: str, unneeded: Collection[str]) -> None:
    assert _modules_after(f"import {program}").isdisjoint(unneeded)


def test_costs_are_counted_and_optimizers_made_without_torchs_compiler() -> None:
    lines = (
        "import torch",
        "from heads.backbones import count_costs",
        "from heads.spec import Fit",
        "from heads.training.optimizer import build_optimizer",
        "for name, size in (('mobilenet_v2', 64), ('vit_b_32', 96), ('bert-2x64x2', 16), ('lstm', 16)): count_costs(name, size)",
        "optimizer = build_optimizer(Fit(epochs=1), [{'params': [torch.nn.Parameter(torch.zeros(2))]}])",
        "optimizer.load_state_dict(optimizer.state_dict())",
        "optimizer.zero_grad()",
        "from heads.training.logistic import fit_logistic",
        "fit_logistic(torch.eye(2), torch.eye(2), (1.0,), exclusive=True)",
    )
    assert _modules_after("\n".join(lines)).isdisjoint({"torch._dynamo", "sympy"})


@pytest.mark.parametrize("room", ["heads.bundle", "heads.training.loop"])
def test_heads_brings_no_part_of_the_pipeline_along(room: str) -> None:
    assert _loaded_after(f"import {room}").isdisjoint({"flows", "prefect", "ray", "mlflow", "dvc", "boto3", "sklearn", "pandas"})


def test_who_only_predicts_loads_nothing_that_trains() -> None:
    ours = {module for module in _modules_after("import heads.bundle") if module.split(".")[0] == "heads"}
    floors = {".".join(module.split(".")[:2]) for module in ours}
    assert floors.isdisjoint({"heads.training", "heads.fused", "heads.trunks", "heads.features", "heads.distributed"})
    assert "heads.data.loading" not in ours


def _imported_by(module: str) -> Iterator[str]:
    """The modules of ours that a module's top level names; of a name that a package's face hands on, the package."""
    for statement in ast.parse(MODULES[module].read_text()).body:
        if isinstance(statement, ast.Import):
            yield from (each.name for each in statement.names if each.name in MODULES)
        elif isinstance(statement, ast.ImportFrom) and statement.module in MODULES:
            names = (f"{statement.module}.{each.name}" for each in statement.names)
            yield from (name if name in MODULES else statement.module for name in names)


@cache
def _longest_chain(module: str) -> tuple[str, ...]:
    return (module, *max((_longest_chain(each) for each in set(_imported_by(module)) - {module}), key=len, default=()))


def test_no_chain_of_imports_is_longer_than_a_person_can_follow() -> None:
    longest = max(map(_longest_chain, MODULES), key=len)
    assert len(longest) <= LONGEST_CHAIN, f"{len(longest)} files deep, {LONGEST_CHAIN} at most: {' -> '.join(longest)}"
