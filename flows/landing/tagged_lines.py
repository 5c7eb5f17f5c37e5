"""Files of a word and its tag a line, as CoNLL's are: their sentences and columns."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path, PurePosixPath

from flows.errors import AskedWrongly
from flows.landing.tag_schemes import is_tag

# A line of its own that parts the documents of CoNLL's files.
DOCUMENT = "-DOCSTART-"
_COMMENT = "# "
_NAMED_COMMENT = re.compile(r"# \S+ = ")
# So much of a file shows whether it is one of tags.
_LOOKED_AT_BYTES = 65_536
_MIN_SHARE = 0.9
# The number of a line, and its columns.
Line = tuple[int, list[str]]


def read_sentences(root: Path, file: PurePosixPath) -> Iterator[list[Line]]:
    """The sentences of a file. Raises AskedWrongly if it cannot be read, or is no text in UTF-8."""
    try:
        text = (root / file).read_bytes().decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise AskedWrongly(
            f"{file} is no text in UTF-8 ({error.reason} at byte {error.start}); save it as UTF-8. Nothing was changed"
        ) from None
    except OSError as error:
        raise AskedWrongly(f"{file} cannot be read ({error.strerror}); nothing was changed") from None
    return _sentences(text)


def read_start(path: Path, num_bytes: int) -> bytes:
    """The first bytes of a file; none of what is no file, or cannot be read."""
    try:
        if not path.is_file():
            return b""
        with path.open("rb") as file:
            return file.read(num_bytes)
    except OSError:
        return b""


def is_tagged(path: Path) -> bool:
    """Whether a file begins, whatever its name, with a word and its tag in nearly each line."""
    start = read_start(path, _LOOKED_AT_BYTES)
    text = start.decode("utf-8-sig", "replace")
    if len(start) == _LOOKED_AT_BYTES:
        text = text.rpartition("\n")[0]
    tagged = [len(columns) > 1 and is_tag(columns[-1].strip()) for sentence in _sentences(text) for _, columns in sentence]
    return len(tagged) > 1 and sum(tagged) >= _MIN_SHARE * len(tagged)


def _sentences(text: str) -> Iterator[list[Line]]:
    lines = [*text.replace("\r\n", "\n").replace("\r", "\n").split("\n"), ""]
    sentence: list[Line] = []
    for number, line in enumerate(lines, 1):
        if not line.strip() or line.lstrip().startswith(DOCUMENT):
            if sentence:
                yield sentence
            sentence = []
        elif sentence or not _is_comment(line, lines[number]):
            sentence.append((number, _columns(line)))


def _is_comment(line: str, following: str) -> bool:
    """Whether a line where a sentence may begin is one about it, and not the word # with its tag."""
    columns = _columns(line)
    return line.startswith(_COMMENT) and (
        _NAMED_COMMENT.match(line) is not None
        or not is_tag(columns[-1].strip())
        or (bool(following.strip()) and len(_columns(following)) != len(columns))
    )


def _columns(line: str) -> list[str]:
    """The columns of a line: what tabs part, where an empty one is a column too, or, in a line without tabs, what spaces part."""
    return line.split("\t") if "\t" in line else [column for column in line.split(" ") if column]
