"""The rows of networks that read texts; those of encoders and recurrent networks of any size are made from their name."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache

from torch import nn

from heads.backbones import bert, convolutions, recurrent
from heads.backbones.convolutions import KERNELS, NUM_FILTERS, TextCnn
from heads.backbones.cutting import Split
from heads.backbones.row import Backbone
from heads.backbones.text_stages import example_text
from heads.backbones.words import CHANNELS, NUM_WORDS
from heads.bert_size import BertSize, parse_bert_size
from heads.recurrent_size import RecurrentSize, parse_recurrent_size

# Poolers, and heads of a pretraining or of a task.
NOT_FEATURES = ("pooler.", "cls.", "classifier.", "qa_outputs.")
# What the plan's `bert` stands for until its weights are read.
USUAL = BertSize(48, 384, 12, 1536)
SMALL = BertSize(2, 128, 4, 512, num_tokens=NUM_WORDS, num_positions=8192)


def encoder(size: BertSize) -> Backbone:
    """The row of an encoder of this size."""
    num_stages = size.num_layers + 1
    return Backbone(
        bert.builder_of(size),
        None,
        bert.split,
        (size.channels,) * num_stages,
        (1,) * num_stages,
        NOT_FEATURES,
        "text",
        example=example_text,
        learns_words=size == SMALL,
    )


def learned(build: Callable[[], nn.Module], split: Split, *channels: int) -> Backbone:
    """The row of a network that learns its words from the training texts; `channels` are of the stages after its embeddings."""
    strides = (1,) * (1 + len(channels))
    return Backbone(build, None, split, (CHANNELS, *channels), strides, layout="text", example=example_text, learns_words=True)


def recurrent_network(size: RecurrentSize) -> Backbone:
    """The row of a recurrent network of this size."""
    return learned(recurrent.builder_of(size), recurrent.split, *(size.channels,) * size.num_layers)


TEXT_ROWS: dict[str, Backbone] = {
    "bert": encoder(USUAL),
    "transformer": encoder(SMALL),
    "textcnn": learned(TextCnn, convolutions.split, len(KERNELS) * NUM_FILTERS),
    "lstm": recurrent_network(RecurrentSize("lstm")),
    "gru": recurrent_network(RecurrentSize("gru")),
    "rnn": recurrent_network(RecurrentSize("rnn")),
}


@cache
def sized_row(name: str) -> Backbone | None:
    """The row of an encoder or a recurrent network whose name states its size; None on other names."""
    if size := parse_bert_size(name):
        return encoder(size)
    recurrent_size = None if name in TEXT_ROWS else parse_recurrent_size(name)
    return recurrent_network(recurrent_size) if recurrent_size else None
