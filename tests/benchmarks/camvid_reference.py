"""`headstart retrain` on camvid against a plain torch loop with torchvision's own heads: mean IoU on the test split.

    python tests/benchmarks/camvid_reference.py [--design lraspp] [--augment flip crop] [--epochs 12] [--folder DIR]

Both take the same MobileNetV2 weights, images (squeezed to a square), epochs, batch size, AdamW, rates, warm-up, cosine,
clipping and seed, validate after each epoch and keep the epoch with the best mean IoU on val. The loop's head is torchvision's
`LRASPPHead` (on the last features of stride 8 and the last of all) or `FCNHead`; it varies its training images by `flip`
(mirrored, no more) or `crop` (also a part of 0.7 to 1 of the picture, and its colours), and of several the best on val counts.
The mean IoU is of 11 classes over all test pixels that are not void, at the images' own size; ours is computed twice, by the
command and by this script from the pulled bundle. About 4 minutes a training on two cores. Ends with status 1 where ours is
more than a point below.
"""

from __future__ import annotations

import argparse
import copy
import math
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torchvision
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision import tv_tensors
from torchvision.models.segmentation.fcn import FCNHead
from torchvision.models.segmentation.lraspp import LRASPPHead
from torchvision.transforms import v2
from workspaces import MOBILENET_V2, SHARED, Workspace, say, workspace

CAMVID = SHARED / "data" / "camvid"
NUM_CLASSES, VOID = 11, 11
# The last of torchvision's MobileNetV2 features at a stride of 8 px, and its channels.
LOW_FEATURE, LOW_CHANNELS, CHANNELS = 6, 32, 1280
MEAN, STD = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
BAR = 0.01
FIT: dict[str, Any] = {"batch_size": 16, "learning_rate": 0.001, "weight_decay": 1e-4, "image_size_px": 160, "seed": 0}

Predict = Callable[[list[Path]], list[np.ndarray[Any, Any]]]


class Net(nn.Module):
    """torchvision's MobileNetV2 and one of its heads: images (N, 3, H, W) to logits at the head's own size."""

    def __init__(self, design: str) -> None:
        super().__init__()
        backbone = torchvision.models.mobilenet_v2()
        backbone.load_state_dict(torch.load(MOBILENET_V2, weights_only=True))
        self.features = backbone.features
        if design == "lraspp":
            self.head: nn.Module = LRASPPHead(LOW_CHANNELS, CHANNELS, NUM_CLASSES, 128)
        else:
            self.head = FCNHead(CHANNELS, NUM_CLASSES)

    def forward(self, images: Tensor) -> Tensor:
        low = features = images
        for number, layer in enumerate(self.features):
            features = layer(features)
            low = features if number == LOW_FEATURE else low
        logits: Tensor = self.head({"low": low, "high": features}) if isinstance(self.head, LRASPPHead) else self.head(features)
        return logits


class Pictures(torch.utils.data.Dataset[tuple[Tensor, Tensor]]):
    """A split, squeezed to a square and held in memory."""

    def __init__(self, split: str, size: int, augment: str) -> None:
        square = v2.Resize((size, size), antialias=True)
        self.items = []
        for path in sorted((CAMVID / split).glob("*.jpg")):
            image = tv_tensors.Image(np.asarray(Image.open(path).convert("RGB")).transpose(2, 0, 1).copy())
            mask = tv_tensors.Mask(_mask(path)[None].copy())
            self.items.append(square(image, mask))
        parts = [
            v2.RandomResizedCrop((size, size), scale=(0.7, 1.0), ratio=(0.9, 1.1), antialias=True),
            v2.ColorJitter(0.15, 0.15, 0.15),
        ]
        self.vary = v2.Compose([v2.RandomHorizontalFlip(), *(parts if augment == "crop" else [])])

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        image, mask = self.vary(*self.items[index])
        return normalise(image), mask[0].long()


def normalise(pixels: Tensor) -> Tensor:
    """Pixels (..., 3, H, W) of 0 to 255 as the network takes them."""
    return (pixels / 255 - MEAN[:, None, None]) / STD[:, None, None]


def _mask(image: Path) -> np.ndarray[Any, Any]:
    return np.asarray(Image.open(image.parent.with_name(f"{image.parent.name}annot") / f"{image.stem}.png"))


def mean_iou(split: str, predict: Predict) -> float:
    """The mean over classes of intersection over union, summed over all pixels of the split that are not void."""
    paths, table = sorted((CAMVID / split).glob("*.jpg")), np.zeros((NUM_CLASSES, NUM_CLASSES), np.int64)
    for path, told in zip(paths, predict(paths), strict=True):
        truth = _mask(path)
        known = truth != VOID
        cells = truth[known].astype(np.int64) * NUM_CLASSES + told[known]
        table += np.bincount(cells, minlength=NUM_CLASSES**2).reshape(table.shape)
    right = np.diag(table)
    return float((right / (table.sum(0) + table.sum(1) - right)).mean())


def predictor(net: Net, size: int) -> Predict:
    """What the net makes of files: a mask of each one's own size."""

    def predict(paths: list[Path]) -> list[np.ndarray[Any, Any]]:
        net.eval()
        told = []
        with torch.inference_mode():
            for path in paths:
                pixels = torch.from_numpy(np.asarray(Image.open(path).convert("RGB")).copy()).permute(2, 0, 1)
                logits = net(normalise(v2.functional.resize(pixels, [size, size], antialias=True))[None])
                told.append(F.interpolate(logits, size=pixels.shape[1:], mode="bilinear").argmax(1)[0].numpy())
        return told

    return predict


def train_plainly(design: str, epochs: int, augment: str) -> tuple[float, float, float]:
    """The best mean IoU on val, that of the same weights on test, and the seconds of training."""
    torch.manual_seed(FIT["seed"])
    size, net = FIT["image_size_px"], Net(design).to(memory_format=torch.channels_last)
    loader = torch.utils.data.DataLoader(Pictures("train", size, augment), FIT["batch_size"], shuffle=True)
    optimizer = torch.optim.AdamW(net.parameters(), FIT["learning_rate"], weight_decay=FIT["weight_decay"])
    total = epochs * len(loader)
    warm_up = min(100, math.ceil(total / 10))
    rates = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: min(1, (step + 1) / warm_up) * 0.5 * (1 + math.cos(math.pi * step / total))
    )
    best, kept, started = -1.0, net.state_dict(), time.perf_counter()
    for _ in range(epochs):
        net.train()
        for images, masks in loader:
            logits = F.interpolate(
                net(images.contiguous(memory_format=torch.channels_last)), size=masks.shape[1:], mode="bilinear"
            )
            optimizer.zero_grad()
            F.cross_entropy(logits, masks, ignore_index=VOID).backward()  # type: ignore[no-untyped-call]
            nn.utils.clip_grad_norm_(net.parameters(), 1.0)
            optimizer.step()
            rates.step()
        if (reached := mean_iou("val", predictor(net, size))) > best:
            best, kept = reached, copy.deepcopy(net.state_dict())
    seconds = time.perf_counter() - started
    net.load_state_dict(kept)
    return best, mean_iou("test", predictor(net, size)), seconds


def retrain(made: Workspace, design: str, epochs: int) -> tuple[float, float, float]:
    """The same three of `headstart retrain`; the mean IoU on test is computed here, and has to be what the command said."""
    from heads import bundle

    report = made.retrain(
        {
            "name": f"camvid-{design}",
            "targets": [{"column": "mask", "task": "segmentation", "ignore": [VOID]}],
            "backbones": ["mobilenet_v2"],
            "weights": str(MOBILENET_V2),
            "heads": [design],
            "freeze": ["none"],
            "fit": {**FIT, "epochs": epochs, "augment": "light", "flip": True},
            "workers": {"count": 1, "cpus_per_worker": 2},
        }
    )
    made.run("models", "pull", f"camvid-{design}@champion", str(made.folder / f"bundle-{design}"))
    pulled = bundle.load(made.folder / f"bundle-{design}")
    on_test = mean_iou("test", lambda paths: [answer["mask"].mask for answer in pulled.predict(paths)])  # type: ignore[union-attr]
    assert abs(on_test - report["holdout"]["mask/miou"]) < 1e-6, (on_test, report["holdout"])
    (variant,) = report["variants"]
    return variant["metrics"]["val/mask/miou"], on_test, variant["seconds"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--design", nargs="+", choices=["lraspp", "fcn"], default=["lraspp", "fcn"])
    parser.add_argument("--augment", nargs="+", choices=["flip", "crop"], default=["flip", "crop"])
    parser.add_argument("--epochs", type=int, default=12)
    parser.add_argument("--folder", type=Path, default=None)
    asked = parser.parse_args()
    torch.set_num_threads(2)
    cleared = True
    with workspace(CAMVID, asked.folder) as made:
        for design in asked.design:
            rows = {f"plain loop, {each}": train_plainly(design, asked.epochs, each) for each in asked.augment}
            theirs = max(rows.values())[1]
            rows["headstart"] = ours = retrain(made, design, asked.epochs)
            for name, (on_val, on_test, seconds) in rows.items():
                say(f"{design:<7} {name:<17} mIoU val {on_val:.4f}  test {on_test:.4f}  {seconds:.0f} s of training")
            clears = ours[1] >= theirs - BAR
            cleared &= clears
            say(f"{design:<7} ours less theirs {ours[1] - theirs:+.4f}; at least {-BAR:+.2f}: {'yes' if clears else 'NO'}")
    raise SystemExit(0 if cleared else 1)


if __name__ == "__main__":
    main()
