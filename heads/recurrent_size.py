"""The size of a recurrent network, part of its backbone's name if it is not the usual one: `lstm-2x256`. No torch here."""

from __future__ import annotations

import re
from dataclasses import dataclass

RECURRENT = ("lstm", "gru", "rnn")
MAX_LAYERS, MAX_WIDTH = 8, 4096
_NAME = re.compile(rf"({'|'.join(RECURRENT)})(?:-(\d+)x(\d+)(-forward)?)?")


@dataclass(frozen=True)
class RecurrentSize:
    """How many layers a network of such cells has, how many channels a direction, and whether it also reads backwards."""

    cell: str
    num_layers: int = 1
    width: int = 128
    bidirectional: bool = True

    @property
    def name(self) -> str:
        """The backbone's name: the cell, then `-`layers`x`width and `-forward` unless all is as usual."""
        if self == RecurrentSize(self.cell):
            return self.cell
        return f"{self.cell}-{self.num_layers}x{self.width}{'' if self.bidirectional else '-forward'}"

    @property
    def channels(self) -> int:
        """The channels after each layer, of both directions together."""
        return self.width * (2 if self.bidirectional else 1)

    @property
    def stages(self) -> tuple[str, ...]:
        """The names of the backbone's stages, front to back."""
        return ("embeddings", *(f"layer{number}" for number in range(1, self.num_layers + 1)))


def parse_recurrent_size(name: str) -> RecurrentSize | None:
    """The size that a backbone's name states, None if it is not the name of a recurrent network."""
    found = _NAME.fullmatch(name)
    if not found:
        return None
    size = RecurrentSize(found[1])
    if found[2]:
        size = RecurrentSize(found[1], int(found[2]), int(found[3]), not found[4])
    is_possible = 1 <= size.num_layers <= MAX_LAYERS and 1 <= size.width <= MAX_WIDTH
    return size if size.name == name and is_possible else None
