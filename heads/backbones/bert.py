"""BERT's encoder in plain torch, with the parameters' names of Hugging Face's `BertModel`.

After Devlin et al., "BERT: Pre-training of Deep Bidirectional Transformers for Language Understanding", NAACL 2019.
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from heads.backbones.text_stages import in_stages

if TYPE_CHECKING:
    from heads.bert_size import BertSize

EPSILON, DROPOUT, SPREAD = 1e-12, 0.1, 0.02


class Embeddings(nn.Module):
    """Token ids (N, L) to features (N, L, C): the sums of what stands for a token, its place, and its part of the text."""

    def __init__(self, size: BertSize) -> None:
        super().__init__()
        self.word_embeddings = nn.Embedding(size.num_tokens, size.channels)
        self.position_embeddings = nn.Embedding(size.num_positions, size.channels)
        self.token_type_embeddings = nn.Embedding(size.num_types, size.channels)
        self.LayerNorm = nn.LayerNorm(size.channels, eps=EPSILON)
        self.dropout = nn.Dropout(DROPOUT)

    def forward(self, ids: Tensor) -> Tensor:
        places = self.position_embeddings(torch.arange(ids.shape[1], device=ids.device))
        features = self.word_embeddings(ids) + places + self.token_type_embeddings.weight[0]
        kept: Tensor = self.dropout(self.LayerNorm(features))
        return kept


class _SelfAttention(nn.Module):
    def __init__(self, size: BertSize) -> None:
        super().__init__()
        self.num_heads = size.num_heads
        self.query, self.key, self.value = (nn.Linear(size.channels, size.channels) for _ in range(3))

    def forward(self, features: Tensor, is_token: Tensor) -> Tensor:
        query, key, value = (
            part(features).unflatten(-1, (self.num_heads, -1)).transpose(1, 2) for part in (self.query, self.key, self.value)
        )
        read = F.scaled_dot_product_attention(
            query, key, value, attn_mask=is_token[:, None, None, :], dropout_p=DROPOUT if self.training else 0.0
        )
        return read.transpose(1, 2).flatten(2)


class _Output(nn.Module):
    """A linear map of what a part of a layer has made, added to what went in, then normalised."""

    def __init__(self, num_inputs: int, channels: int) -> None:
        super().__init__()
        self.dense = nn.Linear(num_inputs, channels)
        self.LayerNorm = nn.LayerNorm(channels, eps=EPSILON)
        self.dropout = nn.Dropout(DROPOUT)

    def forward(self, made: Tensor, features: Tensor) -> Tensor:
        normed: Tensor = self.LayerNorm(self.dropout(self.dense(made)) + features)
        return normed


class Layer(nn.Module):
    """A layer of the encoder: attention between all tokens, then two linear maps with GELU between them."""

    def __init__(self, size: BertSize) -> None:
        super().__init__()
        self.attention = nn.ModuleDict({"self": _SelfAttention(size), "output": _Output(size.channels, size.channels)})
        self.intermediate = nn.ModuleDict({"dense": nn.Linear(size.channels, size.num_hidden)})
        self.output = _Output(size.num_hidden, size.channels)

    def forward(self, features: Tensor, is_token: Tensor) -> Tensor:
        read = self.attention["output"](self.attention["self"](features, is_token), features)
        written: Tensor = self.output(F.gelu(self.intermediate["dense"](read)), read)
        return written


class Bert(nn.Module):
    """An encoder of some size, with random weights as BERT's begin."""

    def __init__(self, size: BertSize) -> None:
        super().__init__()
        self.embeddings = Embeddings(size)
        self.encoder = nn.ModuleDict({"layer": nn.ModuleList(Layer(size) for _ in range(size.num_layers))})
        for module in self.modules():
            if isinstance(module, nn.Linear | nn.Embedding):
                nn.init.normal_(module.weight, std=SPREAD)
            if isinstance(module, nn.Linear):
                nn.init.zeros_(module.bias)


def builder_of(size: BertSize) -> partial[Bert]:
    """The function that builds an encoder of this size."""
    return partial(Bert, size)


def split(model: nn.Module) -> list[nn.Module]:
    """The stages: the embeddings, then each layer."""
    layers = model.get_submodule("encoder.layer")
    assert isinstance(layers, nn.ModuleList)
    return in_stages(model.get_submodule("embeddings"), list(layers))
