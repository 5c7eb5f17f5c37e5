import hashlib
import pickle
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torchvision import models

from heads import backbones
from heads.backbones import BACKBONES, build_stages, imagenet_weights, weights_digest
from heads.errors import WeightsError
from heads.spec import BACKBONE_STAGES

WEIGHTS = Path(__file__).parents[2].parent / "shared" / "weights"
PRETRAINED = {
    "mobilenet_v2": WEIGHTS / "mobilenet_v2_from_int8-cf435c58.pth",
    "squeezenet1_1": WEIGHTS / "squeezenet1_1_from_fp16-aec6cba8.pth",
}

torch.set_num_threads(1)


def classify(name: str, model: nn.Module, features: Tensor) -> Tensor:
    """The logits of torchvision's own classifier on a feature map."""
    if name == "squeezenet1_1":
        return torch.flatten(model.classifier(features), 1)
    pooled = features.mean(dim=(2, 3))
    if name == "convnext_tiny":
        return model.classifier(pooled[:, :, None, None])
    return (model.fc if hasattr(model, "fc") else model.classifier)(pooled)


def torchvision_model(name: str) -> nn.Module:
    torch.manual_seed(0)
    return BACKBONES[name].build().eval()


def shake_statistics(model: nn.Module) -> None:
    """Statistics other than zero and one, so that a norm left out or misplaced shows."""
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.normal_(0, 0.2)
            module.running_var.uniform_(0.5, 2)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("weights")


def test_the_table_holds_the_backbones_of_the_spec() -> None:
    assert list(BACKBONES) == list(BACKBONE_STAGES)


@pytest.mark.parametrize("name", BACKBONES)
def test_stages_in_a_row_equal_the_features_of_torchvision(name: str, folder: Path) -> None:
    model = torchvision_model(name)
    shake_statistics(model)
    path = folder / f"{name}.pth"
    torch.save(model.state_dict(), path)
    stages = build_stages(name, path).eval()
    images = torch.randn(2, 3, 70, 65, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        features = stages(images)
        expected = model(images)
        found = classify(name, model, features)
    assert features.shape[:2] == (2, BACKBONES[name].channels)
    assert tuple(stage for stage, _ in stages.named_children()) == BACKBONE_STAGES[name]
    torch.testing.assert_close(found, expected, atol=1e-5 * max(1, expected.abs().max().item()), rtol=0)


@pytest.mark.parametrize("name", BACKBONES)
def test_every_feature_parameter_is_in_one_stage_and_in_torchvisions_order(name: str) -> None:
    model = torchvision_model(name)
    wanted = [p.shape for key, p in model.named_parameters() if not key.startswith(BACKBONES[name].classifier)]
    assert [p.shape for p in build_stages(name, None).parameters()] == wanted


@pytest.mark.parametrize("name", BACKBONES)
def test_no_stage_changes_what_it_was_given(name: str) -> None:
    features = torch.randn(1, 3, 64, 64)
    for stage_name, stage in build_stages(name, None).eval().named_children():
        before = features.clone()
        with torch.no_grad():
            after = stage(features)
        assert torch.equal(features, before), f"{stage_name} writes into its input"
        features = after


@pytest.mark.parametrize("name", PRETRAINED)
def test_pretrained_stages_equal_the_features_of_torchvision(name: str) -> None:
    path = PRETRAINED[name]
    if not path.is_file():
        pytest.skip(f"{path} is not there")
    model = torchvision_model(name)
    model.load_state_dict(torch.load(path, weights_only=True))
    images = torch.randn(2, 3, 96, 96)
    with torch.no_grad():
        found, expected = classify(name, model, build_stages(name, path).eval()(images)), model(images)
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=0)


@pytest.mark.parametrize("name", BACKBONES)
def test_statistics_of_random_weights_follow_within_some_dozen_steps(name: str) -> None:
    norms = [module for module in build_stages(name, None).modules() if isinstance(module, nn.BatchNorm2d)]
    assert {norm.momentum for norm in norms} <= {0.1}


def test_stages_of_a_group_have_one_resolution_and_depth() -> None:
    stages, features, shapes = build_stages("mobilenet_v2", None).eval(), torch.zeros(1, 3, 224, 224), []
    with torch.no_grad():
        for stage in stages:
            features = stage(features)
            shapes.append(tuple(features.shape[1:3]))
    assert shapes == [(32, 112), (16, 112), (24, 56), (32, 28), (64, 14), (96, 14), (160, 7), (320, 7), (1280, 7)]


def test_a_file_without_classifier_or_with_another_classifier_is_taken(tmp_path: Path) -> None:
    model = models.squeezenet1_1(num_classes=3)
    torch.save(model.state_dict(), tmp_path / "three.pth")
    torch.save({k: v for k, v in model.state_dict().items() if k.startswith("features")}, tmp_path / "bare.pth")
    three, bare = (build_stages("squeezenet1_1", tmp_path / f).state_dict() for f in ("three.pth", "bare.pth"))
    assert three.keys() == bare.keys()
    assert all(torch.equal(three[key], bare[key]) for key in three)
    assert torch.equal(three["stem.0.weight"], model.features[0].weight)


def test_an_old_file_without_batchnorm_counters_is_taken(tmp_path: Path) -> None:
    state = models.resnet18().state_dict()
    torch.save({k: v for k, v in state.items() if "num_batches" not in k}, tmp_path / "old.pth")
    assert torch.equal(build_stages("resnet18", tmp_path / "old.pth").state_dict()["stem.conv1.weight"], state["conv1.weight"])


def test_weights_of_another_backbone_are_refused_by_its_name(tmp_path: Path) -> None:
    torch.save(models.squeezenet1_1().state_dict(), tmp_path / "squeeze.pth")
    with pytest.raises(
        WeightsError, match=r"squeeze\.pth is not of resnet18.*conv1\.weight.*use backbones: \[squeezenet1_1\]"
    ) as told:
        build_stages("resnet18", tmp_path / "squeeze.pth")
    assert "and " in str(told.value)
    assert len(str(told.value)) < 1000


def test_weights_of_no_known_backbone_say_which_keys_differ(tmp_path: Path) -> None:
    state = models.squeezenet1_1().state_dict()
    state["features.0.scale"] = state.pop("features.0.weight")
    torch.save(state, tmp_path / "odd.pth")
    with pytest.raises(WeightsError, match=r"missing: features\.0\.weight; unexpected: features\.0\.scale; give the weights of"):
        build_stages("squeezenet1_1", tmp_path / "odd.pth")


def test_weights_of_another_shape_say_both_shapes(tmp_path: Path) -> None:
    state = models.squeezenet1_1().state_dict()
    state["features.0.bias"] = torch.zeros(7)
    torch.save(state, tmp_path / "odd.pth")
    with pytest.raises(WeightsError, match=r"features\.0\.bias \(7,\) instead of \(64,\)"):
        build_stages("squeezenet1_1", tmp_path / "odd.pth")


class Trap:
    """Touches a file when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[object, tuple[Path]]:
        return Path.touch, (self.path,)


@pytest.mark.parametrize("write", [torch.save, lambda found, path: path.write_bytes(pickle.dumps(found))])
def test_pickled_code_is_refused_and_never_executed(write, tmp_path: Path) -> None:
    write({"features.0.weight": Trap(tmp_path / "sprung")}, tmp_path / "evil.pth")
    with pytest.raises(WeightsError, match="holds pickled code; refused, never executed"):
        build_stages("squeezenet1_1", tmp_path / "evil.pth")
    assert not (tmp_path / "sprung").exists()


def test_a_whole_pickled_model_is_refused(tmp_path: Path) -> None:
    torch.save(models.squeezenet1_1(), tmp_path / "whole.pth")
    with pytest.raises(WeightsError, match=r"refused, never executed.*torch\.save\(model\.state_dict\(\)"):
        build_stages("squeezenet1_1", tmp_path / "whole.pth")


def test_a_checkpoint_with_weights_inside_is_refused_with_its_outline(tmp_path: Path) -> None:
    torch.save({"epoch": 3, "model": models.squeezenet1_1().state_dict()}, tmp_path / "checkpoint.pth")
    with pytest.raises(WeightsError, match="holds a dict of 'epoch': int, 'model': OrderedDict, not a state dict"):
        build_stages("squeezenet1_1", tmp_path / "checkpoint.pth")


@pytest.mark.parametrize("found", [torch.zeros(3), [1, 2], {}])
def test_what_is_no_state_dict_is_refused(found: object, tmp_path: Path) -> None:
    torch.save(found, tmp_path / "other.pth")
    with pytest.raises(WeightsError, match="not a state dict"):
        build_stages("squeezenet1_1", tmp_path / "other.pth")


@pytest.mark.parametrize("content", [b"", b"not weights at all", b"PK\x03\x04 cut off", b"\xff\xd8\xff\xe0"])
def test_a_file_of_something_else_is_refused(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "image.pth").write_bytes(content)
    with pytest.raises(WeightsError, match=r"image\.pth"):
        build_stages("squeezenet1_1", tmp_path / "image.pth")


def test_a_truncated_file_is_refused(tmp_path: Path) -> None:
    torch.save(models.squeezenet1_1().state_dict(), tmp_path / "whole.pth")
    (tmp_path / "half.pth").write_bytes((tmp_path / "whole.pth").read_bytes()[:100_000])
    with pytest.raises(WeightsError, match=r"half\.pth could not be read"):
        build_stages("squeezenet1_1", tmp_path / "half.pth")


@pytest.mark.parametrize("path", ["nowhere.pth", "."])
def test_a_missing_file_is_refused_by_its_path(path: str, tmp_path: Path) -> None:
    for look in (weights_digest, lambda where: build_stages("squeezenet1_1", where)):
        with pytest.raises(WeightsError, match=r"does not exist|is a folder"):
            look(tmp_path / path)


def test_the_digest_is_the_start_of_the_files_sha256(tmp_path: Path) -> None:
    (tmp_path / "a.pth").write_bytes(b"abc")
    assert weights_digest(tmp_path / "a.pth") == hashlib.sha256(b"abc").hexdigest()[:16]


def test_imagenet_weights_come_from_torchs_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.hub, "_hub_dir", str(tmp_path))
    cached = tmp_path / "checkpoints" / "squeezenet1_1-b8a52dc0.pth"
    cached.parent.mkdir()
    cached.touch()
    assert imagenet_weights("squeezenet1_1") == cached


def test_imagenet_weights_out_of_reach_say_where_to_put_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.hub, "_hub_dir", str(tmp_path))
    # A port that nothing listens on: the download itself is real and fails as it does offline.
    for variable in ("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY"):
        monkeypatch.setenv(variable, "http://127.0.0.1:9")
    monkeypatch.delenv("no_proxy", raising=False)
    monkeypatch.delenv("NO_PROXY", raising=False)
    with pytest.raises(WeightsError, match=r"mobilenet_v2 could not be downloaded.*give a weights file by its path"):
        imagenet_weights("mobilenet_v2")
    assert not list((tmp_path / "checkpoints").iterdir())


@pytest.mark.parametrize("name", BACKBONES)
def test_preprocessing_is_that_of_the_imagenet_weights(name: str) -> None:
    backbone = BACKBONES[name]
    assert backbone.resize in (236, 256)
    assert backbone.mean == (0.485, 0.456, 0.406)
    assert backbone.std == (0.229, 0.224, 0.225)


def test_the_architecture_of_every_file_is_recognised() -> None:
    for name in BACKBONES:
        assert backbones._architecture_of(backbones._shapes(name)) == name
