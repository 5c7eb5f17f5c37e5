"""The layout of tagged texts: `.conll` files, a word and its tag a line, sentences parted by empty lines."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from flows.landing.entries import TAGS, Entry, Listing, TextFile
from flows.landing.given_splits import by_file_name
from flows.landing.misnamed_files import refuse_tagged
from flows.landing.tables import composed
from flows.landing.tag_schemes import BIO, scheme_of, to_bio
from flows.landing.tagged_lines import Line, read_sentences
from flows.landing.texts import ENDING as TEXT_ENDING
from flows.landing.texts import fault_of_tags, numbered_name
from flows.manifest import TEXTS
from heads.data.text_preprocess import compose
from heads.errors import TextError
from heads.tasks.bio import write_cell

ENDING = ".conll"


@dataclass(frozen=True)
class _Sentence:
    """The words of a sentence and their tags, as they stand in a file, or what is wrong with it; `name` says where it stands."""

    name: str
    split: str | None
    words: Sequence[str] = ()
    tags: Sequence[str] = ()
    fault: str | None = None


def read_tagged(root: Path, files: Sequence[PurePosixPath]) -> Listing:
    """An entry for every sentence of the `.conll` files, whose split is that of the file's name or of its folder's.

    A sentence is kept as a text, a space between words, in a file named after its md5, its repetitions numbered; tags of
    another scheme than BIO are read as BIO, with a warning. Raises AskedWrongly on a file that is no text in UTF-8, if only some
    of the names say a split, and if the file of a split that is missing has another ending.
    """
    tagged = [file for file in files if file.suffix.lower() == ENDING]
    splits = by_file_name(root, tagged)
    sentences = [
        _sentence(f"{file} line {lines[0][0]}", splits[file], lines) for file in tagged for lines in read_sentences(root, file)
    ]
    if sentences:
        refuse_tagged(root, [file for file in files if file not in splits], {*splits.values()})
    scheme = scheme_of([sentence.tags for sentence in sentences if not sentence.fault])
    seen: Counter[str] = Counter()
    warning = f"the tags are of the scheme {scheme}, and were read as BIO, by which they mark the same spans"
    return Listing(tuple(_entry(sentence, scheme, seen) for sentence in sentences), () if scheme == BIO else (warning,))


def _sentence(name: str, split: str | None, lines: Sequence[Line]) -> _Sentence:
    # Of several columns, as CoNLL's own files have, the first is the word and the last its tag.
    rows = [(number, columns[0].strip(), columns[-1].strip() if len(columns) > 1 else "") for number, columns in lines]
    lacking = next((number for number, word, tag in rows if not word or not tag), None)
    if lacking is not None:
        return _Sentence(name, split, fault=f"its line {lacking} has no word and tag with a tab or a space between")
    return _Sentence(name, split, [word for _, word, _ in rows], [composed(tag) for _, _, tag in rows])


def _entry(sentence: _Sentence, scheme: str, seen: Counter[str]) -> Entry:
    fault, cell, content = sentence.fault, None, b""
    if not fault:
        tags, fault = to_bio(sentence.tags, scheme)
        try:
            text, cell = compose(" ".join(sentence.words)), write_cell(tags)
            fault, content = fault or fault_of_tags(text, cell), text.encode()
        except (TextError, UnicodeEncodeError) as error:
            fault = str(error).removeprefix("text: ") if isinstance(error, TextError) else "is no text in UTF-8"
    file = sentence.name if fault else f"{numbered_name(content, seen)}{TEXT_ENDING}"
    return Entry(TextFile(f"{TEXTS}{file}", content), {TAGS: cell}, {}, sentence.split, None, fault)
