"""Our WordPiece gives the ids of the library `tokenizers`, on real texts and odd ones."""

from __future__ import annotations

import csv
import random
import unicodedata
from pathlib import Path

import pytest

from heads.data.wordpiece import SPECIAL, Vocabulary, learn_vocabulary, parse_vocabulary
from heads.errors import HeadsError

SHARED = Path(__file__).resolve().parents[2].parent / "shared"
ENCODER = SHARED / "weights" / "minilm_l6_v2_fp16"
BANKING, WNUT = SHARED / "data" / "banking77" / "labels.csv", SHARED / "data" / "wnut17"
NUM_ODD, ODD_LENGTH = 2000, 30
tokenizers = pytest.importorskip("tokenizers", reason="the library that ours is compared with is not installed")
needs_encoder = pytest.mark.skipif(not ENCODER.is_dir(), reason="needs the encoder beside the checkout")


def is_settled(letter: str) -> bool:
    """Whether a letter is what it was in Unicode 3.2, or still nothing: of later ones, each library knows others."""
    now, then = unicodedata.category(letter), unicodedata.ucd_3_2_0.category(letter)
    return now == then and now != "Cs"


def odd_texts() -> list[str]:
    drawn = random.Random(0)
    ranges = ((1, 0x250), (0x250, 0x3000), (0x3000, 0xD800), (0xE000, 0x10000), (0x10000, 0x2FFFF), (32, 33))
    letters = [chr(drawn.randrange(*drawn.choice(ranges))) for _ in range(NUM_ODD * ODD_LENGTH * 2)]
    settled = "".join(letter for letter in letters if is_settled(letter))
    return [settled[start : start + ODD_LENGTH] for start in range(0, len(settled), ODD_LENGTH)][:NUM_ODD]


@needs_encoder
@pytest.mark.parametrize("lowercase", [True, False])
def test_ten_thousand_texts_have_the_ids_of_the_library(lowercase: bool) -> None:
    with BANKING.open(newline="") as file:
        texts = [row["text"] for row in csv.DictReader(file)][:6000]
    for table in sorted(WNUT.glob("*.conll")):
        sentences = table.read_text().split("\n\n")
        texts += [" ".join(line.split("\t")[0] for line in sentence.splitlines()) for sentence in sentences]
    texts = [*texts[: 10_000 - NUM_ODD], *odd_texts(), "", "x" * 100, "x" * 101, "Ὀδυσσεύς ΣΑΣ", "tab\tnew\nline\r\n\x0bfeed\x85"]
    library = tokenizers.Tokenizer.from_file(str(ENCODER / "tokenizer.json"))
    library.no_padding()
    library.enable_truncation(64)
    library.normalizer.lowercase = lowercase
    vocabulary = parse_vocabulary((ENCODER / "vocab.txt").read_text(), lowercase=lowercase)
    wanted = [encoding.ids for encoding in library.encode_batch(texts)]
    different = [text for text, ids in zip(texts, wanted, strict=True) if vocabulary.encode(text, 64) != ids]
    assert not different
    assert len(texts) >= 10_000


def test_a_learned_vocabulary_holds_the_most_frequent_words_and_reads_others_as_unknown() -> None:
    vocabulary = learn_vocabulary(["the Red house", "the red car", "a house"], len(SPECIAL) + 3)
    assert vocabulary.tokens == (*SPECIAL, "house", "red", "the")
    assert vocabulary.encode("The house flies", 16) == [2, 7, 5, 1, 3]
    assert vocabulary.encode("the the the the", 4) == [2, 7, 7, 3]
    assert parse_vocabulary(vocabulary.text(), lowercase=True) == vocabulary


def test_a_text_of_a_million_letters_is_read_as_far_as_it_is_asked_for() -> None:
    vocabulary = learn_vocabulary(["red"], 16)
    assert vocabulary.encode("red " * 250_000, 8) == [2, 5, 5, 5, 5, 5, 5, 3]
    assert vocabulary.encode("r" * 1_000_000, 8) == [2, 1, 3]


@pytest.mark.parametrize(
    ("tokens", "words"),
    [
        (("[PAD]", "[UNK]", "red"), r"lacks \[CLS\], \[SEP\], \[MASK\]; it must hold"),
        (("red", *SPECIAL), r"\[PAD\] is in line 2, not the first"),
        ((*SPECIAL, "red", "red"), "a token is there twice; give the weights' own vocab.txt"),
    ],
)
def test_a_list_of_words_that_is_no_vocabulary_is_refused(tokens: tuple[str, ...], words: str) -> None:
    with pytest.raises(HeadsError, match=words):
        Vocabulary(tokens)
