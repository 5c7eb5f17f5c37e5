"""Recurrent networks over words, mostly read from both ends, which learn from random weights. Padding never changes a result."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from heads.backbones.text_stages import in_stages
from heads.backbones.words import CHANNELS, DROPOUT, WordEmbeddings

if TYPE_CHECKING:
    from heads.recurrent_size import RecurrentSize

State = tuple[Tensor, ...]


@dataclass(frozen=True)
class Cell:
    """A recurrent cell: torch's layer of it, and one step of that as a function of what is given, what is carried, and its state.

    Given and carried are the layer's two linear maps, of a token's features and of the first tensor of the state, which is also
    what is read at the token.
    """

    layer: Callable[..., nn.RNNBase]
    num_states: int
    step: Callable[[Tensor, Tensor, State], State]


def _lstm(given: Tensor, carried: Tensor, state: State) -> State:
    """After Hochreiter and Schmidhuber, "Long Short-Term Memory", Neural Computation 1997."""
    enter, forget, new, leave = (given + carried).chunk(4, dim=-1)
    memory = torch.sigmoid(forget) * state[1] + torch.sigmoid(enter) * torch.tanh(new)
    return torch.sigmoid(leave) * torch.tanh(memory), memory


def _gru(given: Tensor, carried: Tensor, state: State) -> State:
    """After Cho et al., "Learning Phrase Representations using RNN Encoder-Decoder", EMNLP 2014."""
    (reset, update, new), (reset_too, update_too, kept) = given.chunk(3, dim=-1), carried.chunk(3, dim=-1)
    share = torch.sigmoid(update + update_too)
    return ((1 - share) * torch.tanh(new + torch.sigmoid(reset + reset_too) * kept) + share * state[0],)


def _rnn(given: Tensor, carried: Tensor, state: State) -> State:
    """After Elman, "Finding Structure in Time", Cognitive Science 1990."""
    return (torch.tanh(given + carried),)


CELLS: Mapping[str, Cell] = {"lstm": Cell(nn.LSTM, 2, _lstm), "gru": Cell(nn.GRU, 1, _gru), "rnn": Cell(nn.RNN, 1, _rnn)}


class Recurrent(nn.Module):
    """A recurrent layer that reads a text forwards or from both ends: features (N, L, C) to features (N, L, `size.channels`)."""

    def __init__(self, size: RecurrentSize, num_inputs: int, dropout: float) -> None:
        super().__init__()
        self.cell = CELLS[size.cell]
        self.forwards = self.cell.layer(num_inputs, size.width, batch_first=True)
        self.backwards = self.cell.layer(num_inputs, size.width, batch_first=True) if size.bidirectional else None
        self.dropout = nn.Dropout(dropout)

    def forward(self, features: Tensor, is_token: Tensor) -> Tensor:
        features = self.dropout(features)
        ahead = self._read(self.forwards, features)
        if self.backwards is None:
            return ahead
        # Padding follows a text, so reading on never meets it before the text; backwards, the text is turned within itself.
        places = torch.arange(features.shape[1], device=features.device)
        turned = torch.where(is_token, is_token.sum(dim=1, keepdim=True) - 1 - places, places)
        back = self._read(self.backwards, _in_order(features, turned))
        return torch.cat([ahead, _in_order(back, turned)], dim=-1)

    def _read(self, layer: nn.RNNBase, features: Tensor) -> Tensor:
        # torch.export takes torch's own layers as of one length, and keeps a loop as a loop.
        read: Tensor = step_by_step(self.cell, layer, features) if torch.compiler.is_exporting() else layer(features)[0]
        return read


def step_by_step(cell: Cell, layer: nn.RNNBase, features: Tensor) -> Tensor:
    """What a layer of such cells reads in features (N, L, C), (N, L, its width), by a loop over tokens without gradients."""
    of_given, of_carried, given_bias, carried_bias = (weight.detach() for weight in layer.all_weights[0])
    given = F.linear(features.detach().transpose(0, 1), of_given, given_bias)
    length = given.shape[0]  # `len` would make a number of it, and so one length for all
    read = given.new_zeros(length, given.shape[1], of_carried.shape[1])
    state = tuple(torch.zeros_like(read[0]) for _ in range(cell.num_states))

    def is_left(place: Tensor, read: Tensor, *state: Tensor) -> Tensor:
        return place < length

    def step(place: Tensor, read: Tensor, *state: Tensor) -> State:
        here = place.reshape(1)
        carried = F.linear(state[0], of_carried, carried_bias)
        state = cell.step(given.index_select(0, here)[0], carried, state)
        return place + 1, read.index_copy(0, here, state[0][None]), *state

    start = torch.zeros((), dtype=torch.int64, device=features.device)
    done: State = torch.while_loop(is_left, step, (start, read, *state))  # type: ignore[no-untyped-call]
    return done[1].transpose(0, 1)


def _in_order(features: Tensor, places: Tensor) -> Tensor:
    return features.gather(1, places[..., None].expand(-1, -1, features.shape[-1]))


class RecurrentNetwork(nn.Module):
    """Word embeddings, and recurrent layers that read them one after another, some channels dropped between two."""

    def __init__(self, size: RecurrentSize) -> None:
        super().__init__()
        self.embeddings = WordEmbeddings()
        widths = (CHANNELS, *(size.channels,) * size.num_layers)
        shares = (0.0, *(DROPOUT,) * size.num_layers)
        self.layers = nn.ModuleList(Recurrent(size, *facts) for facts in zip(widths[:-1], shares[:-1], strict=True))


def builder_of(size: RecurrentSize) -> Callable[[], nn.Module]:
    """The function that builds a network of this size."""
    return partial(RecurrentNetwork, size)


def split(model: nn.Module) -> list[nn.Module]:
    """The stages: the embeddings, then each recurrent layer."""
    assert isinstance(model, RecurrentNetwork)
    return in_stages(model.embeddings, list(model.layers))
