"""A plan's YAML as values, and what the file says at each place: YAML 1.1 takes some words and numbers for others."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import yaml

# Octal and base-60 numbers of YAML 1.1, which reads 010 as 8 and 1:30 as 90.
_UNCLEAR = re.compile(r"^[-+]?(?:0[0-7_]+|[0-9][0-9_]*(?::[0-5]?[0-9])+(?:\.[0-9_]*)?)$")
_UNCLEAR_TAG = "!unclear"


@dataclass(frozen=True)
class Unclear:
    """A number that YAML 1.1 reads as another one than people do; `text` is what the file says."""

    text: str

    def __repr__(self) -> str:
        return self.text

    @property
    def reason(self) -> str:
        """Why it is not taken, and what to write instead."""
        if ":" in self.text:
            return "YAML reads a number with colons to the base of 60; write it in decimal digits"
        plain = self.text.replace("_", "").lstrip("+-0") or "0"
        return f"YAML reads a number with a leading 0 as octal; write {'-' * self.text.startswith('-')}{plain}"


@dataclass(frozen=True)
class Document:
    """A YAML file's content, and the tree of what it says."""

    content: object
    _root: yaml.Node | None

    def text(self, keys: Sequence[int | str]) -> str | None:
        """What the file says at a place, letter by letter; None if that is no single word, or the place is not there."""
        node = self._root
        for key in keys:
            node = _below(node, key)
        return node.value if isinstance(node, yaml.ScalarNode) else None


def _below(node: yaml.Node | None, key: int | str) -> yaml.Node | None:
    if isinstance(node, yaml.SequenceNode) and isinstance(key, int):
        return node.value[key] if key < len(node.value) else None
    if isinstance(node, yaml.MappingNode):
        return next((value for name, value in node.value if isinstance(name, yaml.ScalarNode) and name.value == str(key)), None)
    return None


class _Loader(yaml.SafeLoader):
    """YAML in which a key that stands twice is an error, as the first of the two would be lost in silence."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen: set[str] = set()
        for key, _ in node.value:
            if isinstance(key, yaml.ScalarNode) and key.value in seen:
                raise yaml.MarkedYAMLError(problem=f"the key {key.value!r} stands twice", problem_mark=key.start_mark)
            if isinstance(key, yaml.ScalarNode):
                seen.add(key.value)
        return super().construct_mapping(node, deep)


# First in line, since the first rule that fits decides, and to YAML an octal number is an integer like others.
_Loader.yaml_implicit_resolvers = {
    first: [*([(_UNCLEAR_TAG, _UNCLEAR)] if first in {*"-+0123456789"} else []), *rules]
    for first, rules in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
_Loader.add_constructor(_UNCLEAR_TAG, lambda _, node: Unclear(node.value))


def read_yaml(text: str) -> Document:
    """The document of a YAML text. Raises yaml.YAMLError where it is none."""
    loader = _Loader(text)
    try:
        root = loader.get_single_node()
        return Document(None if root is None else loader.construct_document(root), root)
    finally:
        loader.dispose()
