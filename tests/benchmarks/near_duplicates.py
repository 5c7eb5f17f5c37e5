"""The search for holdout pictures in train, on real sets: altered copies of train pictures that are found, and false alarms.

    python tests/benchmarks/near_duplicates.py [--data hymenoptera pets3 sign_digits] [--planted 40] [--image-size-px 96]

The real job's search in this process: features of MobileNetV2 name candidates, pixels decide. Every seventh picture of a set is
its holdout; to it are added copies of train pictures, so many an alteration. Pairs among the honest ones are listed: those of
pets3 are pictures that the set holds twice. Bars: of each alteration at least 95 % are found (of a quarter of the size none is
asked), of copies whose red and blue are exchanged at most 15 % (they are other pictures, but where they are nearly grey), and no
honest picture of another set is told.
"""

from __future__ import annotations

import argparse
import hashlib
import io
import sys
import tempfile
from collections import Counter
from collections.abc import Callable, Mapping
from pathlib import Path

from PIL import Image, ImageEnhance
from workspaces import MOBILENET_V2, SHARED, say

from flows import job
from flows.job.holdout.leaks import compare, find_candidates
from flows.records import DataVersion, Sample, Weights, Work, Workers
from heads.data.decoding import decode
from heads.spec import Fit, Head, Variant

LEAST_FOUND, NOT_ASKED, HELD_TWICE = 0.95, "a quarter of its size", ("pets3",)
MOST_FOUND, OTHER_COLOURS, NEARLY_GREY = 0.15, "red and blue exchanged", ("camvid",)


def resized(share: float) -> Callable[[Image.Image], Image.Image]:
    return lambda image: image.resize((max(1, int(image.width * share)), max(1, int(image.height * share))))


def saved(quality: int) -> Callable[[Image.Image], Image.Image]:
    def save(image: Image.Image) -> Image.Image:
        file = io.BytesIO()
        image.save(file, "JPEG", quality=quality)
        return decode(file.getvalue())

    return save


def cut(share: float, right: float, down: float) -> Callable[[Image.Image], Image.Image]:
    def crop(image: Image.Image) -> Image.Image:
        width, height = int(image.width * share), int(image.height * share)
        left, top = int((image.width - width) * right), int((image.height - height) * down)
        return image.crop((left, top, left + width, top + height))

    return crop


ALTERATIONS: Mapping[str, Callable[[Image.Image], Image.Image]] = {
    "half its size": resized(0.5),
    NOT_ASKED: resized(0.25),
    "1.7 times its size": resized(1.7),
    "JPEG of quality 80": saved(80),
    "JPEG of quality 30": saved(30),
    "cut to 95 %": cut(0.95, 0.5, 0.5),
    "cut to 85 %": cut(0.85, 0.3, 0.7),
    "cut to 93 %, half its size, quality 40": lambda image: saved(40)(resized(0.5)(cut(0.93, 0.2, 0.6)(image))),
    "grey": lambda image: image.convert("L").convert("RGB"),
    "darker": lambda image: ImageEnhance.Brightness(image).enhance(0.7),
    OTHER_COLOURS: lambda image: Image.merge("RGB", image.split()[::-1]),
}


def set_of(name: str, folder: Path, planted: int) -> DataVersion:
    """A real set with altered copies of train pictures in its holdout, in files named after the alteration."""
    files = [file for file in sorted((SHARED / "data" / name).rglob("*")) if file.suffix.lower() in (".jpg", ".jpeg")]
    samples = []
    for number, file in enumerate(files):
        split = "test" if number % 7 == 0 else "val" if number % 7 == 1 else "train"
        samples.append(Sample(hashlib.md5(file.read_bytes()).hexdigest(), str(file), split, {"label": None}))
    train = [sample for sample in samples if sample.split == "train"]
    for kind, alter in ALTERATIONS.items():
        for number, sample in enumerate(train[:: max(1, len(train) // planted)][:planted]):
            file = folder / f"{kind}-{number}.png"
            alter(decode(Path(sample.file))).save(file)
            samples.append(Sample(hashlib.md5(file.read_bytes()).hexdigest(), str(file), "test", {"label": None}))
    return DataVersion("d" * 32, "r" * 40, tuple(samples), folder, ())


def measure(name: str, planted: int, image_size_px: int, folder: Path) -> bool:
    """Print what was found in a set; whether the bars are met."""
    (folder / "images").mkdir()
    version = set_of(name, folder / "images", planted)
    variant = Variant(backbone="mobilenet_v2", heads=(Head(target="label"),), freeze="all", fit=Fit(image_size_px=image_size_px))
    work = Work("w", variant, Weights(hashlib.sha256(MOBILENET_V2.read_bytes()).hexdigest(), MOBILENET_V2))
    asked = job.Job("leaks", "k", "near", folder, version, {"label": ("a", "b")}, Workers(), works=(work,))
    found = compare(asked, find_candidates(job.write_job(asked).address, False, 2), 2)
    counts = Counter(Path(leak.file).stem.rpartition("-")[0] for leak in found.found if Path(leak.file).parent.parent == folder)
    total = Counter(Path(s.file).stem.rpartition("-")[0] for s in version.samples if Path(s.file).parent.parent == folder)
    honest = [leak for leak in found.found if Path(leak.file).parent.parent != folder]
    shares = {kind: counts[kind] / total[kind] for kind in ALTERATIONS}
    say(f"{name}: " + "; ".join(f"{kind} {counts[kind]}/{total[kind]}" for kind in ALTERATIONS))
    say(f"{name}: {len(honest)} of {found.num_samples - sum(total.values())} honest ones told, {found.num_small} too small")
    for leak in honest:
        say(f"  {Path(leak.file).name} and {Path(leak.twin).name}: {leak.likeness:.3f}")
    missed = [kind for kind, share in shares.items() if share < LEAST_FOUND and kind not in (NOT_ASKED, OTHER_COLOURS)]
    mistaken = shares[OTHER_COLOURS] > MOST_FOUND and name not in NEARLY_GREY
    return not missed and not mistaken and (not honest or name in HELD_TWICE)


def main() -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("--data", nargs="+", default=["hymenoptera", "pets3", "sign_digits"])
    parser.add_argument("--planted", type=int, default=40)
    parser.add_argument("--image-size-px", type=int, default=96)
    asked = parser.parse_args()
    met = []
    for name in asked.data:
        with tempfile.TemporaryDirectory() as folder:
            met.append(measure(name, asked.planted, asked.image_size_px, Path(folder)))
    return 0 if all(met) else 1


if __name__ == "__main__":
    sys.exit(main())
