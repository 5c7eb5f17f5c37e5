"""The size of a BERT-like encoder, which is part of its backbone's name: `bert-6x384x12`. No torch here."""

from __future__ import annotations

import re
from dataclasses import dataclass

from heads.catalogue import BACKBONE_STAGES, MAX_BERT_LAYERS, MODALITY_OF, Modality
from heads.recurrent_size import parse_recurrent_size

USUAL_VOCABULARY, USUAL_POSITIONS, USUAL_TYPES = 30522, 512, 2
_NAME = re.compile(r"bert-(\d+)x(\d+)x(\d+)(?:-f(\d+))?(?:-v(\d+))?(?:-p(\d+))?(?:-t(\d+))?(-cased)?")
_MOST = 2**20


@dataclass(frozen=True)
class BertSize:
    """How many layers, channels and attention heads an encoder has, and the rest, which mostly is as usual.

    `num_hidden` are the channels between a layer's two linear maps; `cased` is whether capitals and accents are kept.
    """

    num_layers: int
    channels: int
    num_heads: int
    num_hidden: int
    num_tokens: int = USUAL_VOCABULARY
    num_positions: int = USUAL_POSITIONS
    num_types: int = USUAL_TYPES
    cased: bool = False

    @property
    def name(self) -> str:
        """The backbone's name: `bert-`layers`x`channels`x`heads, then what is not as usual."""
        parts = (
            *(("f", self.num_hidden, 4 * self.channels), ("v", self.num_tokens, USUAL_VOCABULARY)),
            *(("p", self.num_positions, USUAL_POSITIONS), ("t", self.num_types, USUAL_TYPES)),
        )
        rest = "".join(f"-{letter}{number}" for letter, number, usual in parts if number != usual)
        return f"bert-{self.num_layers}x{self.channels}x{self.num_heads}{rest}{'-cased' if self.cased else ''}"

    @property
    def is_possible(self) -> bool:
        """Whether there can be such an encoder, and one that fits into a machine."""
        sizes = (self.channels, self.num_heads, self.num_hidden, self.num_tokens, self.num_positions, self.num_types)
        if not (1 <= self.num_layers <= MAX_BERT_LAYERS and all(1 <= size <= _MOST for size in sizes)):
            return False
        return self.channels % self.num_heads == 0


def parse_bert_size(name: str) -> BertSize | None:
    """The size that a backbone's name states, None if it is not the name of an encoder of some size."""
    found = _NAME.fullmatch(name)
    if not found:
        return None
    layers, channels, heads = (int(text) for text in found.groups()[:3])
    hidden, tokens, positions, types = (int(text) if text else None for text in found.groups()[3:7])
    size = BertSize(
        *(layers, channels, heads, hidden or 4 * channels, tokens or USUAL_VOCABULARY, positions or USUAL_POSITIONS),
        num_types=types or USUAL_TYPES,
        cased=bool(found[8]),
    )
    return size if size.name == name and size.is_possible else None


def stages_of(backbone: str) -> tuple[str, ...]:
    """The names of a backbone's stages, front to back. Raises KeyError on a name that is none."""
    if size := parse_bert_size(backbone):
        return BACKBONE_STAGES["bert"][: size.num_layers + 1]
    recurrent = parse_recurrent_size(backbone)
    return recurrent.stages if recurrent else BACKBONE_STAGES[backbone]


def is_backbone(name: str) -> bool:
    """Whether there is such a backbone: one of the catalogue, or an encoder or a recurrent network of some size."""
    return name in BACKBONE_STAGES or _is_sized(name)


def modality_of(backbone: str) -> Modality:
    """What kind of sample a backbone reads."""
    return "text" if _is_sized(backbone) else MODALITY_OF[backbone]


def _is_sized(name: str) -> bool:
    return parse_bert_size(name) is not None or parse_recurrent_size(name) is not None
