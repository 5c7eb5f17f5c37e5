"""The main job by the public command: killed half-way, finished by the next, done by the third; then used by a consumer."""

from __future__ import annotations

import json
import os
import shutil
import signal
import sqlite3
import subprocess
import sys
import venv
from pathlib import Path
from typing import Any

import pytest

from tests.end_to_end.conftest import Workspace, wait_for

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]
ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def resumed(digits: Workspace) -> dict[str, Any]:
    """The report of a retraining whose predecessor was killed in its second variant."""
    first, second = [v["variant_id"] for v in digits.json("plan", "plan.yaml", "--no-calibrate")["variants"]]
    flow = digits.start("retrain", "plan.yaml")

    def half_way() -> bool:
        assert flow.poll() is None, "the retraining ended before it could be killed"
        epochs = {p["variant"]: n for p, n in _progress(digits.storage)}
        return epochs.get(first) == 4 and epochs.get(second, 0) == 1

    wait_for("the second variant in training", half_way, 300)
    os.kill(flow.pid, signal.SIGKILL)
    flow.wait()
    return digits.json("retrain", "plan.yaml") | {"first": first, "second": second}


def _progress(storage: Path) -> list[tuple[dict[str, str], int]]:
    found = []
    for file in storage.glob("jobs/train-*/job.json"):
        for work in json.loads(file.read_text())["works"]:
            progress = storage / "work" / work["key"] / "progress.json"
            from heads.spec import Variant

            variant = Variant.model_validate(work["variant"]).variant_id
            found.append(({"variant": variant}, len(json.loads(progress.read_text())["epochs"]) if progress.exists() else 0))
    return found


def _rows(digits: Workspace, query: str) -> list[Any]:
    with sqlite3.connect(digits.storage / "mlflow.db") as database:
        return database.execute(query).fetchall()


def test_after_a_kill_the_next_retraining_finishes_what_is_left_and_promotes_one_version(
    digits: Workspace, resumed: dict[str, Any]
) -> None:
    # The Ray job outlives the flow: the next one joins it, or finds that it has finished meanwhile.
    assert next(v["reused"] for v in resumed["variants"] if v["variant_id"] == resumed["first"])
    assert resumed["counts"]["variants_trained"] <= 1
    assert resumed["verdict"]["promoted"], resumed["verdict"]
    assert resumed["holdout"]["label/accuracy"] > 0.8
    assert resumed["model"]["version"] == "1"
    assert "champion" in resumed["model"]["aliases"]


def test_the_baseline_of_a_plan_without_a_frozen_trunk_is_the_majority_in_report_and_mlflow(
    digits: Workspace, resumed: dict[str, Any]
) -> None:
    plain = resumed["baseline"]
    assert (plain["kind"], plain["note"]) == (
        "majority",
        "no variant stores the features of a frozen backbone, which a probe could read",
    )
    assert plain["metrics"]["val/label/accuracy"] < 0.2
    query = f"select {{}} from {{}} where run_uuid = '{resumed['run_id']}' and key = '{{}}'"
    ((value,),) = _rows(digits, query.format("value", "metrics", "baseline/val/label/accuracy"))
    assert value == plain["metrics"]["val/label/accuracy"]
    assert _rows(digits, query.format("value", "tags", "headstart.baseline")) == [("majority",)]


def test_every_epoch_of_every_variant_is_in_mlflow_once_and_no_run_is_left_running(
    digits: Workspace, resumed: dict[str, Any]
) -> None:
    assert _rows(digits, "select count(*) from runs where status != 'FINISHED'") == [(0,)]
    for variant in resumed["variants"]:
        query = f"select step, value from metrics where run_uuid = '{variant['run_id']}' and key = '{{}}' order by step"
        assert [step for step, _ in _rows(digits, query.format("epoch/train/loss"))] == [0, 1, 2, 3]
        # Beside the curve stands what the kept weights measure, which is a point of it.
        ((step, value),) = _rows(digits, query.format("val/label/accuracy"))
        assert value == variant["metrics"]["val/label/accuracy"]
        assert (step, value) in _rows(digits, query.format("epoch/val/label/accuracy"))


def test_the_seconds_of_a_retraining_add_up_to_its_total(resumed: dict[str, Any]) -> None:
    seconds = resumed["seconds"]
    assert sum(seconds.values()) - seconds["total"] == pytest.approx(seconds["total"], abs=0.1)


def test_a_third_retraining_trains_and_registers_nothing(digits: Workspace, resumed: dict[str, Any]) -> None:
    again = digits.json("retrain", "plan.yaml")
    nothing_done = dict.fromkeys(resumed["counts"], 0)
    assert again["counts"] == nothing_done | {"samples": resumed["counts"]["samples"], "variants_reused": 2}
    assert again["holdout"] == resumed["holdout"]
    assert _rows(digits, "select count(*) from model_versions") == [(1,)]


def test_a_source_that_brings_nothing_new_starts_no_ray(digits: Workspace, resumed: dict[str, Any]) -> None:
    shutil.rmtree(digits.storage / "ray")
    again = digits.json("retrain", "plan.yaml", "--source", "digits")
    assert again["counts"]["variants_reused"] == 2
    assert not (digits.storage / "ray" / "token").exists(), "a Ray that starts makes its token first"


def test_no_ray_process_of_the_workspace_is_left(digits: Workspace, resumed: dict[str, Any]) -> None:
    assert not (digits.storage / "ray" / "cluster.json").exists()


def test_models_show_gives_the_champion_with_its_holdout_measures(digits: Workspace, resumed: dict[str, Any]) -> None:
    told = digits.json("models", "show", "digits")
    assert told["champion"]["version"] == "1"
    assert told["champion"]["metrics"] == pytest.approx(resumed["holdout"])
    assert told["champion"]["data_version"] == resumed["data_version"]
    assert told["previous"] is None


def test_a_workspace_that_moved_reads_its_models_where_they_are_now(
    digits: Workspace, resumed: dict[str, Any], tmp_path: Path
) -> None:
    shutil.copytree(digits.folder, tmp_path / "moved here", symlinks=True)
    moved, image = Workspace(tmp_path / "moved here"), str(next(digits.folder.glob("data/images/*/*.bmp")))
    (digits.storage / "artifacts").rename(digits.storage / "away")
    try:
        assert "bundle.predict" in moved.run("models", "card", "digits@champion")
        moved.run("models", "pull", "digits@champion", "live")
        assert moved.json("predict", "digits@champion", image)["predictions"][0]["file"] == image
        assert not (digits.storage / "artifacts").exists()
    finally:
        (digits.storage / "away").rename(digits.storage / "artifacts")


def test_a_bundle_predicts_where_only_torch_torchvision_safetensors_and_pydantic_are(
    digits: Workspace, resumed: dict[str, Any], tmp_path: Path
) -> None:
    digits.run("models", "pull", "digits@champion", str(tmp_path / "bundle"))
    images = [str(path) for path in sorted(digits.folder.glob("data/images/*/*.bmp"))[::300]]
    python = _environment(tmp_path / "venv", "torch", "torchvision", "safetensors", "pydantic")
    code = (
        "import json, sys, heads.bundle\n"
        "read = heads.bundle.load(sys.argv[1]).predict(sys.argv[2:])\n"
        "assert not {'ray', 'mlflow', 'prefect', 'dvc', 'boto3', 'flows'} & set(sys.modules)\n"
        "print(json.dumps([one['label'].label for one in read]))"
    )
    env = {"PYTHONPATH": str(_only_heads(tmp_path)), "PATH": os.environ["PATH"]}
    done = subprocess.run(
        [str(python), "-c", code, str(tmp_path / "bundle"), *images], env=env, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    here = digits.json("predict", "digits@champion", *images)["predictions"]
    assert json.loads(done.stdout) == [one["label"]["label"] for one in here]


def test_the_registered_model_loads_where_only_mlflow_torch_and_numpy_are(
    digits: Workspace, resumed: dict[str, Any], tmp_path: Path
) -> None:
    python = _environment(tmp_path / "venv", "mlflow", "torch", "numpy")
    code = (
        "import mlflow, numpy, sys\n"
        "mlflow.set_tracking_uri(sys.argv[1])\n"
        "model = mlflow.pyfunc.load_model('models:/digits@champion')\n"
        "read = model.predict(numpy.zeros((3, 32, 32, 3), dtype='uint8'))\n"
        "assert read.shape == (3, 10) and abs(read.sum(axis=1) - 1).max() < 1e-5, read\n"
        "assert 'heads' not in sys.modules and 'torchvision' not in sys.modules"
    )
    address = f"sqlite:///{digits.storage / 'mlflow.db'}"
    env = {"PATH": os.environ["PATH"], "MLFLOW_ALLOW_PICKLE_DESERIALIZATION": "false", "MLFLOW_DISABLE_TELEMETRY": "true"}
    done = subprocess.run([str(python), "-c", code, address], env=env, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def _environment(folder: Path, *names: str) -> Path:
    """The Python of a new environment that has these distributions alone, at the versions of the lock."""
    venv.create(folder, symlinks=True)
    constraints = folder / "constraints.txt"
    lock = (ROOT / "infra" / "requirements.lock").read_text()
    constraints.write_text(
        "\n".join(line.rstrip(" \\") for line in lock.splitlines() if "==" in line and not line.startswith(" "))
    )
    uv = Path(sys.executable).with_name("uv")
    command = [
        str(uv),
        "pip",
        "install",
        "--quiet",
        "--python",
        str(folder / "bin" / "python"),
        "--constraints",
        str(constraints),
    ]
    subprocess.run([*command, *names], check=True)
    return folder / "bin" / "python"


def _only_heads(folder: Path) -> Path:
    """A folder to import from that holds `heads` alone."""
    alone = folder / "alone"
    alone.mkdir()
    (alone / "heads").symlink_to(ROOT / "heads")
    return alone
