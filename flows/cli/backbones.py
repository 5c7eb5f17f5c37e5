"""The backbones that a plan may name, with what each costs."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from flows.cli import screen
from heads.catalogue import IMAGE_BACKBONES, IMAGE_SIZES, TEXT_BACKBONES

if TYPE_CHECKING:
    from heads.backbones import Backbone

COLUMNS = ["backbone", "parameters", "GFLOPs", "px", "least", "stages", "ImageNet weights"]


def show(as_json: bool) -> None:
    """Print every backbone, as a table or with all details as one JSON object."""
    backbones = describe_backbones()
    if as_json:
        return screen.show_json({"backbones": backbones})
    screen.show_table("Backbones", COLUMNS, [_row(backbone) for backbone in backbones])
    return screen.note(
        "Parameters and GFLOPs (multiply-adds) are those of the stages, without ImageNet's classifier, for one image of the "
        "default size (px). Vision transformers and MaxViT take some sizes only; --json tells which, and the cost of each stage. "
        f"Of texts: {', '.join(TEXT_BACKBONES)}; bert has the size of its weights' folder."
    )


def describe_backbones() -> list[dict[str, Any]]:
    """Every backbone of images in the table's order, with its sizes, stages, costs, weights and preprocessing as JSON values."""
    from heads.backbones import BACKBONES

    return [_describe(name, BACKBONES[name]) for name in IMAGE_BACKBONES]


def _describe(name: str, backbone: Backbone) -> dict[str, Any]:
    from heads.backbones import count_costs

    source = backbone.source
    assert source, "a backbone of images has published weights"
    costs = count_costs(name, source.images.image_size_px)
    return {
        "name": name,
        "parameters": sum(cost.parameters for cost in costs),
        "multiply_adds": sum(cost.multiply_adds for cost in costs),
        "image_size_px": source.images.image_size_px,
        "allowed_image_sizes_px": IMAGE_SIZES[name]._asdict(),
        "features": backbone.layout,
        "stages": [
            {
                "name": cost.stage,
                "channels": channels,
                "stride": stride,
                "parameters": cost.parameters,
                "multiply_adds": cost.multiply_adds,
            }
            for cost, channels, stride in zip(costs, backbone.channels, backbone.strides, strict=True)
        ],
        "weights": {"name": source.name, "url": source.url, "sha256": source.digest},
        "preprocess": {
            "resize_px": source.images.resize_px,
            "interpolation": backbone.interpolation,
            "mean": source.images.mean,
            "std": source.images.std,
        },
    }


def _row(backbone: dict[str, Any]) -> list[object]:
    first, *_, last = names = [stage["name"] for stage in backbone["stages"]]
    weights = backbone["weights"]
    return [
        backbone["name"],
        f"{backbone['parameters'] / 1e6:8.2f} M",
        f"{backbone['multiply_adds'] / 1e9:6.2f}",
        backbone["image_size_px"],
        backbone["allowed_image_sizes_px"]["least"],
        " ".join(names) if len(names) < 6 else f"{first} {names[1]} … {names[-2]} {last}",
        f"{weights['name']} {weights['sha256']}",
    ]
