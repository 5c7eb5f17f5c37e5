"""The cells of a Parquet column as text; columns of a type without a plain text are refused."""

from __future__ import annotations

from collections.abc import Callable
from decimal import Decimal
from math import isfinite
from typing import TYPE_CHECKING, Any

from flows.errors import AskedWrongly

if TYPE_CHECKING:
    import pyarrow

ALLOWED = "text, whole numbers, numbers, true and false, and lists of text, which are sets of labels"


def texts_of(name: str, column: pyarrow.ChunkedArray) -> list[str]:
    """The cells of a column as text: '' for a missing one, `a|b` for a list of text, bytes decoded as UTF-8.

    Whole numbers are written without a point, even if gaps in the column made them floats. Raises AskedWrongly, naming the
    column, on another type, on bytes that are not UTF-8, and on a list with a gap or a `|` in it.
    """
    import pyarrow

    kind = column.type
    if pyarrow.types.is_dictionary(kind):
        kind = kind.value_type
    read = _reader(kind)
    if read is None:
        raise AskedWrongly(
            f"the column {name!r} holds {column.type}; allowed: {ALLOWED}. Write it as one of these, or leave the column out"
        )
    try:
        cells = column.to_pylist()
        if pyarrow.types.is_floating(kind) or pyarrow.types.is_decimal(kind):
            return _numbers(cells)
        return ["" if cell is None else read(cell) for cell in cells]
    except UnicodeDecodeError as error:
        raise AskedWrongly(f"the column {name!r} holds bytes that are no text in UTF-8 ({error}); write it as text") from None
    except ValueError as error:
        raise AskedWrongly(f"the column {name!r} holds {error}") from None


def _reader(kind: pyarrow.DataType) -> Callable[[Any], str] | None:
    """The function that turns cells of a type into text, None for a type without one."""
    from pyarrow import types

    if types.is_list(kind) or types.is_large_list(kind) or types.is_fixed_size_list(kind):
        item = kind.value_type.value_type if types.is_dictionary(kind.value_type) else kind.value_type
        return _labels if _is_text(item) or _is_bytes(item) else None
    if _is_bytes(kind):
        return bytes.decode
    if _is_text(kind) or any(
        of(kind) for of in (types.is_integer, types.is_boolean, types.is_floating, types.is_decimal, types.is_null)
    ):
        return str
    return None


def _is_text(kind: pyarrow.DataType) -> bool:
    from pyarrow import types

    return bool(types.is_string(kind) or types.is_large_string(kind) or types.is_string_view(kind))


def _is_bytes(kind: pyarrow.DataType) -> bool:
    from pyarrow import types

    checks = (types.is_binary, types.is_large_binary, types.is_fixed_size_binary, types.is_binary_view)
    return any(check(kind) for check in checks)


def _labels(cell: list[str | bytes | None]) -> str:
    """A list of labels as one cell `a|b`; an empty list is `|`, since '' is a missing label."""
    labels = [label.decode() if isinstance(label, bytes) else label for label in cell]
    for label in labels:
        if label is None or not label.strip():
            raise ValueError(f"the list {cell}, which has a gap; leave out what is empty")
        if "|" in label:
            raise ValueError(f"the label {label!r} in a list; '|' parts labels and cannot be in one")
    return "|".join(str(label) for label in labels) or "|"


def _numbers(cells: list[float | Decimal | None]) -> list[str]:
    # A missing number may be NaN, the only one that does not equal itself.
    numbers = [None if cell is None or cell != cell else cell for cell in cells]
    # Tools whose integers cannot be missing (pandas) write such columns as floats.
    whole = all(cell is None or (isfinite(cell) and cell == int(cell)) for cell in numbers)
    return ["" if cell is None else str(int(cell) if whole else cell) for cell in numbers]
