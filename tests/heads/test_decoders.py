"""Every decoder on every kind of backbone, the same as torchvision's where it has one."""

from functools import cache

import pytest
import torch
from torch import Tensor, nn
from torchvision.models.segmentation import deeplabv3
from torchvision.models.segmentation.fcn import FCNHead
from torchvision.models.segmentation.lraspp import LRASPPHead

from heads.backbones import BACKBONES, build_stages
from heads.catalogue import HEAD_DESIGNS, IMAGE_BACKBONES
from heads.spec import Fit, Head
from heads.tasks import decoders, segmentation
from heads.tasks.table import TASKS

# Odd where the backbone allows it.
SIZES_PX = {"mobilenet_v2": 97, "squeezenet1_1": 65, "resnet18": 97, "convnext_tiny": 67, "vit_b_32": 96, "swin_t": 65}


def build(design: str, backbone: str, num_classes: int = 5) -> nn.Module:
    head = Head(target="mask", task="segmentation", design=design)
    return segmentation.build_head(head, Fit(), BACKBONES[backbone], num_classes)


@cache
def stage_features(backbone: str) -> tuple[Tensor, ...]:
    """What each stage gives for two images."""
    torch.manual_seed(0)
    features, found = torch.randn(2, 3, SIZES_PX[backbone], SIZES_PX[backbone]), []
    with torch.no_grad():
        for stage in build_stages(backbone, None).eval():
            features = stage(features)
            found.append(features.clone())
    return tuple(found)


def tapped(design: str, backbone: str) -> list[Tensor]:
    return [stage_features(backbone)[number] for number in segmentation.taps(design, BACKBONES[backbone])]


def test_the_task_is_served_by_this_room_with_the_designs_of_the_spec() -> None:
    assert TASKS["segmentation"] is segmentation
    assert tuple(decoders.DESIGNS) == HEAD_DESIGNS["segmentation"]


@pytest.mark.parametrize("design", decoders.DESIGNS)
@pytest.mark.parametrize("backbone", SIZES_PX)
def test_every_design_on_every_kind_of_backbone_gives_logits_at_its_finest_tap(design: str, backbone: str) -> None:
    torch.manual_seed(1)
    net, features = build(design, backbone), tapped(design, backbone)
    finest = features[0].shape[2:] if features[0].ndim == 4 else (3, 3)
    for num_images in (1, 2):
        net.zero_grad()
        logits = net.train()(*(given[:num_images] for given in features))
        assert logits.shape == (num_images, 5, *finest)
        assert logits.isfinite().all()
        labels = torch.arange(5).repeat(num_images * logits[0, 0].numel())[: logits[:, 0].numel()].reshape(logits[:, 0].shape)
        segmentation.PLAIN.losses(logits, labels).mean().backward()
        assert all(parameter.grad is not None and parameter.grad.isfinite().all() for parameter in net.parameters())
    assert all(parameter.grad is not None and parameter.grad.any() for parameter in net.parameters())
    assert net.eval()(*features).isfinite().all()


@pytest.mark.parametrize("design", decoders.DESIGNS)
@pytest.mark.parametrize("backbone", ["mobilenet_v2", "vit_b_32"])
def test_in_eval_mode_an_image_is_read_alike_alone_and_in_a_batch(design: str, backbone: str) -> None:
    net, features = build(design, backbone).eval(), tapped(design, backbone)
    torch.testing.assert_close(net(*features)[:1], net(*(given[:1] for given in features)), atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("design", decoders.DESIGNS)
def test_one_image_with_maps_of_one_position_can_be_trained_on(design: str) -> None:
    backbone = BACKBONES["resnet18"]
    net = build(design, "resnet18").train()
    logits = net(*(torch.randn(1, backbone.channels[tap], 1, 1) for tap in segmentation.taps(design, backbone)))
    assert logits.shape == (1, 5, 1, 1)
    logits.square().sum().backward()
    assert all(parameter.grad is not None and parameter.grad.isfinite().all() for parameter in net.parameters())


def test_a_norm_of_one_value_uses_its_statistics_and_leaves_them() -> None:
    norm, one = decoders.MapNorm(3), torch.tensor([1.0, 2.0, 3.0]).reshape(1, 3, 1, 1)
    norm.running_mean.fill_(1.0)
    norm.running_var.fill_(4.0)
    torch.testing.assert_close(norm.train()(one), norm.eval()(one))
    torch.testing.assert_close(norm(one).flatten(), torch.tensor([0.0, 0.5, 1.0]))
    assert norm.running_mean.tolist() == [1.0] * 3
    many, reference = torch.randn(2, 3, 4, 4), nn.BatchNorm2d(3)
    torch.testing.assert_close(decoders.MapNorm(3).train()(many), reference(many))


def test_taps_are_the_last_stages_at_the_strides_a_design_wants() -> None:
    expected = {
        "mobilenet_v2": {"fcn": (8,), "lraspp": (3, 8), "unet": (1, 2, 3, 5, 8), "fpn": (2, 3, 5, 8)},
        "resnet18": {"deeplabv3": (4,), "lraspp": (2, 4), "unet": (1, 2, 3, 4), "fpn": (1, 2, 3, 4)},
        "squeezenet1_1": {"lraspp": (2, 3), "unet": (0, 1, 2, 3), "fpn": (1, 2, 3)},
        "inception_v3": {"lraspp": (1, 3), "unet": (1, 2, 3), "fpn": (1, 2, 3)},
        "vit_b_16": {"fcn": (4,), "lraspp": (3, 4), "unet": (0, 1, 2, 3, 4), "fpn": (0, 1, 2, 3, 4)},
    }
    for backbone, by_design in expected.items():
        assert {design: segmentation.taps(design, BACKBONES[backbone]) for design in by_design} == by_design


@pytest.mark.parametrize("backbone", IMAGE_BACKBONES)
def test_every_backbone_has_taps_for_every_design_front_to_back(backbone: str) -> None:
    strides = BACKBONES[backbone].strides
    for design in decoders.DESIGNS:
        taps = segmentation.taps(design, BACKBONES[backbone])
        assert list(taps) == sorted(set(taps))
        assert taps[-1] == len(strides) - 1
        assert len(taps) == {"fcn": 1, "deeplabv3": 1, "lraspp": 2}.get(design, len(taps))
        assert design not in ("unet", "fpn") or len(taps) > 1


def copied(ours: nn.Module, theirs: nn.Module) -> tuple[nn.Module, nn.Module]:
    """Both in eval mode with their weights in ours, which has as many of the same shapes in the same order."""
    values = theirs.state_dict().values()
    ours.load_state_dict(dict(zip(ours.state_dict(), values, strict=True)))
    return ours.eval(), theirs.eval()


def test_fcn_is_torchvisions() -> None:
    ours, theirs = copied(build("fcn", "resnet18"), FCNHead(512, 5))
    features = torch.randn(2, 512, 3, 5)
    torch.testing.assert_close(ours(features), theirs(features))


def test_lraspp_is_torchvisions() -> None:
    ours, theirs = copied(build("lraspp", "mobilenet_v2"), LRASPPHead(32, 1280, 5, 128))
    low, high = torch.randn(2, 32, 12, 13), torch.randn(2, 1280, 3, 4)
    torch.testing.assert_close(ours(low, high), theirs({"low": low, "high": high}))


def test_aspp_and_deeplab_are_torchvisions() -> None:
    features = torch.randn(2, 64, 9, 7)
    aspp, their_aspp = copied(decoders.ASPP(64, (3, 6, 9)), deeplabv3.ASPP(64, (3, 6, 9)))
    torch.testing.assert_close(aspp(features), their_aspp(features))
    net, theirs = copied(decoders.DeepLabV3([64], [8], 5), deeplabv3.DeepLabHead(64, 5))
    torch.testing.assert_close(net(features), theirs(features))


@pytest.mark.parametrize(("backbone", "rates"), [("squeezenet1_1", [6, 12, 18]), ("resnet18", [3, 6, 9])])
def test_atrous_rates_suit_the_stride(backbone: str, rates: list[int]) -> None:
    dilations = [layer.dilation[0] for layer in build("deeplabv3", backbone).modules() if isinstance(layer, nn.Conv2d)]
    assert [dilation for dilation in dilations if dilation > 1] == rates
