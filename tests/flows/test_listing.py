"""The list of backbones, and the command that prints it."""

import json
import subprocess
import sys

import pytest

from flows.cli import backbones as listing
from heads.catalogue import BACKBONE_STAGES, IMAGE_BACKBONES


def test_every_backbone_is_listed_with_its_stages_costs_sizes_and_weights(capsys: pytest.CaptureFixture[str]) -> None:
    listing.show(as_json=True)
    found = {backbone["name"]: backbone for backbone in json.loads(capsys.readouterr().out)["backbones"]}
    stages = {name: tuple(stage["name"] for stage in backbone["stages"]) for name, backbone in found.items()}
    assert stages == {name: BACKBONE_STAGES[name] for name in IMAGE_BACKBONES}
    resnet = found["resnet18"]
    assert (resnet["parameters"], resnet["image_size_px"], resnet["features"]) == (11_176_512, 224, "map")
    assert round(resnet["multiply_adds"] / 1e9, 2) == 1.81
    assert resnet["weights"]["sha256"] == "f37072fd"
    assert resnet["stages"][1] == {
        "name": "layer1",
        "channels": 64,
        "stride": 4,
        "parameters": 147_968,
        "multiply_adds": 4 * 56**2 * 64 * 64 * 9,
    }
    assert found["inception_v3"]["allowed_image_sizes_px"] == {"least": 75, "most": 1024, "step": 1}


def test_the_table_has_a_line_a_backbone(capsys: pytest.CaptureFixture[str]) -> None:
    listing.show(as_json=False)
    lines = [line.split("│")[1].strip() for line in capsys.readouterr().out.splitlines() if line.startswith("│")]
    assert lines == list(IMAGE_BACKBONES)


def test_neither_a_plan_nor_the_list_is_a_wrong_request() -> None:
    code = "import sys; from flows.cli import main; sys.argv = ['headstart', 'plan']; main()"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert "no plan was named" in done.stderr
