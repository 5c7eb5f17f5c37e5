"""A plan's YAML as values, with the file's text at each place, since YAML 1.1 reads some words and numbers as others."""

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
    """A number that YAML 1.1 reads differently than people do; `text` is how the file writes it."""

    text: str

    def __repr__(self) -> str:
        return self.text

    @property
    def reason(self) -> str:
        """Why the number is refused, and what to write instead."""
        if ":" in self.text:
            return "YAML reads a number with colons to the base of 60; write it in decimal digits"
        plain = self.text.replace("_", "").lstrip("+-0") or "0"
        return f"YAML reads a number with a leading 0 as octal; write {'-' * self.text.startswith('-')}{plain}"


@dataclass(frozen=True)
class Document:
    """A YAML file's content, and the tree of its nodes, which keep the text."""

    content: object
    _root: yaml.Node | None

    def text(self, keys: Sequence[int | str]) -> str | None:
        """The file's text at the place of these keys; None if that is no single word, or there is no such place."""
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
    """A YAML loader that refuses a key that stands twice, since the first of the two would be lost in silence."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen: set[str] = set()
        for key, _ in node.value:
            if isinstance(key, yaml.ScalarNode) and key.value in seen:
                raise yaml.MarkedYAMLError(problem=f"the key {key.value!r} stands twice", problem_mark=key.start_mark)
            if isinstance(key, yaml.ScalarNode):
                seen.add(key.value)
        return super().construct_mapping(node, deep)


# Before YAML's own rules: the first that fits decides, and one of them takes octal numbers as integers.
_Loader.yaml_implicit_resolvers = {
    first: [*([(_UNCLEAR_TAG, _UNCLEAR)] if first in {*"-+0123456789"} else []), *rules]
    for first, rules in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
_Loader.add_constructor(_UNCLEAR_TAG, lambda _, node: Unclear(node.value))


def read_yaml(text: str) -> Document:
    """The document of a YAML text. Raises yaml.YAMLError if it is not valid YAML."""
    loader = _Loader(text)
    try:
        root = loader.get_single_node()
        return Document(None if root is None else loader.construct_document(root), root)
    finally:
        loader.dispose()
