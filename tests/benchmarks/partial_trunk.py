"""Fine-tuning behind a stored cut against fine-tuning from images: wall time and accuracy, the same variant both ways.

    python tests/benchmarks/partial_trunk.py [--seeds 0 1 2] [--epochs 10] [--image-size-px 224] [--data hymenoptera]

MobileNetV2 frozen up to `stage5`, 70 % of its multiply-adds. With the store: filling it (cold) and training on it. Without: what
`heads.training.loop.train` does with images, its cache of decoded pictures included. In one process, turn by turn.
Bars: at least 2.5 times faster, and accuracy within 0.5 points over the seeds. About 10 minutes on two cores.
"""

from __future__ import annotations

import argparse
import hashlib
import statistics
import sys
import tempfile
import time
from pathlib import Path

import torch
from workspaces import MOBILENET_V2, SHARED, say

from heads.data.image_dataset import ImageDataset
from heads.data.image_transforms import preprocess_for
from heads.data.loading import Loaders
from heads.features import FeatureStore
from heads.model.model import build_backbone, build_model
from heads.spec import Fit, Head, Variant
from heads.training.loop import train
from heads.training.state import TrainingOutcome
from heads.trunks.extraction import ExtractionRequest, extract
from heads.trunks.stored import FeatureLoader, open_views
from heads.trunks.trunk import stored_taps, trunk_of

CPU = torch.device("cpu")
FASTER, NEAR_POINTS = 2.5, 0.5


def read(folder: Path, split: str, variant: Variant) -> tuple[ImageDataset, list[str]]:
    """A split of class folders, and its class names."""
    files = sorted(path for path in (folder / split).glob("*/*") if path.is_file())
    names = sorted({path.parent.name for path in files})
    labels = {"label": [names.index(path.parent.name) for path in files]}
    digests = [hashlib.md5(path.read_bytes()).hexdigest() for path in files]
    preprocess = preprocess_for(variant.backbone, variant.fit.image_size_px)
    return ImageDataset(files, labels, preprocess, digests=digests, seed=variant.fit.seed), names


def measure(variant: Variant, folder: Path, *, with_store: bool) -> tuple[float, TrainingOutcome]:
    """The seconds of training a variant, extraction included, and its outcome."""
    (train_set, names), (val_set, _) = (read(folder, split, variant) for split in ("train", "val"))
    model, stored = build_model(variant, {"label": names}, MOBILENET_V2), None
    start = time.perf_counter()
    with tempfile.TemporaryDirectory() as root:
        if with_store:
            ((phase, taps),) = stored_taps(variant).items()
            store, trunk = FeatureStore(Path(root)), trunk_of(variant, "file", CPU)
            backbone = build_backbone(variant, MOBILENET_V2).eval().to(memory_format=torch.channels_last)
            wanted = [ExtractionRequest(images, 0, taps) for images in (train_set, val_set)]
            extract(lambda: backbone, trunk, wanted, store, device=CPU, precision="fp32")
            views = [
                open_views(store, [trunk], taps, images.digests, CPU, shuffled=images is train_set)
                for images in (train_set, val_set)
            ]
            size = variant.fit.batch_size
            stored = {
                phase: Loaders(
                    FeatureLoader(train_set, views[0], taps, size, CPU, training=True),
                    FeatureLoader(val_set, views[1], taps, size, CPU),
                )
            }
        outcome = train(model, variant, train_set, val_set, device=CPU, on_epoch=lambda *_: None, stored=stored)
    return time.perf_counter() - start, outcome


def main() -> int:
    """The exit status: 1 where a bar is missed."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--epochs", type=int, default=10)
    parser.add_argument("--image-size-px", type=int, default=224)
    parser.add_argument("--data", default="hymenoptera")
    asked = parser.parse_args()
    ratios, gaps = [], []
    for seed in asked.seeds:
        fit = Fit(epochs=asked.epochs, batch_size=32, image_size_px=asked.image_size_px, augment="none", seed=seed)
        variant = Variant(backbone="mobilenet_v2", heads=(Head(target="label"),), freeze="upto:stage5", fit=fit)
        (stored, with_store), (plain, without) = (
            measure(variant, SHARED / "data" / asked.data, with_store=with_store) for with_store in (True, False)
        )
        accuracies = [outcome.metrics["val/label/accuracy"] for outcome in (with_store, without)]
        ratios.append(plain / stored)
        gaps.append(accuracies[0] - accuracies[1])
        say(
            f"seed {seed}: with the store {stored:6.1f} s, accuracy {accuracies[0]:.4f}; without {plain:6.1f} s, "
            f"{accuracies[1]:.4f}; {plain / stored:.2f} times faster"
        )
    gap = abs(statistics.mean(gaps)) * 100
    say(
        f"{statistics.median(ratios):.2f} times faster (bar {FASTER}), mean accuracies {gap:.2f} points apart (bar {NEAR_POINTS})"
    )
    return 0 if statistics.median(ratios) >= FASTER and gap <= NEAR_POINTS else 1


if __name__ == "__main__":
    sys.exit(main())
