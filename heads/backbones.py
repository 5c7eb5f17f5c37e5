"""The closed table of backbones: torchvision's networks without their classifiers, cut into named stages."""

from __future__ import annotations

import hashlib
import pickle
import re
import warnings
from collections import OrderedDict
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from urllib.parse import urlparse

import torch
from torch import Tensor, nn
from torchvision import models
from torchvision.models import WeightsEnum

from heads.errors import WeightsError
from heads.spec import BACKBONE_STAGES

NUM_KEYS_SHOWN = 6
Split = Callable[[nn.Module], list[nn.Module]]


def _children(parent: nn.Module, names: Iterable[str]) -> nn.Sequential:
    """The named children in a row, under their own names, so that a key still tells its place in torchvision's model."""
    return nn.Sequential(OrderedDict((name, parent.get_submodule(name)) for name in names))


def _cut_features(*starts: int) -> Split:
    """A split of `features` into stages that begin at these indices."""

    def split(model: nn.Module) -> list[nn.Module]:
        features = model.get_submodule("features")
        names = [name for name, _ in features.named_children()]
        ends = [*starts[1:], len(names)]
        return [_children(features, names[start:end]) for start, end in zip(starts, ends, strict=True)]

    return split


def _group(*groups: tuple[str, ...]) -> Split:
    """A split into groups of the model's own children."""
    return lambda model: [_children(model, group) for group in groups]


RESNET = _group(("conv1", "bn1", "relu", "maxpool"), ("layer1",), ("layer2",), ("layer3",), ("layer4",))
SHUFFLENET = _group(("conv1", "maxpool"), ("stage2",), ("stage3",), ("stage4",), ("conv5",))


@dataclass(frozen=True)
class Backbone:
    """A builder of torchvision's whole model with random weights, its ImageNet weights, and how to cut it.

    `split` gives the stages in the order of `BACKBONE_STAGES`; what follows the last of them (pooling, and ConvNeXt's
    final norm) belongs to the classifier, whose parameters' names begin with `classifier`. `channels` is the depth of
    the last feature map.
    """

    build: Callable[[], nn.Module]
    imagenet: WeightsEnum
    split: Split
    channels: int
    classifier: str = "classifier."

    @property
    def resize(self) -> int:
        """Pixels of the shorter side before the 224 px centre crop that the ImageNet weights were measured with."""
        return int(self.imagenet.transforms().resize_size[0])

    @property
    def mean(self) -> tuple[float, ...]:
        return tuple(self.imagenet.transforms().mean)

    @property
    def std(self) -> tuple[float, ...]:
        return tuple(self.imagenet.transforms().std)


# IMAGENET1K_V1 throughout, where torchvision has a V2 as well: V2's label smoothing and mixup raise the ImageNet score but
# leave features that a frozen linear head reads worse (Kornblith et al., NeurIPS 2021).
BACKBONES: dict[str, Backbone] = {
    "resnet18": Backbone(models.resnet18, models.ResNet18_Weights.IMAGENET1K_V1, RESNET, 512, "fc."),
    "resnet34": Backbone(models.resnet34, models.ResNet34_Weights.IMAGENET1K_V1, RESNET, 512, "fc."),
    "resnet50": Backbone(models.resnet50, models.ResNet50_Weights.IMAGENET1K_V1, RESNET, 2048, "fc."),
    "mobilenet_v2": Backbone(
        models.mobilenet_v2, models.MobileNet_V2_Weights.IMAGENET1K_V1, _cut_features(0, 1, 2, 4, 7, 11, 14, 17, 18), 1280
    ),
    "mobilenet_v3_small": Backbone(
        models.mobilenet_v3_small, models.MobileNet_V3_Small_Weights.IMAGENET1K_V1, _cut_features(0, 1, 2, 4, 9, 12), 576
    ),
    "mobilenet_v3_large": Backbone(
        models.mobilenet_v3_large, models.MobileNet_V3_Large_Weights.IMAGENET1K_V1, _cut_features(0, 1, 2, 4, 7, 13, 16), 960
    ),
    "squeezenet1_1": Backbone(models.squeezenet1_1, models.SqueezeNet1_1_Weights.IMAGENET1K_V1, _cut_features(0, 2, 5, 8), 512),
    "efficientnet_b0": Backbone(
        models.efficientnet_b0, models.EfficientNet_B0_Weights.IMAGENET1K_V1, _cut_features(*range(9)), 1280
    ),
    "shufflenet_v2_x1_0": Backbone(
        models.shufflenet_v2_x1_0, models.ShuffleNet_V2_X1_0_Weights.IMAGENET1K_V1, SHUFFLENET, 1024, "fc."
    ),
    "convnext_tiny": Backbone(
        models.convnext_tiny, models.ConvNeXt_Tiny_Weights.IMAGENET1K_V1, _cut_features(0, 1, 2, 4, 6), 768
    ),
}


def build_stages(name: str, weights: Path | None) -> nn.Sequential:
    """The stages of a backbone, named as in `BACKBONE_STAGES`: images (N, 3, H, W) in, the last feature map out.

    Applied in a row they give torchvision's own feature map before global pooling. `weights` is a state dict of
    torchvision's model, with or without its classifier; None leaves random weights. Raises WeightsError.
    """
    backbone = BACKBONES[name]
    model = backbone.build()
    if weights is None:
        _follow_statistics(model)
    else:
        state = _features_only(_read_state(weights), backbone)
        _check_fit(name, state, _features_only(model.state_dict(), backbone), weights)
        # Not strict: the classifier, and BatchNorm counters that old files lack, were let pass just above.
        model.load_state_dict(state, strict=False)
    return nn.Sequential(OrderedDict(zip(BACKBONE_STAGES[name], backbone.split(model), strict=True)))


def _follow_statistics(model: nn.Module) -> None:
    # MobileNetV3 asks for a momentum of 0.01, meant for hundreds of epochs: from random weights its statistics lag so far
    # behind that digits were read at 0.10 after 176 steps, and at 0.90 with this.
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.momentum = 0.1


def imagenet_weights(name: str) -> Path:
    """The file of torchvision's ImageNet weights, downloaded into torch's own cache where it is not there yet.

    Raises WeightsError when it cannot be had.
    """
    url: str = BACKBONES[name].imagenet.url
    path = Path(torch.hub.get_dir()) / "checkpoints" / Path(urlparse(url).path).name
    if path.is_file():
        return path
    prefix = re.search(r"-([0-9a-f]{8,})\.", path.name)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        # The download alone: torchvision's own loader would unpickle what it fetched.
        torch.hub.download_url_to_file(url, str(path), hash_prefix=prefix.group(1) if prefix else None, progress=False)
    except (OSError, RuntimeError) as error:
        raise WeightsError(
            f"the ImageNet weights of {name} could not be downloaded from {url}: {error}. "
            f"Put that file at {path}, or give a weights file by its path, or use weights: none"
        ) from error
    return path


def weights_digest(path: Path) -> str:
    """The first 16 hex digits of the sha256 of a weights file. Raises WeightsError where there is none."""
    with _existing(path).open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()[:16]


def _existing(path: Path) -> Path:
    if not path.is_file():
        found = "is a folder" if path.is_dir() else "does not exist"
        raise WeightsError(f"weights file {path} {found}; give the path of a .pth file, or weights: imagenet or none")
    return path


def _read_state(path: Path) -> dict[str, Tensor]:
    try:
        with warnings.catch_warnings():
            # Torch warns of a foreign pickle protocol just before it refuses the file: one refusal is enough.
            warnings.simplefilter("ignore", UserWarning)
            state = torch.load(_existing(path), map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise WeightsError(_refusal(path)) from error
    except (RuntimeError, ValueError, EOFError, KeyError, OSError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise WeightsError(f"weights file {path} could not be read ({reason}); {WHAT_TO_GIVE}") from error
    if not _is_state(state):
        raise WeightsError(f"weights file {path} holds {_outline(state)}, not a state dict; {WHAT_TO_GIVE}")
    return dict(state)


WHAT_TO_GIVE = "give a file written by torch.save(model.state_dict(), path) from torchvision's model"


def _is_state(found: object) -> bool:
    if not isinstance(found, Mapping) or not found:
        return False
    return all(isinstance(key, str) and isinstance(value, Tensor) for key, value in found.items())


def _refusal(path: Path) -> str:
    with path.open("rb") as file:
        start = file.read(2)
    if start == b"PK" or start[:1] == b"\x80":
        return f"weights file {path} holds pickled code; refused, never executed; {WHAT_TO_GIVE}"
    return f"weights file {path} is not a PyTorch file of tensors (it begins with {start!r}); {WHAT_TO_GIVE}"


def _outline(found: object) -> str:
    if not isinstance(found, Mapping):
        return f"a {type(found).__name__}"
    parts = [f"{key!r}: {type(value).__name__}" for key, value in found.items() if not isinstance(value, Tensor)]
    return "a dict of " + (", ".join(parts[:NUM_KEYS_SHOWN]) or "nothing")


def _features_only(state: Mapping[str, Tensor], backbone: Backbone) -> dict[str, Tensor]:
    return {key: value for key, value in state.items() if not key.startswith(backbone.classifier)}


def _check_fit(name: str, given: Mapping[str, Tensor], wanted: Mapping[str, Tensor], path: Path) -> None:
    missing, unexpected, reshaped = _differences(given, wanted)
    if not (missing or unexpected or reshaped):
        return
    lines = [
        f"{title}: {_listed(keys)}"
        for title, keys in (("missing", missing), ("unexpected", unexpected), ("of another shape", reshaped))
        if keys
    ]
    other = _architecture_of(given)
    hint = f"its keys are those of {other}: use backbones: [{other}]" if other else f"give the weights of torchvision's {name}"
    raise WeightsError(f"weights file {path} is not of {name}; {'; '.join(lines)}; {hint}")


def _differences(given: Mapping[str, Tensor], wanted: Mapping[str, Tensor]) -> tuple[list[str], list[str], list[str]]:
    """Keys that are missing, unexpected, and of another shape (with both shapes)."""
    missing = [key for key in wanted if key not in given and not key.endswith("num_batches_tracked")]
    unexpected = [key for key in given if key not in wanted]
    reshaped = [
        f"{key} {tuple(given[key].shape)} instead of {tuple(wanted[key].shape)}"
        for key in wanted
        if key in given and given[key].shape != wanted[key].shape
    ]
    return missing, unexpected, reshaped


def _listed(keys: list[str]) -> str:
    more = f" and {len(keys) - NUM_KEYS_SHOWN} more" if len(keys) > NUM_KEYS_SHOWN else ""
    return ", ".join(keys[:NUM_KEYS_SHOWN]) + more


def _architecture_of(given: Mapping[str, Tensor]) -> str | None:
    """The backbone of the table that these weights fit, if any."""
    for name, backbone in BACKBONES.items():
        if not any(_differences(_features_only(given, backbone), _shapes(name))):
            return name
    return None


@cache
def _shapes(name: str) -> dict[str, Tensor]:
    """The state of a backbone as tensors without storage, quick to make."""
    backbone = BACKBONES[name]
    with torch.device("meta"):
        return _features_only(backbone.build().state_dict(), backbone)
