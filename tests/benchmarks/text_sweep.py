"""What a sweep of heads on texts, and a few new texts, cost with the feature store, against one plain pass over the texts.

    python tests/benchmarks/text_sweep.py [--parts ab] [--data banking77] [--weights minilm_l6_v2_fp16]
        [--epochs 10] [--folder DIR]

A table of texts without every hundredth text of train and val, in a new workspace, two workers of one thread each:
a) 16 frozen variants of an encoder (linear and mlp heads, four rates, two weight decays), nothing stored: `seconds.train`, from
   the first text to the last result, at most 1.25 times one plain forward pass over the same train and val texts by two processes
   of one thread: cut by the library `tokenizers`, sorted by length into batches of 64, and read by torch's own
   TransformerEncoder with the same weights. The pass is timed before and after, and the mean of both counts.
b) The missing texts ingested, the plan of a) again: every new one of train and val forwarded once, no old one.
Data and weights are taken from `../shared`. A summary in JSON stands in the last line. Ends with status 1 where a bar is missed.
"""

from __future__ import annotations

import argparse
import csv
import json
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from bare_loop import side_by_side
from torch import Tensor, nn
from workspaces import SHARED, Workspace, say

RATES, DECAYS, DESIGNS = (1e-2, 3e-3, 1e-3, 3e-4), (0.0, 0.5), ("linear", "mlp")
NUM_VARIANTS = len(RATES) * len(DECAYS) * len(DESIGNS)
NUM_PROCESSES, BATCH_SIZE, MAX_TOKENS = 2, 64, 64
FORWARD_BAR = 1.25
Row = Mapping[str, str]


def forward(weights: str, texts: Sequence[str]) -> float:
    """The seconds of one pass over the texts, cut into tokens and averaged over them, in this process of one thread."""
    from tokenizers import Tokenizer

    torch.set_num_threads(1)
    encoder, embed, norm = build_encoder(Path(weights))
    tokenizer = Tokenizer.from_file(str(Path(weights) / "tokenizer.json"))
    tokenizer.no_padding()
    tokenizer.enable_truncation(MAX_TOKENS)
    start = time.perf_counter()
    ids = sorted((torch.tensor(each.ids) for each in tokenizer.encode_batch(list(texts))), key=len)
    with torch.inference_mode():
        for first in range(0, len(ids), BATCH_SIZE):
            batch = nn.utils.rnn.pad_sequence(ids[first : first + BATCH_SIZE], batch_first=True)
            read = encoder(norm(embed(batch)), src_key_padding_mask=batch == 0)
            # Torch leaves out the padding that no text of a batch needs.
            weighed = (batch[:, : read.shape[1], None] != 0).float()
            (read * weighed).sum(dim=1).div_(weighed.sum(dim=1))
    return time.perf_counter() - start


class Embed(nn.Module):
    """What stands for a token, its place, and its part of the text, summed."""

    def __init__(self, state: Mapping[str, Tensor]) -> None:
        super().__init__()
        names = ("word", "position", "token_type")
        self.words, self.places, self.types = (state[f"embeddings.{name}_embeddings.weight"] for name in names)

    def forward(self, ids: Tensor) -> Tensor:
        return self.words[ids] + self.places[: ids.shape[1]] + self.types[0]


def build_encoder(folder: Path) -> tuple[nn.Module, Embed, nn.Module]:
    """Torch's encoder with the weights of a folder, its embeddings, and the norm between them."""
    config = json.loads((folder / "config.json").read_text())
    state = {
        name.removeprefix("bert."): t.float() for name, t in safetensors.torch.load_file(folder / "model.safetensors").items()
    }
    sizes = (config["hidden_size"], config["num_attention_heads"], config["intermediate_size"])
    layer = nn.TransformerEncoderLayer(*sizes, activation="gelu", layer_norm_eps=1e-12, batch_first=True)
    encoder = nn.TransformerEncoder(layer, config["num_hidden_layers"]).eval()
    for number, one in enumerate(encoder.layers):
        of = f"encoder.layer.{number}."
        for kind in ("weight", "bias"):
            parts = [state[f"{of}attention.self.{name}.{kind}"] for name in ("query", "key", "value")]
            moved = {f"self_attn.in_proj_{kind}": torch.cat(parts)}
            moved |= {
                f"{ours}.{kind}": state[f"{of}{theirs}.{kind}"]
                for ours, theirs in {
                    "self_attn.out_proj": "attention.output.dense",
                    "norm1": "attention.output.LayerNorm",
                    "linear1": "intermediate.dense",
                    "linear2": "output.dense",
                    "norm2": "output.LayerNorm",
                }.items()
            }
            one.load_state_dict(moved, strict=False)
    norm = nn.LayerNorm(sizes[0], eps=1e-12)
    norm.load_state_dict({kind: state[f"embeddings.LayerNorm.{kind}"] for kind in ("weight", "bias")})
    return encoder.requires_grad_(False), Embed(state), norm.requires_grad_(False).eval()


class Sweep:
    """The two parts, in one workspace; each prints its figures and keeps them in `figures`, its bars in `misses`."""

    def __init__(self, root: Path, asked: argparse.Namespace) -> None:
        self.asked, self.source, self.weights = asked, root / "source", SHARED / "weights" / asked.weights
        with (SHARED / "data" / asked.data / "labels.csv").open(newline="", encoding="utf-8") as file:
            self.rows = list(csv.DictReader(file))
        held = [number for number, row in enumerate(self.rows) if row["split"] != "test"]
        late = set(held[50::100])
        self.source.mkdir()
        self.write([row for number, row in enumerate(self.rows) if number not in late])
        self.place = Workspace(root / "workspace", self.source)
        self.first = self.place.samples("train", "val")
        self.figures: dict[str, Any] = {"texts": len(self.first), "epochs": asked.epochs}
        self.misses: list[str] = []

    def write(self, rows: Sequence[Row]) -> None:
        """Writes the table of these rows."""
        with (self.source / "labels.csv").open("w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, list(self.rows[0]))
            writer.writeheader()
            writer.writerows(rows)

    def retrain(self) -> dict[str, Any]:
        """The report of the plan of 16 variants."""
        fit = {"epochs": self.asked.epochs, "batch_size": 64, "learning_rate": RATES, "weight_decay": DECAYS}
        plan = {"name": "sweep", "backbones": ["bert"], "weights": str(self.weights), "heads": DESIGNS, "freeze": ["all"]}
        return self.place.retrain(plan | {"fit": fit | {"max_tokens": MAX_TOKENS}, "workers": {"count": NUM_PROCESSES}})

    def judge(self, name: str, value: float, words: str, *, clears: bool) -> None:
        """Keeps and prints a figure that has a bar."""
        self.figures[name] = value
        if not clears:
            self.misses.append(name)
        say(f"{words}: {'yes' if clears else 'NO'}")

    def pass_seconds(self) -> float:
        """One plain forward pass over the train and val texts by two processes."""
        texts = [(self.place.folder / "data" / sample.file).read_text(encoding="utf-8") for sample in self.first]
        parts = [(str(self.weights), texts[number::NUM_PROCESSES]) for number in range(NUM_PROCESSES)]
        return float(max(side_by_side(forward, parts)))

    def run_cold(self) -> None:
        """Part a)."""
        before, cold, after = self.pass_seconds(), self.retrain(), self.pass_seconds()
        train, passes = float(cold["seconds"]["train"]), (before + after) / 2
        self.figures |= {"cold_seconds": train, "pass_seconds": [before, after]}
        say(f"a) plain forward passes over {len(self.first)} texts: {before:.1f} s before, {after:.1f} s after")
        forwards, wanted = cold["counts"]["trunk_forwards"], len({sample.digest for sample in self.first})
        self.judge("cold_forwards", forwards, f"a) {forwards} of {wanted} texts forwarded, once each", clears=forwards == wanted)
        words = f"a) {NUM_VARIANTS} variants x {self.asked.epochs} epochs {train:.1f} s, {train / passes:.3f} passes"
        self.judge("cold_passes", train / passes, f"{words} (bar {FORWARD_BAR})", clears=train / passes <= FORWARD_BAR)
        best = max(variant["metrics"]["val/intent/accuracy"] for variant in cold["variants"])
        self.figures |= {"best_val_accuracy": best, "cold_report_seconds": cold["seconds"]}

    def run_fresh(self) -> None:
        """Part b)."""
        self.write(self.rows)
        self.place.run("data", "ingest", str(self.source))
        new = {sample.digest for sample in self.place.samples("train", "val")} - {sample.digest for sample in self.first}
        report = self.retrain()
        forwards, train = report["counts"]["trunk_forwards"], float(report["seconds"]["train"])
        self.figures["fresh_seconds"] = train
        words = f"b) {len(new)} new texts of train and val; {forwards} forwarded in a training of {train:.1f} s"
        self.judge("fresh_forwards", forwards, words, clears=forwards == len(new) > 0)


def main() -> int:
    """The exit status: 1 where a bar is missed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--parts", default="ab", help="a, or ab")
    parser.add_argument("--data", default="banking77", help="a folder with a table of texts and intents below ../shared/data")
    parser.add_argument("--weights", default="minilm_l6_v2_fp16", help="a folder below ../shared/weights")
    parser.add_argument("--epochs", type=int, default=10)
    parser.add_argument("--folder", type=Path, default=None)
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="headstart-texts-", dir=asked.folder, ignore_cleanup_errors=True) as root:
        sweep = Sweep(Path(root), asked)
        sweep.run_cold()
        if "b" in asked.parts:
            sweep.run_fresh()
    say(json.dumps(sweep.figures | {"misses": sweep.misses}))
    return 1 if sweep.misses else 0


if __name__ == "__main__":
    sys.exit(main())
