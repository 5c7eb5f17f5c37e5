"""Whether the device waits for images: rates of extraction and fine-tuning as shares of what the device can do by itself.

    python tests/benchmarks/device_feed.py [--only PART]
    python tests/benchmarks/device_feed.py --device cuda [--pictures FOLDER] [--backbone NAME] [--pictures-count N] [--pairs N]

In one run: images a second of one core from a file's bytes to what the device is handed (at least 1,000), against preparing them
on the CPU; how far images prepared on the device are from those; extraction of 8,192 pictures at 224 px against the same model on
synthetic input (at least 0.80 for ResNet-50 and ViT-B/16, 0.45 for MobileNetV2, of 16 cores); fine-tuning ResNet-50 against the
same loop with its input held on the device (0.90), and against a bare loop that reads the same pictures (0.98).

The pictures are JPEG files of `../shared/data/pets3` or of a folder, copied as often as needed, each read as a file of its own.
On a CPU only the first two have a bar: the rest is a dry run at small sizes. Ends with status 1 where a bar is missed.
"""

from __future__ import annotations

import argparse
import shutil
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from loop_speed import BREEDS, BareLoop, Case, HeldLoader
from torch import Tensor
from workspaces import SHARED, say

from heads.data.image_dataset import ImageDataset
from heads.data.image_feed import ImageFeed
from heads.data.image_transforms import preprocess_for
from heads.data.loading import Loader, Loaders, SampleLoader, num_loader_workers
from heads.features import FeatureStore
from heads.model.model import build_backbone, build_model
from heads.phases import Tap, compile_policy
from heads.spec import Fit, Head, Variant
from heads.training import loop
from heads.trunks import extraction
from heads.trunks.forward import Forward
from heads.trunks.trunk import trunk_of

PETS = SHARED / "data" / "pets3" / "images"
LEAST_PER_CORE = 1000
LEAST_OF_DEVICE = {"resnet50": 0.80, "vit_b_16": 0.80, "mobilenet_v2": 0.45}
LEAST_OF_HELD, LEAST_OF_BARE = 0.90, 0.98
MOST_DIFFERING = 3e-4


@dataclass(frozen=True)
class Sizes:
    """How much is done: pictures of a pass, their size in px, pairs of epochs, batch of fine-tuning, repeats of extraction."""

    pictures: int
    px: int
    pairs: int
    batch_size: int
    repeats: int


SIZES = {"cpu": Sizes(32, 64, 2, 8, 1), "cuda": Sizes(8192, 224, 3, 128, 2)}
rows: list[tuple[str, float, float | None]] = []


def note(name: str, figure: float, least: float | None = None) -> None:
    """Keeps a figure for the table at the end, with what it has to reach."""
    rows.append((name, figure, least))
    say(f"{name:<66} {figure:10.4g}")


def open_images(files: Sequence[Path], backbone: str, px: int, augment: str = "none") -> ImageDataset:
    """The files as a data set, labelled by turns."""
    labels = {"breed": [number % len(BREEDS) for number in range(len(files))]}
    digests = [f"{number:032x}" for number in range(len(files))]
    return ImageDataset(files, labels, preprocess_for(backbone, px), augment, digests=digests)  # type: ignore[arg-type]


def measure_core(files: Sequence[Path], px: int, bar: bool) -> None:
    """One core, from a file's bytes to what the device is handed, and to what a network takes."""
    images = open_images(files, "resnet50", px, "light")
    feed, rates = ImageFeed(images, torch.device("cpu"), 0), {}
    for name, read in (("handed over decoded", feed.__getitem__), ("prepared on the CPU", images.__getitem__)):
        images._resized.clear()
        seconds = []
        for number in range(len(files)):
            start = time.process_time()
            read(number)
            seconds.append(time.process_time() - start)
        rates[name] = 1 / statistics.median(seconds)
    for name, rate in rates.items():
        note(f"one core, images/s {name}", rate, LEAST_PER_CORE if bar and "decoded" in name else None)


def measure_gap(files: Sequence[Path], px: int, device: torch.device) -> None:
    """The share of values, of 0 to 255, in which images prepared on the device differ from those of a CPU."""
    for backbone, augment in (("resnet50", "none"), ("resnet50", "light"), ("resnet50", "strong"), ("swin_t", "none")):
        images = open_images(files, backbone, px, augment)
        feed = ImageFeed(images, device, 0)
        batched, _ = feed.finish(feed.collate([feed[number] for number in range(len(files))]))
        assert isinstance(batched.features, Tensor)
        alone = torch.stack([images[number][0] for number in range(len(files))])
        gap = (batched.features.cpu() - alone).abs() * 255 * torch.tensor(images.preprocess.std)[:, None, None]
        share = float((gap > 0.05).float().mean())
        note(f"{backbone} {augment}: share of values that differ (most, in levels: {gap.max():.2f})", share)
        if share > MOST_DIFFERING:
            rows.append((f"{backbone} {augment}: at most {MOST_DIFFERING} of values differ", 0.0, 1.0))


def measure_extraction(backbone: str, files: Sequence[Path], sizes: Sizes, device: torch.device) -> None:
    """Extraction of all files against the same stages on one synthetic batch, and the way to the device by itself."""
    variant = Variant(backbone=backbone, heads=(Head(target="breed"),), freeze="all", fit=Fit(image_size_px=sizes.px))
    stages = build_backbone(variant, None).eval().to(device).to(memory_format=torch.channels_last)
    taps, images, trunk = (
        (Tap(len(stages) - 1, "pooled"),),
        open_images(files, backbone, sizes.px),
        trunk_of(variant, "none", device),
    )
    batch_size = images.preprocess.batch_size(extraction.BATCH_SIZES[device.type])
    batch = torch.randn(batch_size, 3, sizes.px, sizes.px, device=device).to(memory_format=torch.channels_last)

    num_batches = -(-len(files) // batch_size)

    def forward_all(is_captured: bool = True) -> None:
        forward = Forward(stages, taps, "auto", num_batches if is_captured else 0)
        for _ in range(num_batches):
            forward(batch)
        forward.close()

    def forward_uncaptured() -> None:
        forward_all(is_captured=False)

    def read_all() -> None:
        feed = images.feed(device)
        for _ in extraction._read(feed, lambda number: feed.reader(number, 0), range(len(files)), batch_size, device):
            pass

    def extract(images: ImageDataset = images) -> None:
        with tempfile.TemporaryDirectory() as root:
            request = extraction.ExtractionRequest(images, 0, taps)
            extraction.extract(lambda: stages, trunk, [request], FeatureStore(Path(root)), device=device, precision="auto")

    extract()
    rates = {
        work.__name__: [len(files) / _seconds(work, device) for _ in range(sizes.repeats)]
        for work in (forward_all, forward_uncaptured, read_all, extract)
    }
    medians = {name: statistics.median(found) for name, found in rates.items()}
    for name, told in (
        ("forward_all", "synthetic input"),
        ("forward_uncaptured", "synthetic input, not captured as a CUDA graph"),
        ("read_all", "read and prepared alone"),
        ("extract", "extraction"),
    ):
        note(f"{backbone} {told}, images/s", medians[name])
    bar, limit = (
        LEAST_OF_DEVICE[backbone] if device.type == "cuda" else None,
        max(medians["forward_all"], medians["forward_uncaptured"]),
    )
    note(f"{backbone} extraction, share of synthetic input", medians["extract"] / limit, bar)
    if sizes.repeats < 2:
        return
    many = open_images(list(files) * 4, backbone, sizes.px)
    rate = len(many) / _seconds(lambda: extract(many), device)
    note(f"{backbone} extraction of {len(many):,}, share of synthetic input", rate / limit)


class FedBareLoop(BareLoop):
    """The bare loop on the batches that ours reads."""

    def __init__(self, case: Case, loaders: tuple[Loader, Loader], device: torch.device, epochs: int) -> None:
        train, val = (loader.dataset for loader in loaders)
        super().__init__(case, train, val, device, 0, epochs)  # type: ignore[arg-type]
        self.train_loader, self.val_loader = loaders  # type: ignore[assignment]
        self.epoch = 0

    def run_epoch(self) -> None:
        """An epoch, in an order and a variation of its own."""
        self.train_loader.set_epoch(self.epoch, 0)  # type: ignore[attr-defined]
        self.epoch += 1
        super().run_epoch()

    def _batches(self, loader: object):  # type: ignore[no-untyped-def]
        for batch in loader:  # type: ignore[attr-defined]
            yield batch.inputs.features, batch.labels["breed"]


def measure_training(files: Sequence[Path], sizes: Sizes, device: torch.device) -> None:
    """Fine-tuning: epochs of our loop, of a bare one on the same batches, and of ours with its input held."""
    backbone = "resnet50" if device.type == "cuda" else "mobilenet_v2"
    case = Case(backbone, sizes.px, sizes.batch_size, len(files), sizes.batch_size)
    fit = Fit(epochs=sizes.pairs + 1, batch_size=sizes.batch_size, image_size_px=sizes.px, augment="light")
    variant = Variant(backbone=backbone, heads=(Head(target="breed"),), freeze="none", fit=fit)
    train_set, val_set = (
        open_images(files, backbone, sizes.px, "light"),
        open_images(files[: sizes.batch_size], backbone, sizes.px),
    )

    def load(kind: Callable[..., Loader], workers: int | None = None) -> tuple[Loader, Loader]:
        made = [
            kind(each, sizes.batch_size, device, training=each is train_set, num_workers=workers) for each in (train_set, val_set)
        ]
        return made[0], made[1]

    bare = FedBareLoop(case, load(SampleLoader), device, sizes.pairs + 2)
    seconds: dict[str, list[float]] = {"ours": [], "bare": []}
    last = time.perf_counter()

    def stop(name: str) -> None:
        nonlocal last
        if device.type == "cuda":
            torch.cuda.synchronize()
        now = time.perf_counter()
        seconds[name].append(now - last)
        last = now

    bare.run_epoch()
    stop("bare")

    def take_turns(*_: object) -> None:
        stop("ours")
        bare.run_epoch()
        stop("bare")

    model = build_model(variant, {"breed": BREEDS}, None)
    loop.train(model, variant, train_set, val_set, device=device, on_epoch=take_turns)
    (phase,) = compile_policy(variant)
    held = loop.train(
        build_model(variant, {"breed": BREEDS}, None),
        variant,
        train_set,
        val_set,
        device=device,
        on_epoch=lambda *_: None,
        stored={phase: Loaders(*load(HeldLoader, 0))},
    )
    limit = len(files) / statistics.median(epoch.seconds for epoch in held.epochs[1:])
    ours, first = [len(files) / one for one in seconds["ours"][1:]], len(files) / seconds["ours"][0]
    ratios = [
        (before + after) / 2 / own
        for own, before, after in zip(seconds["ours"][1:], seconds["bare"][1:-1], seconds["bare"][2:], strict=True)
    ]
    on_gpu = device.type == "cuda"
    note(f"{backbone} fine-tuning, images/s in the first epoch, which reads files", first)
    note(f"{backbone} fine-tuning, images/s in later epochs", statistics.median(ours))
    note(f"{backbone} fine-tuning, images/s with input held", limit)
    note(f"{backbone} fine-tuning, share of input held", statistics.median(ours) / limit, LEAST_OF_HELD if on_gpu else None)
    note(f"{backbone} fine-tuning, ratio to the bare loop", statistics.median(ratios), LEAST_OF_BARE if on_gpu else None)


def _seconds(work: object, device: torch.device) -> float:
    start = time.perf_counter()
    work()  # type: ignore[operator]
    if device.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - start


def _copies(folder: Path, wanted: int, target: Path) -> list[Path]:
    """So many JPEG files of a folder, copied as often as needed."""
    given = sorted(folder.glob("*.jpg"))[:256]
    if not given:
        raise SystemExit(f"{folder} holds no .jpg file; give --pictures a folder that does")
    files = [target / f"{number:06}.jpg" for number in range(wanted)]
    for number, file in enumerate(files):
        shutil.copyfile(given[number % len(given)], file)
    return files


def _sizes(usual: Sizes, asked: argparse.Namespace) -> Sizes:
    """The usual sizes, but for those that are given."""
    pictures, pairs = asked.pictures_count or usual.pictures, asked.pairs or usual.pairs
    return replace(usual, pictures=pictures, pairs=pairs, repeats=usual.repeats if pictures >= usual.pictures else 1)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", choices=SIZES, default="cpu")
    parser.add_argument("--pictures", type=Path, default=PETS)
    parser.add_argument("--pictures-count", type=int, help="how many pictures a pass reads; fewer than usual also repeat less")
    parser.add_argument("--pairs", type=int, help="how many pairs of epochs fine-tuning measures")
    parser.add_argument(
        "--backbone", choices=LEAST_OF_DEVICE, action="append", help="whose extraction is measured; all if none is"
    )
    parser.add_argument("--only", choices=("core", "gap", "extraction", "training"), action="append")
    asked = parser.parse_args()
    if asked.device == "cuda" and not torch.cuda.is_available():
        say("skipped: torch finds no CUDA GPU on this machine")
        return
    sizes, device, parts = (
        _sizes(SIZES[asked.device], asked),
        torch.device(asked.device),
        asked.only or ("core", "gap", "extraction", "training"),
    )
    if device.type == "cuda":
        say(f"{torch.cuda.get_device_name()}, {num_loader_workers(device)} loader processes, torch {torch.__version__}")
    with tempfile.TemporaryDirectory() as folder:
        files, threads = _copies(asked.pictures, sizes.pictures, Path(folder)), torch.get_num_threads()
        torch.set_num_threads(1)
        if "core" in parts:
            measure_core(files[:128], 224, bar=True)
        if "gap" in parts:
            measure_gap(files[:64], sizes.px, device)
        torch.set_num_threads(threads)
        for backbone in (asked.backbone or LEAST_OF_DEVICE) if "extraction" in parts else ():
            if device.type == "cuda" or backbone == "mobilenet_v2":
                measure_extraction(backbone, files, sizes, device)
        if "training" in parts:
            measure_training(files, sizes, device)
    missed = [name for name, figure, least in rows if least is not None and figure < least]
    for name, figure, least in rows:
        bar = "" if least is None else f"   at least {least:g}: {'yes' if figure >= least else 'NO'}"
        say(f"{name:<66} {figure:10.4g}{bar}")
    raise SystemExit(1 if missed else 0)


if __name__ == "__main__":
    main()
