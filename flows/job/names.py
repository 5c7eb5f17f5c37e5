"""What trunks are, for people who look at the feature store: a small file beside each shelf, by its id."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path
from typing import Any

from flows.job.order import read_json, write_json
from heads.trunks import Trunk


def name_trunk(root: Path, trunk: Trunk) -> None:
    """Leaves word of what a trunk is under the store's root; a root that is read-only stays as it is."""
    file = _file(root, trunk.id)
    if not file.exists():
        size = trunk.preprocess.image_size_px
        told = {"backbone": trunk.backbone, "weights": trunk.weights, "image_size_px": size, "whole": trunk.preprocess.whole}
        views = "plain" if trunk.augment == "none" and not trunk.flip else trunk.augment + (", flip" if trunk.flip else "")
        with suppress(OSError):
            write_json(file, told | {"dtype": trunk.dtype, "views": views})


def trunk_name(root: Path, trunk_id: str) -> dict[str, Any]:
    """What `name_trunk` left, nothing where it is not known."""
    found: dict[str, Any] = read_json(_file(root, trunk_id), {})
    return found


def forget_names(root: Path) -> None:
    """Removes the names of trunks that have no shelf any more."""
    for file in root.glob("*.json"):
        if not (root / file.stem).is_dir():
            file.unlink(missing_ok=True)


def _file(root: Path, trunk_id: str) -> Path:
    return root / f"{trunk_id}.json"
