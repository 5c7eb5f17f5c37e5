"""The walls that only a fresh process shows: what comes along when a room is imported."""

import subprocess
import sys

import pytest

HEAVY = ("torch", "torchvision", "prefect", "ray", "mlflow", "dvc", "boto3", "sklearn", "matplotlib", "pandas")


def _loaded_after(statement: str) -> set[str]:
    return {module.split(".")[0] for module in _modules_after(statement)}


def _modules_after(statement: str) -> set[str]:
    code = f"{statement}\nimport sys\nprint(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return set(done.stdout.split())


@pytest.mark.parametrize(
    "room", ["heads.spec", "flows.records", "flows.plan", "flows.gate", "flows.settings", "flows.cli", "flows.cli.verbs"]
)
def test_a_light_room_brings_nothing_heavy_along(room: str) -> None:
    assert _loaded_after(f"import {room}").isdisjoint(HEAVY)


@pytest.mark.parametrize("room", ["heads.bundle", "heads.training.loop"])
def test_heads_brings_no_part_of_the_pipeline_along(room: str) -> None:
    assert _loaded_after(f"import {room}").isdisjoint({"flows", "prefect", "ray", "mlflow", "dvc", "boto3", "sklearn", "pandas"})


def test_who_only_predicts_loads_nothing_that_trains() -> None:
    ours = {module for module in _modules_after("import heads.bundle") if module.split(".")[0] == "heads"}
    floors = {".".join(module.split(".")[:2]) for module in ours}
    assert floors.isdisjoint({"heads.training", "heads.fused", "heads.trunks", "heads.features", "heads.distributed"})
    assert "heads.data.loading" not in ours
