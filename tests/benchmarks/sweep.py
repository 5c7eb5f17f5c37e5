"""What a sweep, more heads and a few new samples cost with the feature store, against one pass over the images and bare loops.

    python tests/benchmarks/sweep.py [--parts abcd] [--data sign_digits] [--backbone mobilenet_v2] [--image-size-px 224]
        [--epochs 10] [--batch-size 64] [--bare-epochs 10] [--images N] [--times 1] [--folder DIR]

A copy of the data set without every hundredth image of train and val, in a new workspace, two workers of one thread each:
a) 16 frozen variants of a backbone (linear and mlp heads, four rates, two weight decays), nothing stored: `seconds.train`, from
   the first image to the last result, at most 1.25 times one plain forward pass over the same train and val images, decoding
   included, by two processes of one thread. The pass is timed before and after, and the mean of both counts.
b) Four more head designs on the same features, cosine and three other shapes of mlp, at the same rates and weight decays, by
   two more plans since a plan is a grid: no image forwarded.
c) The missing images ingested, the plan of a) again: every new one of train and val forwarded once, no old one; at most 10 % of
   the seconds of a).
d) One linear and one mlp variant of a) in a bare torch loop each, without a store, at the same time in a process of one thread
   each: pictures decoded every epoch, the backbone in eval without gradients, AdamW, warm-up and cosine, validation every
   epoch. Their seconds are extrapolated linearly to 16 variants x epochs on two cores: at least 50 times those of a). With all
   epochs run, the best validation accuracies differ by at most a point or two images, whichever is more.
Data and weights are taken from `../shared`; backbones other than MobileNetV2 have random weights, and no d). About 35 minutes on
two cores, d) most of it: `--bare-epochs 1` takes 12, `--parts ac` 5. A summary in JSON stands in the last line. Ends with status
1 where a bar is missed.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch
from bare_loop import LEARNING_RATE, WEIGHT_DECAY, Bare, Labelled, forward, frozen, side_by_side, train_bare
from workspaces import MOBILENET_V2, SHARED, Workspace, copy, say, spread

RATES, DECAYS, DESIGNS = (3e-3, 1e-3, 3e-4, 1e-4), (0.0, 0.01), ("linear", "mlp")
NUM_VARIANTS = len(RATES) * len(DECAYS) * len(DESIGNS)
NUM_PROCESSES = 2
FORWARD_BAR, FRESH_BAR, BARE_BAR, POINT, NUM_NEAR_IMAGES = 1.25, 0.1, 50.0, 0.01, 2


class Sweep:
    """The four parts, in one workspace; each prints its figures and keeps them in `figures`, its bars in `misses`."""

    def __init__(self, root: Path, asked: argparse.Namespace) -> None:
        self.asked, self.source = asked, root / "source"
        self.shared = SHARED / "data" / asked.data
        files = spread(self.shared, asked.images)
        held = [file for file in files if file.relative_to(self.shared).parts[0] != "test"]
        self.late = held[len(held) % 100 // 2 :: 100]
        copy((file for file in files if file not in self.late), self.shared, self.source, asked.times)
        self.weights = MOBILENET_V2
        if asked.backbone != "mobilenet_v2":
            self.weights = root / f"{asked.backbone}.pth"
            torch.save(frozen(asked.backbone).state_dict(), self.weights)
        self.place = Workspace(root / "workspace", self.source)
        self.first = self.place.samples("train", "val")
        self.figures: dict[str, Any] = {"images": len(self.first)}
        self.figures |= {name: getattr(asked, name) for name in ("backbone", "image_size_px", "epochs", "batch_size", "times")}
        self.misses: list[str] = []

    def plan(self, **changed: Any) -> dict[str, Any]:
        """The plan of a), with fit settings or heads changed."""
        fit = {"epochs": self.asked.epochs, "batch_size": self.asked.batch_size, "learning_rate": RATES, "weight_decay": DECAYS}
        fit |= {"image_size_px": self.asked.image_size_px, "seed": 0} | changed.pop("fit", {})
        common = {"name": "sweep", "backbones": [self.asked.backbone], "weights": str(self.weights), "freeze": ["all"]}
        return common | {"heads": DESIGNS, "workers": {"count": NUM_PROCESSES}} | changed | {"fit": fit}

    def judge(self, name: str, value: float, words: str, *, clears: bool) -> None:
        """Keeps and prints a figure that has a bar."""
        self.figures[name] = value
        if not clears:
            self.misses.append(name)
        say(f"{words}: {'yes' if clears else 'NO'}")

    def labelled(self, split: str) -> Labelled:
        """The files of a split of a)'s data version with class numbers."""
        names = sorted({str(sample.labels["label"]) for sample in self.first})
        data = self.place.folder / "data"
        return [(str(data / s.file), names.index(str(s.labels["label"]))) for s in self.first if s.split == split]

    def pass_seconds(self) -> float:
        """One plain forward pass over the train and val images by two processes."""
        files = self.labelled("train") + self.labelled("val")
        parts = [(self.asked.backbone, files[number::NUM_PROCESSES], self.asked.image_size_px) for number in range(NUM_PROCESSES)]
        return float(max(side_by_side(forward, parts)))

    def run_cold(self) -> None:
        """Part a)."""
        before, self.cold, after = self.pass_seconds(), self.place.retrain(self.plan()), self.pass_seconds()
        train, self.one_pass = float(self.cold["seconds"]["train"]), (before + after) / 2
        self.figures |= {"cold_seconds": train, "pass_seconds": [before, after]}
        say(f"a) plain forward passes over {len(self.first)} images: {before:.1f} s before, {after:.1f} s after")
        forwards = self.cold["counts"]["trunk_forwards"]
        words = f"a) cold, {forwards} of {len(self.first)} images forwarded, once each"
        self.judge("cold_forwards", forwards, words, clears=forwards == len({s.digest for s in self.first}))
        passes = train / self.one_pass
        words = f"a) {NUM_VARIANTS} variants x {self.asked.epochs} epochs {train:.1f} s, {passes:.3f} passes (bar {FORWARD_BAR})"
        self.judge("cold_passes", passes, words, clears=passes <= FORWARD_BAR)

    def run_more_heads(self) -> None:
        """Part b)."""
        cosine = self.place.retrain(self.plan(heads=[*DESIGNS, "cosine"]))
        shapes = self.place.retrain(self.plan(heads=["mlp"], fit={"mlp_depth": [1, 2], "mlp_width": [256, 64]}))
        counts = [report["counts"] for report in (cosine, shapes)]
        forwards, trained = (sum(each[name] for each in counts) for name in ("trunk_forwards", "variants_trained"))
        expected = 4 * len(RATES) * len(DECAYS)
        words = f"b) {trained} variants of 4 more designs trained (of {expected}), {forwards} images forwarded (bar 0)"
        self.judge("more_heads_forwards", forwards, words, clears=forwards == 0 and trained == expected)

    def run_fresh(self) -> None:
        """Part c)."""
        copy(self.late, self.shared, self.source, self.asked.times)
        self.place.run("data", "ingest", str(self.source))
        old = {sample.digest for sample in self.first}
        new = {sample.digest for sample in self.place.samples("train", "val")} - old
        report = self.place.retrain(self.plan())
        forwards, train = report["counts"]["trunk_forwards"], float(report["seconds"]["train"])
        share = train / self.figures["cold_seconds"]
        words = (
            f"c) {len(self.late) * self.asked.times} images more, {len(new)} of them in train and val; "
            f"{forwards} forwarded, each of these once"
        )
        self.judge("fresh_forwards", forwards, words, clears=forwards == len(new) > 0)
        self.figures |= {"fresh_seconds": train, "fresh_passes": train / self.one_pass}
        words = f"c) {train:.1f} s, {train / self.one_pass:.3f} passes, {share:.3f} of the cold run's (bar {FRESH_BAR})"
        self.judge("fresh_share", share, words, clears=share <= FRESH_BAR)

    def run_bare(self) -> None:
        """Part d)."""
        train, val = self.labelled("train"), self.labelled("val")
        epochs, num_run = self.asked.epochs, self.asked.bare_epochs or self.asked.epochs
        num_classes = 1 + max(number for _, number in train + val)
        sizes = (self.asked.image_size_px, self.asked.batch_size)
        asked = [Bare(design, epochs, num_run, *sizes, num_classes, train, val) for design in DESIGNS]
        found = dict(zip(DESIGNS, side_by_side(train_bare, [(one,) for one in asked]), strict=True))
        mean = sum(seconds for seconds, _ in found.values()) / len(found) / num_run
        whole = mean * epochs * NUM_VARIANTS / NUM_PROCESSES
        self.figures |= {"bare_seconds_per_epoch": mean, "bare_seconds_extrapolated": whole, "bare_epochs_run": num_run}
        told = ", ".join(f"{design} {seconds:.1f} s" for design, (seconds, _) in found.items())
        say(f"d) bare loops of {num_run} epochs: {told}; {NUM_VARIANTS} variants x {epochs} epochs, extrapolated: {whole:.0f} s")
        ratio = whole / self.figures["cold_seconds"]
        words = f"d) {ratio:.1f} times a)'s {self.figures['cold_seconds']:.1f} s, extrapolated linearly (bar {BARE_BAR:g})"
        self.judge("bare_ratio", ratio, words, clears=ratio >= BARE_BAR)
        if num_run == epochs:
            for design, (_, accuracy) in found.items():
                self.compare(design, accuracy, len(val))

    def compare(self, design: str, accuracy: float, num_val: int) -> None:
        """Whether a bare loop's accuracy is that of a)'s same variant, within noise."""
        words = {design, f"learning_rate {LEARNING_RATE:g}", f"weight_decay {WEIGHT_DECAY:g}"}
        (ours,) = [v for v in self.cold["variants"] if words <= set(v["label"].split(" · "))]
        value, near = ours["metrics"]["val/label/accuracy"], max(POINT, NUM_NEAR_IMAGES / num_val)
        told = f"d) {design} at {LEARNING_RATE:g}: val accuracy {accuracy:.4f} bare, {value:.4f} of a) (bar {near:.4f} apart)"
        self.judge(f"{design}_gap", value - accuracy, told, clears=abs(value - accuracy) <= near + 1e-9)


def main() -> int:
    """The exit status: 1 where a bar is missed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", default="sign_digits", help="a folder of class folders below ../shared/data")
    parser.add_argument("--parts", default="abcd", help="those to run, a among them; such as ac")
    parser.add_argument("--backbone", default="mobilenet_v2")
    parser.add_argument("--image-size-px", type=int, default=224)
    parser.add_argument("--epochs", type=int, default=10)
    parser.add_argument("--batch-size", type=int, default=64, help="over both workers together, and of a bare loop")
    parser.add_argument("--bare-epochs", type=int, default=None, help="so many epochs of the bare loops; all where left out")
    parser.add_argument("--images", type=int, default=None, help="so many images, evenly spread; all where left out")
    parser.add_argument("--times", type=int, default=1, help="each image so many times, under digests of its own")
    parser.add_argument("--folder", type=Path, default=None)
    asked = parser.parse_args()
    if not {"a"} <= set(asked.parts) <= set("abcd") or ("d" in asked.parts and asked.backbone != "mobilenet_v2"):
        parser.error(f"--parts {asked.parts} of {asked.backbone}: give a, with any of b, c and, for mobilenet_v2 alone, d")
    with tempfile.TemporaryDirectory(prefix="headstart-sweep-", dir=asked.folder, ignore_cleanup_errors=True) as root:
        sweep = Sweep(Path(root), asked)
        runs = {"a": sweep.run_cold, "b": sweep.run_more_heads, "c": sweep.run_fresh, "d": sweep.run_bare}
        for part in sorted(set(asked.parts)):
            runs[part]()
    say(json.dumps(sweep.figures | {"misses": sweep.misses}))
    return 1 if sweep.misses else 0


if __name__ == "__main__":
    sys.exit(main())
