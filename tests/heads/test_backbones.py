import hashlib
import math
import pickle
import re
import subprocess
import sys
from dataclasses import dataclass
from math import log2
from pathlib import Path

import pytest
import torch
import torchvision
from torch import Tensor, nn
from torchvision import models
from torchvision.models.vision_transformer import interpolate_embeddings

from heads.backbones import (
    BACKBONES,
    build_stages,
    check_weights,
    count_costs,
    imagenet_weights,
    tokens_to_map,
    weights,
    weights_digest,
)
from heads.backbones.blank import build_blank, build_skeleton
from heads.catalogue import BACKBONE_STAGES, IMAGE_BACKBONES, IMAGE_SIZES, check_image_size
from heads.errors import WeightsError

WEIGHTS = Path(__file__).parents[2].parent / "shared" / "weights"
PRETRAINED = {
    "mobilenet_v2": WEIGHTS / "mobilenet_v2_from_int8-cf435c58.pth",
    "squeezenet1_1": WEIGHTS / "squeezenet1_1_from_fp16-aec6cba8.pth",
}


def size_of(name: str) -> tuple[int, int]:
    """A small size that torchvision's own model takes: odd where it can be."""
    least = 224 if BACKBONES[name].layout == "tokens" else IMAGE_SIZES[name].least
    return (least, least) if least == 224 else (least + 38, least + 33)


def randomise(model: nn.Module) -> None:
    """Storage and values for a skeleton, such that a layer left out, misplaced or taken twice shows."""
    for module in model.modules():
        for key, parameter in list(module.named_parameters(recurse=False)):
            noise, fan_in = torch.randn(parameter.shape), max(1, parameter.numel() // max(1, len(parameter)))
            matrix, scale = parameter.ndim >= 2 and "scale" not in key, key in ("weight", "layer_scale")
            setattr(module, key, nn.Parameter(noise / fan_in**0.5 if matrix else 0.1 * noise + scale))
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.normal_(0, 0.2)
            module.running_var.uniform_(0.5, 2)


def torchvision_model(name: str) -> nn.Module:
    """torchvision's own model with random weights; its classifier gives back what it is given."""
    torch.manual_seed(0)
    model = build_skeleton(name).eval()
    setattr(model, BACKBONES[name].classifier[0].removesuffix("."), nn.Identity())
    randomise(model)
    return model


def given_to_classifier(name: str, model: nn.Module, features: Tensor) -> Tensor:
    """What torchvision's own forward makes of the last features."""
    if name in ("squeezenet1_1", "maxvit_t"):
        return features
    if name.startswith(("alexnet", "vgg")):
        return model.avgpool(features)
    return features[:, 0] if features.ndim == 3 else features.mean(dim=(2, 3))


@dataclass(frozen=True)
class Cut:
    """A model of torchvision, cut into stages that share its modules."""

    name: str
    model: nn.Module
    parameters: dict[str, nn.Parameter]
    stages: list[nn.Module]


@pytest.fixture(scope="module", params=list(IMAGE_BACKBONES))
def cut(request: pytest.FixtureRequest) -> Cut:
    model = torchvision_model(request.param)
    return Cut(request.param, model, dict(model.named_parameters()), BACKBONES[request.param].split(model))


def test_the_table_holds_the_backbones_of_the_spec() -> None:
    assert list(BACKBONES) == list(BACKBONE_STAGES)


def test_stages_in_a_row_equal_the_features_of_torchvision_and_leave_their_inputs_alone(cut: Cut) -> None:
    images = torch.randn(1 if size_of(cut.name)[0] == 224 else 2, 3, *size_of(cut.name))
    with torch.no_grad():
        expected, features = cut.model(images), images
        for stage_name, stage in zip(BACKBONE_STAGES[cut.name], cut.stages, strict=True):
            before = features.clone()
            after = stage(features)
            assert torch.equal(features, before), f"{stage_name} writes into its input"
            features = after
    found = given_to_classifier(cut.name, cut.model, features)
    assert expected.std() > 1e-3
    atol = 1e-5 * max(1, expected.abs().max().item())
    torch.testing.assert_close(found.flatten(1), expected.flatten(1), atol=atol, rtol=0)


def test_every_feature_parameter_is_in_one_stage(cut: Cut) -> None:
    wanted = [id(p) for key, p in cut.parameters.items() if not key.startswith(BACKBONES[cut.name].classifier)]
    assert sorted(id(p) for stage in cut.stages for p in stage.parameters()) == sorted(wanted)


@pytest.mark.parametrize("name", IMAGE_BACKBONES)
def test_costs_are_those_that_torchvision_publishes_and_shapes_those_of_the_table(name: str) -> None:
    backbone, weights = BACKBONES[name], torchvision.models.get_model_weights(name)["IMAGENET1K_V1"]
    assert backbone.source
    assert backbone.source.url == weights.url
    side = backbone.source.images.image_size_px
    costs = count_costs(name, side)
    dropped = [p.shape for key, p in build_skeleton(name).named_parameters() if key.startswith(backbone.classifier)]
    published, own = weights.meta["num_params"], sum(cost.parameters for cost in costs)
    # torchvision counts Inception's auxiliary head too.
    assert own + sum(shape.numel() for shape in dropped) == published - (3_326_696 if name == "inception_v3" else 0)
    # SqueezeNet's classifier is a convolution of its last map.
    positions = costs[-1].shape[-1] ** 2 if name == "squeezenet1_1" else 1
    multiply_adds = sum(cost.multiply_adds for cost in costs) + sum(s.numel() * positions for s in dropped if len(s) > 1)
    assert multiply_adds / 1e9 == pytest.approx(weights.meta["_ops"], rel=0.01, abs=1e-3)
    assert [cost.stage for cost in costs] == list(BACKBONE_STAGES[name])
    if backbone.layout == "tokens":
        tokens = 1 + (side // backbone.strides[-1]) ** 2
        assert [cost.shape for cost in costs] == [(tokens, depth) for depth in backbone.channels]
    else:
        assert [cost.shape[0] for cost in costs] == list(backbone.channels)
        assert [2 ** round(log2(side / cost.shape[1])) for cost in costs] == list(backbone.strides)


# Rounded strides make 223 px as good as 224 to MaxViT.
@pytest.mark.parametrize(
    ("name", "size"), [("alexnet", 62), ("inception_v3", 74), ("maxvit_t", 192), ("maxvit_t", 256), ("maxvit_t", 448)]
)
def test_a_size_under_the_least_or_beside_the_only_one_would_fail_in_the_network(name: str, size: int) -> None:
    stages = nn.Sequential(*BACKBONES[name].split(build_skeleton(name).to("meta").eval()))
    with pytest.raises(RuntimeError, match=r"too small|greater than|shape"):
        stages(torch.empty(2, 3, size, size, device="meta"))


@pytest.mark.parametrize("size", [64, 96, 160])
def test_position_embeddings_of_another_size_are_those_of_torchvision(size: int) -> None:
    def tiny(image_size: int) -> nn.Module:
        return models.VisionTransformer(image_size, 16, 12, 2, 32, 64).eval()

    own, other = tiny(96), tiny(size)
    randomise(own)
    own.heads = other.heads = nn.Identity()
    other.load_state_dict(interpolate_embeddings(size, 16, own.state_dict()))
    images = torch.randn(2, 3, size, size)
    with torch.no_grad():
        found = nn.Sequential(*BACKBONES["vit_b_16"].split(own))(images)
        torch.testing.assert_close(found[:, 0], other(images), atol=1e-5, rtol=0)


def test_a_vision_transformer_exports_for_any_number_of_images() -> None:
    model = models.VisionTransformer(32, 16, 12, 2, 32, 64).eval()
    stages = nn.Sequential(*BACKBONES["vit_b_16"].split(model))
    program = torch.export.export(stages, (torch.zeros(2, 3, 48, 48),), dynamic_shapes=({0: torch.export.Dim.AUTO},)).module()
    images = torch.randn(5, 3, 48, 48)
    torch.testing.assert_close(program(images), stages(images), atol=1e-5, rtol=0)


def test_images_that_leave_a_rest_of_a_patch_are_refused() -> None:
    stem = BACKBONES["vit_b_16"].split(models.VisionTransformer(32, 16, 12, 2, 32, 64))[0]
    assert stem(torch.zeros(2, 3, 32, 48)).shape == (2, 7, 32)
    with pytest.raises(ValueError, match="32 x 40 px cannot be cut into patches of 16 px"):
        stem(torch.zeros(2, 3, 32, 40))


def test_tokens_become_a_map_in_reading_order_without_the_class_token() -> None:
    tokens = torch.arange(7)[None, :, None].expand(2, 7, 5)
    assert tokens_to_map(tokens, 2, 3)[1, 4].tolist() == [[1, 2, 3], [4, 5, 6]]


@pytest.mark.parametrize("name", PRETRAINED)
def test_pretrained_stages_equal_the_features_of_torchvision(name: str) -> None:
    path = PRETRAINED[name]
    if not path.is_file():
        pytest.skip(f"{path} is not there")
    model = BACKBONES[name].build().eval()
    model.load_state_dict(torch.load(path, weights_only=True))
    model.classifier = nn.Identity()
    images = torch.randn(2, 3, 96, 96)
    with torch.no_grad():
        found = given_to_classifier(name, model, build_stages(name, path).eval()(images))
        torch.testing.assert_close(found.flatten(1), model(images), atol=1e-5, rtol=0)


def as_published(name: str) -> dict[str, Tensor]:
    """The keys of torchvision's published file, auxiliary heads and old names included; each tensor of one number."""
    auxiliary = {"aux_logits": True, "init_weights": False} if name in ("googlenet", "inception_v3") else {}
    with torch.device("meta"):
        model = models.get_model(name, **auxiliary)
    state = {}
    for index, (key, value) in enumerate(model.state_dict().items()):
        key = re.sub(r"(denselayer\d+\.(?:norm|conv))([12])", r"\1.\2", key)
        key = re.sub(r"(encoder_layer_\d+\.mlp\.)([03])", lambda m: f"{m[1]}linear_{1 if m[2] == '0' else 2}", key)
        state[key] = torch.full((1,) * value.ndim, index % 97, dtype=value.dtype).expand(value.shape)
    return state


@pytest.mark.parametrize("name", ["googlenet", "inception_v3", "densenet121", "mnasnet1_0", "vit_b_32", "swin_v2_t"])
def test_the_published_file_is_taken_whatever_else_it_holds_and_calls_otherwise(name: str, tmp_path: Path) -> None:
    state = as_published(name)
    torch.save({key: value for key, value in state.items() if "num_batches" not in key}, tmp_path / "published.pth")
    found = [p.flatten()[0].item() for p in build_stages(name, tmp_path / "published.pth").parameters()]
    kept = {key for key, _ in build_skeleton(name).named_parameters() if not key.startswith(BACKBONES[name].classifier)}
    wanted = [v.flatten()[0].item() for key, v in state.items() if weights._renamed(key) in kept]
    assert sorted(found) == sorted(wanted)
    assert len(set(found)) > 50


@pytest.mark.parametrize("name", ["mobilenet_v3_small", "mnasnet1_0", "maxvit_t"])
def test_statistics_of_random_weights_follow_within_some_dozen_steps(name: str) -> None:
    norms = [module for module in build_stages(name, None).modules() if isinstance(module, nn.BatchNorm2d)]
    assert {norm.momentum for norm in norms} == {0.1}


def test_stages_of_a_group_have_one_resolution_and_depth() -> None:
    stages, features, shapes = build_stages("mobilenet_v2", None).eval(), torch.zeros(1, 3, 224, 224), []
    with torch.no_grad():
        for stage in stages:
            features = stage(features)
            shapes.append(tuple(features.shape[1:3]))
    assert shapes == [(32, 112), (16, 112), (24, 56), (32, 28), (64, 14), (96, 14), (160, 7), (320, 7), (1280, 7)]


@pytest.mark.parametrize("name", IMAGE_BACKBONES)
def test_nothing_is_drawn_for_parameters_that_a_file_fills(name: str) -> None:
    # Some initialisers draw until all values fit: on what was left in memory they would never end.
    before = torch.get_rng_state()
    model = build_blank(name)
    assert torch.equal(torch.get_rng_state(), before)
    assert all(parameter.isfinite().all() for parameter in model.parameters())


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


def test_a_damaged_safetensors_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "damaged.safetensors").write_bytes(b"PK" * 500)
    with pytest.raises(WeightsError, match=r"damaged\.safetensors could not be read"):
        build_stages("squeezenet1_1", tmp_path / "damaged.safetensors")


def test_weights_that_are_not_finite_are_refused_by_their_keys(tmp_path: Path) -> None:
    state = torchvision_model("squeezenet1_1").state_dict()
    state["features.0.bias"] = torch.full((64,), float("nan"))
    torch.save(state, tmp_path / "nan.pth")
    with pytest.raises(WeightsError, match=r"nan\.pth holds numbers that are not finite in features\.0\.bias; give another file"):
        build_stages("squeezenet1_1", tmp_path / "nan.pth")


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


def test_a_check_builds_no_network_and_refuses_and_takes_what_a_build_does(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "squeeze.pth"
    torch.save(models.squeezenet1_1(num_classes=3).state_dict(), file)
    monkeypatch.setattr(weights, "build_blank", None)
    assert check_weights("squeezenet1_1", file) == weights_digest(file)
    with pytest.raises(WeightsError, match=r"squeeze\.pth is not of resnet18.*use backbones: \[squeezenet1_1\]"):
        check_weights("resnet18", file)
    with pytest.raises(WeightsError, match=r"nothing\.pth does not exist"):
        check_weights("resnet18", tmp_path / "nothing.pth")
    state = torch.load(file)
    state["features.0.bias"][0] = math.nan
    torch.save(state, file)
    with pytest.raises(WeightsError, match=r"not finite in features\.0\.bias"):
        check_weights("squeezenet1_1", file)


def test_a_file_is_checked_again_only_where_it_changed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file, read = tmp_path / "squeeze.pth", weights._read_file
    looks: list[Path] = []
    monkeypatch.setattr(weights, "_read_file", lambda path: looks.append(path) or read(path))
    state = models.squeezenet1_1().state_dict()
    torch.save(state, file)
    first = check_weights("squeezenet1_1", file)
    assert check_weights("squeezenet1_1", file) == first
    assert len(looks) == 1
    state["features.0.bias"][0] += 1
    torch.save(state, file)
    assert check_weights("squeezenet1_1", file) != first
    assert len(looks) == 2


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


@pytest.mark.parametrize("name", IMAGE_BACKBONES)
def test_preprocessing_is_that_of_the_imagenet_weights(name: str) -> None:
    backbone, own = BACKBONES[name], torchvision.models.get_model_weights(name)["IMAGENET1K_V1"].transforms()
    assert backbone.source
    seen = backbone.source.images
    assert own.crop_size == [seen.image_size_px]
    assert seen.image_size_px <= seen.resize_px <= 1.16 * seen.image_size_px
    assert seen.mean == (0.485, 0.456, 0.406)
    assert seen.std == (0.229, 0.224, 0.225)
    # EfficientNet-B0 stays as its first variants were trained.
    assert backbone.interpolation == ("bilinear" if name == "efficientnet_b0" else own.interpolation.value)


@pytest.mark.parametrize("name", IMAGE_BACKBONES)
def test_the_default_size_and_the_least_are_allowed_and_less_is_refused_in_words(name: str) -> None:
    least, most, step = IMAGE_SIZES[name]
    source = BACKBONES[name].source
    assert source
    for size in (source.images.image_size_px, 224, least, most):
        check_image_size(name, size)
    with pytest.raises(ValueError, match=rf"image_size_px {least - 1} .*{name}.*allowed: {least}"):
        check_image_size(name, least - 1)
    if step > 1:
        with pytest.raises(ValueError, match=rf"every {step} px from {least} to 1024; nearest: {7 * step} or {8 * step}"):
            check_image_size(name, 7 * step + 1)


def test_the_architecture_of_every_file_is_recognised() -> None:
    for name in IMAGE_BACKBONES:
        assert weights._architecture_of(weights._shapes(name)) == name


def test_torchvision_asks_the_compiler_what_it_always_asked_only_later() -> None:
    code = """
import sys
import heads.backbones
assert "torch._dynamo" not in sys.modules
from torchvision.ops import roi_align
asked = sys.modules[roi_align.__module__]
told = asked.is_compile_supported("cpu")
from torch._dynamo.utils import is_compile_supported
assert told == is_compile_supported("cpu") and asked.is_compile_supported is not is_compile_supported

"""
    subprocess.run([sys.executable, "-W", "error", "-c", code], check=True)
