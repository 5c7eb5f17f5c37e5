"""Small pictures of shapes, and the training of variants on their stored features, alone or side by side, on any device."""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from heads.data.image_dataset import ImageDataset
from heads.data.image_transforms import preprocess_for
from heads.data.loading import Loaders
from heads.data.masks import Masks
from heads.errors import TrainingDiverged
from heads.features import FeatureStore
from heads.fused.training import TrainingRequest, train_together
from heads.model.model import Model, build_backbone, build_model
from heads.phases import Phase
from heads.spec import Fit, Head, Variant
from heads.training.loop import train
from heads.training.state import Epoch, TrainingOutcome
from heads.trunks.extraction import ExtractionRequest, extract
from heads.trunks.stored import FeatureLoader, open_views
from heads.trunks.trunk import Trunk, stored_taps, trunk_of

CPU = torch.device("cpu")
NUM_TRAIN, NUM_VAL, SIZE_PX = 20, 9, 48
CLASSES = {"kind": ("disc", "square", "stripes"), "mask": ("0", "1"), "tags": ("dark", "round")}
KIND, TAGS = Head(target="kind", design="mlp"), Head(target="tags", task="multilabel", design="attention")
MASK = Head(target="mask", task="segmentation", design="lraspp")
LINEAR, LABELS = Head(target="kind", design="linear"), Head(target="tags", task="multilabel", design="linear")


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("pictures")
    rows, columns = np.mgrid[-1:1:40j, -1:1:40j]
    shapes = [np.hypot(rows, columns) < 0.6, np.maximum(abs(rows), abs(columns)) < 0.5, np.sin(rows * 9) > 0]
    for index in range(NUM_TRAIN + NUM_VAL):
        noise = np.random.default_rng(index).normal(0, 25, (40, 40, 3))
        pixels = shapes[index % 3][..., None] * 90 + (110 if index % 2 else 20) + noise
        Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(folder / f"{index:03}.png")
        Image.fromarray(shapes[index % 3].astype(np.uint8)).save(folder / f"mask{index:03}.png")
    return folder


def variant_of(*heads: Head, backbone: str = "mobilenet_v3_small", freeze: str = "all", **fit: Any) -> Variant:
    settings = {"epochs": 3, "batch_size": 8, "image_size_px": SIZE_PX, "learning_rate": 0.003, "augment": "none", **fit}
    return Variant(backbone=backbone, heads=heads or (KIND,), freeze=freeze, fit=Fit(**settings))


def datasets(folder: Path, variant: Variant) -> tuple[ImageDataset, ImageDataset]:
    files = sorted(folder.glob("[0-9]*.png"))
    preprocess = preprocess_for(variant.backbone, variant.fit.image_size_px, whole=variant.sees_whole)
    tags = torch.tensor([[1 - i % 2, int(i % 3 == 0)] for i in range(len(files))])
    columns: dict[str, Any] = {"kind": torch.tensor([i % 3 for i in range(len(files))]), "tags": tags}
    made = []
    for part, augment in ((slice(NUM_TRAIN), variant.fit.augment), (slice(NUM_TRAIN, None), "none")):
        own = files[part]
        masks = [file.with_name(f"mask{file.name}") for file in own]
        targets = {head.target for head in variant.heads}
        made.append(
            ImageDataset(
                own,
                {target: column[part] for target, column in columns.items() if target in targets},
                preprocess,
                augment,
                variant.fit.seed,
                flip=variant.fit.flip and augment != "none",
                masks={"mask": Masks(masks, {0: 0, 1: 1}, (9, 5))} if "mask" in targets else {},
                digests=[hashlib.md5(file.read_bytes()).hexdigest() for file in own],
            )
        )
    return made[0], made[1]


def trunks_of(variant: Variant, device: torch.device = CPU) -> list[Trunk]:
    return [trunk_of(variant, "none", device, varied=view > 0) for view in range(variant.fit.views)]


def fill(variant: Variant, sets: tuple[ImageDataset, ImageDataset], store: FeatureStore, device: torch.device = CPU) -> int:
    """How many images were forwarded to store what the variant reads."""
    taps = {tap for taps in stored_taps(variant).values() for tap in taps}
    stages = build_backbone(variant, None).eval().requires_grad_(False).to(device)
    wanted: dict[Trunk, list[ExtractionRequest]] = defaultdict(list)
    for view, trunk in enumerate(trunks_of(variant, device)):
        wanted[trunk].append(ExtractionRequest(sets[0], view, taps))
    wanted[trunks_of(variant, device)[0]].append(ExtractionRequest(sets[1], 0, taps))
    return sum(
        extract(lambda: stages, trunk, parts, store, device=device, precision=variant.fit.precision)
        for trunk, parts in wanted.items()
    )


def loaders_of(
    variant: Variant, sets: tuple[ImageDataset, ImageDataset], store: FeatureStore, device: torch.device = CPU
) -> dict[Phase, Loaders]:
    found, own = {}, trunks_of(variant, device)
    for phase, taps in stored_taps(variant).items():
        train_views, val_views = (
            open_views(store, trunks, taps, images.digests, device, shuffled=shuffled)
            for trunks, images, shuffled in ((own, sets[0], True), (own[:1], sets[1], False))
        )
        load = partial(FeatureLoader, taps=taps, batch_size=variant.fit.batch_size, device=device)
        accumulate = variant.fit.accumulate
        found[phase] = Loaders(load(sets[0], train_views, training=True, accumulate=accumulate), load(sets[1], val_views))
    return found


def run(
    variant: Variant, sets: tuple[ImageDataset, ImageDataset], stored: Any = None, **how: Any
) -> tuple[Model, TrainingOutcome]:
    model, settings = build_model(variant, CLASSES, None), {"device": CPU, "on_epoch": lambda *_: None, **how}
    return model, train(model, variant, *sets, stored=stored, **settings)


def distance(one: nn.Module, other: nn.Module) -> float:
    """The greatest difference of two models' weights and statistics, those of each tensor in the unit of its largest, or of 1."""
    pairs = zip(one.state_dict().values(), other.state_dict().values(), strict=True)
    return max(
        ((a.double() - b.to(a.device).double()).abs().max() / a.double().abs().max().clamp(min=1)).item() for a, b in pairs
    )


# By plain descent: AdamW divides by the gradients' own size, and makes steps of what is rounding alone.
POLICIES = {
    "all": variant_of(KIND, TAGS),
    "masks beside classes": variant_of(MASK, KIND),
    "a cut before a token backbone's end": variant_of(
        KIND, backbone="vit_b_32", freeze="upto:stage3", image_size_px=64, epochs=1
    ),
    "upto": variant_of(KIND, optimiser="sgd", freeze="upto:stage3", backbone="mobilenet_v2"),
    "upto with an early tap": variant_of(MASK, optimiser="sgd", freeze="upto:stage3", backbone="convnext_tiny", epochs=2),
    "lp_ft": variant_of(KIND, optimiser="sgd", freeze="lp_ft", epochs=4),
    "gradual": variant_of(KIND, optimiser="sgd", freeze="gradual", backbone="squeezenet1_1", epochs=5),
}


def train_side_by_side(
    variants: Sequence[Variant],
    sets: tuple[ImageDataset, ImageDataset],
    store: FeatureStore,
    saves: Path | None = None,
    resume: Mapping[int, Path] | None = None,
    device: torch.device = CPU,
) -> list[tuple[Model, TrainingOutcome | TrainingDiverged, list[int]]]:
    """Each variant's model, its end and the epochs that were told of it; every epoch's checkpoint lies in `saves`."""
    backbone = build_backbone(variants[0], None)
    models = [build_model(variant, CLASSES, None, backbone=backbone) for variant in variants]
    told: list[list[int]] = [[] for _ in variants]
    ends: dict[int, TrainingOutcome | TrainingDiverged] = {}

    def on_epoch(number: int, epoch: Epoch, save: Callable[[Path], None]) -> None:
        told[number].append(epoch.index)
        if saves:
            save(saves / f"{number}.{epoch.index}.pt")

    requests = [
        TrainingRequest(
            model, variant, partial(on_epoch, number), partial(ends.__setitem__, number), resume=(resume or {}).get(number)
        )
        for number, (model, variant) in enumerate(zip(models, variants, strict=True))
    ]
    train_together(requests, *loaders_of(variants[0], sets, store, device).values())
    return [(model, ends[number], told[number]) for number, model in enumerate(models)]
