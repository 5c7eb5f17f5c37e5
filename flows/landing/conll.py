"""The layout of tagged texts: `.conll` files, a word and its tag a line, sentences parted by empty lines."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path, PurePosixPath

from flows.errors import AskedWrongly
from flows.landing.entries import TAGS, Entry, TextFile
from flows.landing.given_splits import by_file_name
from flows.landing.tables import composed
from flows.landing.texts import ENDING as TEXT_ENDING
from flows.landing.texts import fault_of_tags, numbered_name
from flows.manifest import TEXTS
from heads.data.text_preprocess import compose
from heads.errors import TextError
from heads.tasks.bio import write_cell

ENDING = ".conll"
# A line of its own that parts the documents of CoNLL's files.
DOCUMENT = "-DOCSTART-"
# The numbers of a file's lines, and the lines.
Lines = list[tuple[int, str]]


def sentence_entries(root: Path, files: Sequence[PurePosixPath]) -> list[Entry]:
    """An entry for every sentence of the `.conll` files, whose split is that of the file's name or of its folder's.

    A sentence is kept as a text, a space between words, in a file named after its md5, its repetitions numbered. Raises
    AskedWrongly on a file that is no text in UTF-8, and if only some of the names say a split.
    """
    tagged = [file for file in files if file.suffix.lower() == ENDING]
    splits = by_file_name(root, tagged)
    seen: Counter[str] = Counter()
    return [
        _entry(f"{file} line {sentence[0][0]}", sentence, splits[file], seen)
        for file in tagged
        for sentence in _sentences(_read(root, file))
    ]


def _read(root: Path, file: PurePosixPath) -> str:
    try:
        return (root / file).read_bytes().decode("utf-8-sig").replace("\r\n", "\n").replace("\r", "\n")
    except UnicodeDecodeError as error:
        raise AskedWrongly(
            f"{file} is no text in UTF-8 ({error.reason} at byte {error.start}); save it as UTF-8. Nothing was changed"
        ) from None
    except OSError as error:
        raise AskedWrongly(f"{file} cannot be read ({error.strerror}); nothing was changed") from None


def _sentences(text: str) -> Iterator[Lines]:
    sentence: Lines = []
    for number, line in enumerate((*text.split("\n"), ""), 1):
        if line.strip() and not line.lstrip().startswith(DOCUMENT):
            sentence.append((number, line))
        elif sentence:
            yield sentence
            sentence = []


def _entry(name: str, sentence: Lines, split: str | None, seen: Counter[str]) -> Entry:
    # Of several columns, as CoNLL's own files have, the first is the word and the last its tag.
    rows = [(number, _columns(line)) for number, line in sentence]
    lacking = next((number for number, row in rows if len(row) < 2 or not row[0].strip() or not row[-1].strip()), None)
    fault, cell, content = None, None, b""
    if lacking is not None:
        fault = f"its line {lacking} has no word and tag with a tab or a space between"
    else:
        words, tags = zip(*((row[0].strip(), composed(row[-1].strip())) for _, row in rows), strict=True)
        try:
            text, cell = compose(" ".join(words)), write_cell(tags)
            fault, content = fault_of_tags(text, cell), text.encode()
        except (TextError, UnicodeEncodeError) as error:
            fault = str(error).removeprefix("text: ") if isinstance(error, TextError) else "is no text in UTF-8"
    file = name if fault else numbered_name(content, seen)
    return Entry(TextFile(f"{TEXTS}{file}{'' if fault else TEXT_ENDING}", content), {TAGS: cell}, {}, split, None, fault)


def _columns(line: str) -> list[str]:
    """The columns of a line: what tabs part, where an empty one is a column too, or, in a line without tabs, what spaces part."""
    return line.split("\t") if "\t" in line else [column for column in line.split(" ") if column]
