"""From a weights file to the stages of a backbone: what fits is loaded, what does not is refused in words."""

from __future__ import annotations

import hashlib
import pickle
import re
import warnings
from collections import OrderedDict
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from urllib.parse import urlparse

import torch
from torch import Tensor, nn

from heads.backbones import text_weights
from heads.backbones.blank import build_blank, build_skeleton
from heads.backbones.state_checks import NUM_KEYS_SHOWN, check_finite, listed
from heads.backbones.table import BACKBONES, Backbone, row_of
from heads.bert_size import modality_of, stages_of
from heads.catalogue import IMAGE_BACKBONES
from heads.errors import WeightsError

WHAT_TO_GIVE = "give a file written by torch.save(model.state_dict(), path) from torchvision's model"
# Keys of torchvision's published files of DenseNet and the vision transformers that its modules call otherwise today.
OLD_NAMES = (
    (re.compile(r"(denselayer\d+\.(?:norm|conv))\.([12])\."), r"\1\2."),
    (re.compile(r"(encoder_layer_\d+\.mlp)\.linear_1\."), r"\1.0."),
    (re.compile(r"(encoder_layer_\d+\.mlp)\.linear_2\."), r"\1.3."),
)


def build_stages(name: str, weights: Path | None) -> nn.Sequential:
    """The stages of a backbone, named as in `BACKBONE_STAGES`: images (N, 3, H, W) in, the last features out.

    Together they give torchvision's own features before global pooling (tokens if the backbone's `layout` says so).
    `weights` is a state dict of torchvision's model, with or without its classifier and auxiliary heads; None leaves
    random weights. Raises WeightsError if the file cannot be read or is of another model.
    """
    backbone = row_of(name)
    if weights is None:
        model = backbone.build()
        _follow_statistics(model)
    else:
        model = build_blank(name)
        state = _features_only(_read_state(name, weights), backbone)
        _check_fit(name, state, _features_only(model.state_dict(), backbone), weights)
        # Into the model's own state, which has what may be missing above (the classifier, BatchNorm counters of old files) and
        # the version of its layout, without which MNASNet loads nothing.
        filled = model.state_dict()
        filled.update(state)
        model.load_state_dict(filled)
    return nn.Sequential(OrderedDict(zip(stages_of(name), backbone.split(model), strict=True)))


def state_of(name: str, stages: nn.Sequential) -> dict[str, Tensor]:
    """The state dict of torchvision's model, without its classifier, from which `build_stages` makes these stages again."""
    model = build_skeleton(name)
    names = {id(tensor): key for key, tensor in model.state_dict(keep_vars=True).items()}
    state = stages.state_dict()
    # torchvision's modules are the stages', so that a tensor is known by itself in both.
    alike = nn.Sequential(OrderedDict(zip(stages_of(name), row_of(name).split(model), strict=True)))
    return {names[id(tensor)]: state[key] for key, tensor in alike.state_dict(keep_vars=True).items()}


def _follow_statistics(model: nn.Module) -> None:
    # MobileNetV3 asks for a momentum of 0.01, meant for hundreds of epochs: from random weights its statistics lag so far
    # behind that digits were read at 0.10 after 176 steps, and at 0.90 with this.
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.momentum = 0.1


def imagenet_weights(name: str) -> Path:
    """The file of a backbone's published weights, downloaded into torch's own cache if it is not there yet.

    Raises WeightsError if none are published or the download fails.
    """
    source = row_of(name).source
    if source is None:
        raise WeightsError(f"no weights of {name} are published; give a weights file by its path, or use weights: none")
    path = Path(torch.hub.get_dir()) / "checkpoints" / Path(urlparse(source.url).path).name
    if path.is_file():
        return path
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        # The download alone: torchvision's own loader would unpickle what it fetched.
        torch.hub.download_url_to_file(source.url, str(path), hash_prefix=source.digest, progress=False)
    except (OSError, RuntimeError) as error:
        raise WeightsError(
            f"the ImageNet weights of {name} could not be downloaded from {source.url}: {error}. "
            f"Put that file at {path}, or give a weights file by its path, or use weights: none"
        ) from error
    return path


def check_weights(name: str, path: Path) -> str:
    """The digest of a weights file, whose tensors are checked: finite, with the backbone's names and shapes.

    No network is built, and an unchanged file is not read again. Raises WeightsError if the file does not fit.
    """
    if modality_of(name) == "text":
        return _checked_digest(name, path, *text_weights.folder_state(path))
    facts = _existing(path).stat()
    # A copy that keeps the date of its file differs by the time of its own change.
    return _checked_digest(name, path, facts.st_mtime_ns, facts.st_ctime_ns, facts.st_size)


def sized(name: str, weights: Path | None) -> str:
    """The backbone's name with the size that its weights have, for one of any size (`bert`); else the name as it is.

    Raises WeightsError if the size cannot be read, or if a backbone is given weights that learns its words from training texts.
    """
    if modality_of(name) != "text" or weights is None:
        return name
    if row_of(name).learns_words:
        raise WeightsError(f"{name} learns its words from the training texts, and was given weights {weights}; use weights: none")
    return text_weights.read_size(weights).name if name == "bert" else name


@cache
def _checked_digest(name: str, path: Path, *_: int) -> str:
    _check_fit(name, _features_only(_read_state(name, path), row_of(name)), _shapes(name), path)
    return weights_digest(path)


def weights_digest(path: Path) -> str:
    """The first 16 hex digits of the sha256 of a weights file, or of a folder's files. Raises WeightsError if there is none."""
    if (path / text_weights.CONFIG).is_file():
        return text_weights.folder_digest(path)
    with _existing(path).open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()[:16]


def backbone_of(path: Path) -> str | None:
    """The name of the backbone that a weights file fits, None if there is none. Raises WeightsError if it cannot be read."""
    return _architecture_of(_read_file(path))


def _existing(path: Path) -> Path:
    if not path.is_file():
        problem = "is a folder" if path.is_dir() else "does not exist"
        raise WeightsError(f"weights file {path} {problem}; give the path of a .pth file, or weights: imagenet or none")
    return path


def _read_state(name: str, path: Path) -> dict[str, Tensor]:
    if modality_of(name) == "text":
        return text_weights.read_state(path)
    return _read_file(path)


def _read_file(path: Path) -> dict[str, Tensor]:
    _existing(path)
    try:
        with warnings.catch_warnings():
            # Torch warns of a foreign pickle protocol just before it refuses the file: one refusal is enough.
            warnings.simplefilter("ignore", UserWarning)
            state = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise WeightsError(_refusal(path)) from error
    # A damaged file makes the readers behind torch.load raise nearly anything.
    except Exception as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise WeightsError(f"weights file {path} could not be read ({reason}); {WHAT_TO_GIVE}") from error
    if not _is_state(state):
        raise WeightsError(f"weights file {path} holds {_outline(state)}, not a state dict; {WHAT_TO_GIVE}")
    check_finite(f"weights file {path}", state)
    return {_renamed(key): value for key, value in state.items()}


def _renamed(key: str) -> str:
    for old, new in OLD_NAMES:
        key = old.sub(new, key)
    return key


def _is_state(content: object) -> bool:
    if not isinstance(content, Mapping) or not content:
        return False
    return all(isinstance(key, str) and isinstance(value, Tensor) for key, value in content.items())


def _refusal(path: Path) -> str:
    with path.open("rb") as file:
        start = file.read(2)
    if start == b"PK" or start[:1] == b"\x80":
        return f"weights file {path} holds pickled code; refused, never executed; {WHAT_TO_GIVE}"
    return f"weights file {path} is not a PyTorch file of tensors (it begins with {start!r}); {WHAT_TO_GIVE}"


def _outline(content: object) -> str:
    if not isinstance(content, Mapping):
        return f"a {type(content).__name__}"
    parts = [f"{key!r}: {type(value).__name__}" for key, value in content.items() if not isinstance(value, Tensor)]
    return "a dict of " + (", ".join(parts[:NUM_KEYS_SHOWN]) or "nothing")


def _features_only(state: Mapping[str, Tensor], backbone: Backbone) -> dict[str, Tensor]:
    return {key: value for key, value in state.items() if not key.startswith(backbone.classifier)}


def _check_fit(name: str, given: Mapping[str, Tensor], wanted: Mapping[str, Tensor], path: Path) -> None:
    missing, unexpected, reshaped = _differences(given, wanted)
    if not (missing or unexpected or reshaped):
        return
    lines = [
        f"{title}: {listed(keys)}"
        for title, keys in (("missing", missing), ("unexpected", unexpected), ("of another shape", reshaped))
        if keys
    ]
    if modality_of(name) == "text":
        raise WeightsError(f"weights folder {path} does not hold what its config.json says, {name}; {'; '.join(lines)}")
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


def _architecture_of(given: Mapping[str, Tensor]) -> str | None:
    """The name of the backbone that these weights fit, if any."""
    for name, backbone in BACKBONES.items():
        if name in IMAGE_BACKBONES and not any(_differences(_features_only(given, backbone), _shapes(name))):
            return name
    return None


@cache
def _shapes(name: str) -> dict[str, Tensor]:
    """The state of a backbone as tensors without storage, quick to make."""
    return _features_only(build_skeleton(name).state_dict(), row_of(name))
