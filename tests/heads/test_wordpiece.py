"""Our WordPiece gives the ids of the library `tokenizers`, on real texts and odd ones."""

from __future__ import annotations

import csv
import json
import random
import unicodedata
from pathlib import Path
from typing import Any

import pytest

from heads.backbones import sized
from heads.backbones.text_weights import read_vocabulary_text
from heads.data.wordpiece import SPECIAL, Vocabulary, learn_vocabulary, parse_vocabulary
from heads.errors import HeadsError, WeightsError
from tests.heads.encoders import SIZE, WORDS, write_encoder

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


def with_words_in_json(folder: Path, **changes: Any) -> Path:
    """An encoder with its words in a tokenizer.json alone, as the library writes it, changed at places like `model__type`."""
    write_encoder(folder)
    (folder / "vocab.txt").unlink()
    model = tokenizers.models.WordPiece({word: number for number, word in enumerate(WORDS)}, unk_token="[UNK]")
    library = tokenizers.Tokenizer(model)
    library.normalizer = tokenizers.normalizers.BertNormalizer()
    library.pre_tokenizer = tokenizers.pre_tokenizers.BertPreTokenizer()
    library.add_special_tokens(list(SPECIAL))
    content = json.loads(library.to_str())
    for place, value in changes.items():
        part, _, name = place.partition("__")
        if name:
            content[part][name] = value
        else:
            content[part] = value
    (folder / "tokenizer.json").write_text(json.dumps(content))
    return folder


@needs_encoder
def test_words_are_the_same_from_either_file(tmp_path: Path) -> None:
    for name in ("config.json", "model.safetensors", "tokenizer.json"):
        (tmp_path / name).symlink_to(ENCODER / name)
    assert read_vocabulary_text(tmp_path) == read_vocabulary_text(ENCODER) == (ENCODER / "vocab.txt").read_text()
    assert sized("bert", tmp_path) == sized("bert", ENCODER)


@pytest.mark.parametrize("lowercase", [True, False])
def test_words_in_a_tokenizer_json_are_read_with_their_case_as_the_library_does(lowercase: bool, tmp_path: Path) -> None:
    folder = with_words_in_json(tmp_path, normalizer__lowercase=lowercase)
    library = tokenizers.Tokenizer.from_file(str(folder / "tokenizer.json"))
    assert sized("bert", folder) == SIZE.name + ("" if lowercase else "-cased")
    vocabulary = parse_vocabulary(read_vocabulary_text(folder), lowercase=lowercase)
    text = "A réd house, Blue cars! red"
    assert vocabulary.encode(text, 64)[1:-1] == library.encode(text, add_special_tokens=False).ids
    assert vocabulary.tokens == WORDS


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        (
            {"model__type": "BPE"},
            r"in tokenizer.json, model.type is 'BPE', which is not read; allowed: 'WordPiece'; give the weights",
        ),
        ({"model__continuing_subword_prefix": "@@"}, r"model.continuing_subword_prefix is '@@'"),
        ({"model__vocab": {"[PAD]": 0, "red": 2}}, r"the ids in model.vocab are not 0 to 1, each once"),
        ({"model__vocab": [["red", -1.5]]}, r"model.vocab is no object of tokens"),
        ({"model__vocab": {"a\nb": 0}}, r"the token 'a\\nb' in model.vocab ends a line"),
        ({"normalizer": None}, r"normalizer.type is None, which is not read; allowed: 'BertNormalizer'"),
        ({"normalizer__strip_accents": False}, r"strip_accents is False, .*; allowed: None, or True as normalizer.lowercase is"),
        ({"normalizer__handle_chinese_chars": False}, r"normalizer.handle_chinese_chars is False"),
        ({"pre_tokenizer": {"type": "Whitespace"}}, r"pre_tokenizer.type is 'Whitespace', .*; allowed: 'BertPreTokenizer'"),
        ({"added_tokens": [{"id": 14, "content": "<user>"}]}, r"added_tokens is '<user>', which is not read; allowed: \[PAD\], "),
    ],
)
def test_a_tokenizer_json_that_is_not_read_as_bert_does_is_refused(changes: dict[str, Any], words: str, tmp_path: Path) -> None:
    with pytest.raises(WeightsError, match=words):
        sized("bert", with_words_in_json(tmp_path, **changes))


def test_a_tokenizer_json_of_another_case_than_its_settings_is_refused(tmp_path: Path) -> None:
    folder = with_words_in_json(tmp_path)
    (folder / "tokenizer_config.json").write_text(json.dumps({"do_lower_case": False}))
    with pytest.raises(
        WeightsError, match=r"has normalizer.lowercase True, and tokenizer_config.json do_lower_case False; write"
    ):
        sized("bert", folder)
