"""Reading a plan from a YAML file or a mapping; errors say what to write instead."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel, ValidationError

from flows.errors import AskedWrongly
from flows.plan.allowed import suggestion
from flows.plan.fit import FitGrid
from flows.plan.form import Plan, Target, WorkersSpec
from flows.plan.named_weights import WEIGHTS, WORDS
from flows.plan.plan_text import Document, Unclear, read_yaml
from flows.plan.promotion import Guards, Promotion
from flows.plan.rare_settings import Rare

_PARTS: Mapping[str, type[BaseModel]] = {
    "fit": FitGrid,
    "rare": Rare,
    "workers": WorkersSpec,
    "promotion": Promotion,
    "guards": Guards,
    "targets": Target,
}
_EXAMPLE = "flows/plans/ holds examples"

# pydantic's type of an error -> our words, filled from its context.
_WORDS: Mapping[str, str] = {
    "int_type": "should be a whole number",
    "int_parsing": "should be a whole number",
    "int_from_float": "should be a whole number",
    "float_type": "should be a number",
    "float_parsing": "should be a number",
    "finite_number": "should be a finite number",
    "string_type": "should be text",
    "tuple_type": "should be a list",
    "model_type": "should be a mapping of keys to values",
    "greater_than": "should be greater than {gt:g}",
    "greater_than_equal": "should be at least {ge:g}",
    "less_than": "should be less than {lt:g}",
    "less_than_equal": "should be at most {le:g}",
    "literal_error": "should be {expected}",
    "too_short": "should hold at least one value",
    "string_too_short": "should not be empty",
    "string_too_long": "should have at most {max_length} characters",
}


def read_plan(path: Path) -> Plan:
    """The plan of a YAML file; a relative weights file is looked for in the current directory, then in the plan's folder.

    Raises AskedWrongly on a missing plan or weights file, on wrong YAML (with line and column) and on a wrong plan.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise AskedWrongly(f"there is no plan {str(path)!r}; give the path of a YAML file ({_EXAMPLE})") from None
    except (OSError, UnicodeDecodeError) as error:
        raise AskedWrongly(f"plan {str(path)!r} cannot be read: {error}; give the path of a YAML file ({_EXAMPLE})") from None
    document = _load(text, path)
    plan = parse_plan(document.content, source=f"plan {str(path)!r}", document=document)
    return plan.model_copy(update={"weights": _all_located(plan.weights, path.parent)})


def parse_plan(mapping: object, *, source: str = "the plan", document: Document | None = None) -> Plan:
    """The plan of a mapping, from YAML or a form. Raises AskedWrongly that names every wrong field and what is allowed.

    If the `document` is given that the mapping comes from, messages quote words and numbers as the file has them.
    """
    if not isinstance(mapping, Mapping):
        raise AskedWrongly(f"{source}: a mapping of keys to values is expected, got {_shown(mapping)}; {_EXAMPLE}")
    try:
        return Plan.model_validate(dict(mapping))
    except ValidationError as error:
        wrong = list(dict.fromkeys(_complaints(error, mapping, document)))
    raise AskedWrongly(f"{source}: {wrong[0]}" if len(wrong) == 1 else "\n  - ".join([f"{source}:", *wrong]))


def _load(text: str, path: Path) -> Document:
    try:
        return read_yaml(text)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        where = f", line {mark.line + 1}, column {mark.column + 1}" if mark else ""
        what = "; ".join(part for part in (error.context, error.problem) if part)
        raise AskedWrongly(f"plan {str(path)!r} is not valid YAML{where}: {what}") from None
    except yaml.YAMLError as error:
        raise AskedWrongly(f"plan {str(path)!r} is not valid YAML: {error}") from None


def _all_located(weights: str | dict[str, str], folder: Path) -> str | dict[str, str]:
    if isinstance(weights, str):
        return _located(weights, folder)
    return {backbone: _located(named, folder) for backbone, named in weights.items()}


def _located(weights: str, folder: Path) -> str:
    if weights in WORDS or "://" in weights:
        return weights
    path = Path(weights).expanduser()
    places = [place.absolute() for place in dict.fromkeys((path, folder / path))]
    file = next((place for place in places if place.is_file() or (place / "config.json").is_file()), None)
    if file is None:
        looked = " and ".join(
            dict.fromkeys(f"{place} ({'a folder without config.json' if place.is_dir() else 'not there'})" for place in places)
        )
        raise AskedWrongly(f"weights: there is no file {weights!r}: {looked}; allowed: {WEIGHTS}")
    return str(file)


def _complaints(error: ValidationError, data: Mapping[Any, Any], document: Document | None) -> Iterator[str]:
    for one in error.errors(include_url=False):
        keys, arms, value = _walk(one["loc"], data, missing=one["type"] == "missing")
        # Pydantic reports a value that may be a number or a list as wrong for both: keep the error for the kind given.
        if any(arm.startswith("tuple[") != isinstance(value, list | tuple) for arm in arms[:1]):
            continue
        # Likewise of weights, which are a word or a mapping.
        if any((arm == "str" or arm.startswith("dict[")) and (arm == "str") == isinstance(value, Mapping) for arm in arms[:1]):
            continue
        # Pydantic also reports a list whose items are wrong as too short.
        if one["type"] == "too_short" and value:
            continue
        where = ".".join(str(key) for key in keys)
        text = document.text(keys) if document else None
        words = _words(one["type"], one.get("ctx", {}), one["msg"], _Given(one["input"], text), keys)
        yield f"{where}: {words}" if where else words


def _walk(loc: tuple[int | str, ...], data: Any, *, missing: bool) -> tuple[list[int | str], list[str], Any]:
    """Parts of pydantic's `loc`: the keys in the person's data, the names of union arms, and the value before the first arm."""
    keys: list[int | str] = []
    arms: list[str] = []
    value = data
    for i, part in enumerate(loc):
        here = value if not arms else None
        if isinstance(part, int):
            keys.append(part)
            value = here[part] if isinstance(here, list | tuple) and part < len(here) else value
        elif isinstance(here, Mapping) and part in here:
            keys.append(part)
            value = here[part]
        elif missing and i == len(loc) - 1:
            keys.append(part)
        else:
            arms.append(part)
    return keys, arms, value


@dataclass(frozen=True)
class _Given:
    """A value that was refused, and its text in the file, None if that is more than one word."""

    value: object
    text: str | None

    def shown(self, *, as_written: bool) -> str:
        """The value for a message; `as_written` shows the file's text, as booleans, dates and unclear numbers always do."""
        if self.text and (as_written or isinstance(self.value, bool | date | Unclear)) and not isinstance(self.value, str):
            return self.text
        return _shown(self.value)


def _words(kind: str, context: Mapping[str, Any], message: str, given: _Given, keys: list[int | str]) -> str:
    model = next((_PARTS[str(key)] for key in reversed(keys[:-1]) if key in _PARTS), Plan)
    last = str(keys[-1]) if keys else ""
    if kind == "extra_forbidden":
        allowed = [name for name in model.model_fields if name != "rare"]  # `rare` is for the form only
        return f"unknown key {last!r}; {suggestion(last, allowed)}allowed: {', '.join(allowed)}"
    if kind == "missing":
        field = model.model_fields.get(last)
        return f"missing; {field.description if field and field.description else 'give a value'}"
    if kind == "string_pattern_mismatch":
        return f"{_shown(given.value)} is not a name; allowed: letters, digits, '-' and '_', the first one a letter or a digit"
    if "error" in context:
        return str(context["error"])
    wanted = _WORDS[kind].format(**context) if kind in _WORDS else message[:1].lower() + message[1:]
    if kind == "string_type":
        scalar = isinstance(given.value, bool | int | float | date | Unclear) or (given.value is None and given.text)
        hint = f" (put it in quotes: '{given.text or given.value}')" if scalar else ""
        return f"{wanted}, got {given.shown(as_written=True)}{hint}"
    if isinstance(given.value, Unclear):
        return f"{wanted}, got {given.value}: {given.value.reason}"
    return f"{wanted}, got {given.shown(as_written=False)}"


def _shown(value: object) -> str:
    if value is None:
        return "nothing"
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:77]}..."
