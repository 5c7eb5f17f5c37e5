"""Small encoders of texts in Hugging Face's layout, and texts to read with them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from torch import nn

from heads.backbones.bert import Bert
from heads.bert_size import BertSize

WORDS = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "red", "blue", "a", "house", "car", "##s", "green", "tree", "!")
SIZE = BertSize(2, 16, 2, 32, num_tokens=len(WORDS), num_positions=64)


def write_encoder(folder: Path, **config: Any) -> Path:
    """A folder of weights for `SIZE`, in half precision, with `bert.` before its parameters' names and a pooler beside them."""
    folder.mkdir(parents=True, exist_ok=True)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        state = {f"bert.{name}": tensor.half() for name, tensor in Bert(SIZE).state_dict().items()}
        state |= {f"bert.pooler.dense.{name}": tensor for name, tensor in nn.Linear(16, 16).state_dict().items()}
    state["bert.embeddings.position_ids"] = torch.arange(64)[None]
    safetensors.torch.save_file(state, folder / "model.safetensors")
    sizes = {"num_hidden_layers": 2, "hidden_size": 16, "num_attention_heads": 2, "intermediate_size": 32}
    sizes |= {"vocab_size": len(WORDS), "max_position_embeddings": 64, "type_vocab_size": 2}
    described = {"model_type": "bert", "architectures": ["BertModel"], "hidden_act": "gelu", **sizes, **config}
    (folder / "config.json").write_text(json.dumps(described))
    (folder / "vocab.txt").write_text("".join(f"{word}\n" for word in WORDS))
    return folder


def write_texts(folder: Path, count: int) -> list[Path]:
    """Files of texts whose class, their number modulo 2, is told by a colour; they are of different lengths."""
    folder.mkdir(parents=True, exist_ok=True)
    files = []
    for number in range(count):
        files.append(folder / f"{number:03}.txt")
        colour = ("red", "blue")[number % 2]
        files[-1].write_text(f"{'a ' * (number % 5)}{colour} {('house', 'cars', 'tree!')[number % 3]} {number}")
    return files
