"""Texts that are none, tags that are none, and weights of other encoders, as the command answers them."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from flows import dataset
from flows.settings import read_settings
from flows.stages.data import ingest
from flows.stages.preview import cost_estimate, text_lengths
from heads import bundle
from heads.data.modalities import preparation_of, preprocess_of
from heads.model.model import build_model
from heads.spec import Fit, Head, Variant
from tests.cli.conftest import Ask
from tests.heads.encoders import SIZE, write_encoder

PLAN = "name: mail\nbackbones: [bert]\nweights: {weights}\nfit: {{max_tokens: 16}}\n"
NUM_TEXTS = 40


def table(folder: Path, rows: Sequence[str], header: str = "text,kind,split") -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "labels.csv").write_text("\n".join([header, *rows]) + "\n")
    return folder


def rows(count: int = NUM_TEXTS) -> list[str]:
    return [f"a red house {n},{('pay', 'ask')[n % 2]},{('train', 'train', 'val', 'test')[n // 2 % 4]}" for n in range(count)]


def conll(folder: Path, content: str | bytes) -> Path:
    folder.mkdir(parents=True)
    (folder / "train.conll").write_bytes(content if isinstance(content, bytes) else content.encode())
    return folder


@pytest.fixture
def workspace(tmp_path: Path) -> Path:
    dataset.init_workspace(tmp_path / "mail")
    return tmp_path / "mail"


def with_images(folder: Path) -> Path:
    (folder / "images").mkdir(parents=True)
    for number in range(4):
        Image.new("RGB", (8, 8), (number, 0, 0)).save(folder / "images" / f"{number}.png")
        (folder / "images" / f"{number}.txt").write_text(f"a text {number}")
    return folder


def junk(folder: Path) -> Path:
    for number in range(4):
        (folder / "ab"[number % 2]).mkdir(parents=True, exist_ok=True)
        (folder / "ab"[number % 2] / f"{number}.txt").write_bytes(b"\x89PNG\r\n\x1a\n\0\xff" + bytes([number]))
    return folder


@pytest.mark.parametrize(
    ("made", "words"),
    [
        (lambda f: table(f, [",pay,train", " ,ask,test"]), ("2 of 2 texts are bad", "row 2.txt: is empty")),
        (junk, ("4 of 4 texts are bad", "is no text in UTF-8", "save it as UTF-8")),
        (lambda f: table(f, rows(), header="words,kind,split"), ("no column 'file' or 'text'", "`text` for texts")),
        (
            lambda f: table(with_images(f), [f"{n}.txt,some words,{'ab'[n % 2]}" for n in range(4)], header="file,text,kind"),
            ("0.txt: is a text, and `file` names images: give texts themselves in a column `text`, and no column `file`",),
        ),
        (
            lambda f: table(f, [f"{n},some words,{'ab'[n % 2]}" for n in range(4)], header="file,text,kind"),
            ("0: no such image in the source; a table of texts has a column `text` and no column `file`",),
        ),
        (
            lambda f: table(f, [f"mail/{n}.txt,{'ab'[n % 2]}" for n in range(4)], header="file,kind"),
            ("mail/0.txt: is a text, and `file` names images: give texts themselves in a column `text`",),
        ),
        (
            lambda f: conll(f, "red\tO\nhouse\tI-place\n"),
            ("1 of 1 texts are bad", "'I-place', goes on with a span of 'place' that the tag before it, 'O', is not in"),
        ),
        (lambda f: conll(f, "red\tDET\nhouse\tNOUN\n"), ("'DET'; allowed: O, B-<type> and I-<type> (BIO)",)),
        (lambda f: conll(f, b"\x89PNG\r\n\x1a\n\0\xff"), ("train.conll is no text in UTF-8", "save it as UTF-8")),
        (lambda f: conll(f, "red\tO\n\nhouse\tO\n"), ("marks no span", "tag some words as B-<type>")),
    ],
    ids=["empty", "junk", "columns", "text-files", "both", "named-texts", "no-bio", "other-tags", "junk-tags", "no-span"],
)
def test_a_source_that_holds_no_texts_or_tags_is_refused_and_nothing_changed(
    made: Any, words: tuple[str, ...], workspace: Path, tmp_path: Path, ask: Ask
) -> None:
    answer = ask(workspace, "data", "ingest", str(made(tmp_path / "source")))
    assert answer.status == 2, answer
    assert all(told in answer.err for told in words), answer.err
    assert not (workspace / "data.dvc").exists()


def test_an_empty_text_and_one_of_a_million_letters_cost_no_other(workspace: Path, tmp_path: Path, ask: Ask) -> None:
    source = table(tmp_path / "source", [*rows(), ",pay,train", f"{'very long ' * 100_000},ask,test"])
    answer = ask(workspace, "data", "ingest", str(source))
    assert (answer.status, "set aside row 42.txt: is empty" in answer.err) == (0, True), answer
    assert f"holds {NUM_TEXTS + 1} samples" in answer.err


def test_sentences_of_one_word_come_in(workspace: Path, tmp_path: Path, ask: Ask) -> None:
    source = conll(tmp_path / "source", "".join(f"word{n}\t{('O', 'B-place')[n % 2]}\n\n" for n in range(NUM_TEXTS)))
    assert ask(workspace, "data", "ingest", str(source)).status == 0
    told = ask(workspace, "data", "status", "--json").told
    assert told["samples"] == NUM_TEXTS, told


@pytest.fixture(scope="module")
def mail(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("workspace") / "mail"
    dataset.init_workspace(folder)
    ingest(read_settings(folder), str(table(folder.parent / "source", rows())))
    return folder


@pytest.mark.parametrize(
    ("config", "words"),
    [
        ({"model_type": "gpt2", "architectures": ["GPT2LMHeadModel"]}, ("is of 'gpt2' (GPT2LMHeadModel)", "allowed: model_type")),
        ({"num_hidden_layers": 3}, ("does not hold what its config.json says", "missing: encoder.layer.2")),
        ({"hidden_size": 32}, ("does not hold what its config.json says", "16")),
        ({"vocab_size": 99}, ("does not hold what its config.json says", "14")),
        ({"hidden_size": "wide"}, ("does not tell the encoder's size", "give a folder with config.json")),
    ],
    ids=["gpt2", "layers", "channels", "words", "no-size"],
)
@pytest.mark.parametrize("verb", ["plan", "retrain"])
def test_a_weights_folder_of_another_encoder_is_refused_before_anything_starts(
    verb: str, config: dict[str, Any], words: tuple[str, ...], mail: Path, tmp_path: Path, ask: Ask
) -> None:
    (tmp_path / "plan.yaml").write_text(PLAN.format(weights=write_encoder(tmp_path / "weights", **config)))
    answer = ask(mail, verb, str(tmp_path / "plan.yaml"))
    assert answer.status == 2, answer
    assert all(told in answer.err for told in words), answer.err
    assert not (mail / ".headstart" / "jobs").exists()


@pytest.mark.parametrize("verb", ["plan", "retrain"])
def test_a_weights_folder_whose_words_are_no_vocabulary_is_refused_before_anything_starts(
    verb: str, mail: Path, tmp_path: Path, ask: Ask
) -> None:
    words = write_encoder(tmp_path / "weights") / "vocab.txt"
    words.write_text(words.read_text().replace("[MASK]\n", "<mask>\n"))
    (tmp_path / "plan.yaml").write_text(PLAN.format(weights=tmp_path / "weights"))
    answer = ask(mail, verb, str(tmp_path / "plan.yaml"))
    assert answer.status == 2, answer
    assert f"weights folder {tmp_path / 'weights'}: the vocabulary lacks [MASK]; it must hold [PAD], " in answer.err
    assert not (mail / ".headstart" / "jobs").exists()


def test_a_plan_of_texts_speaks_of_texts(mail: Path, tmp_path: Path, ask: Ask) -> None:
    (tmp_path / "plan.yaml").write_text(PLAN.format(weights=write_encoder(tmp_path / "weights")) + "freeze: [none]\n")
    answer = ask(mail, "plan", str(tmp_path / "plan.yaml"))
    assert answer.status == 0, answer
    assert "From texts, not from stored features" in answer.out
    assert "image" not in answer.out
    (tmp_path / "plan.yaml").write_text(PLAN.format(weights=tmp_path / "weights"))
    answer = ask(mail, "plan", str(tmp_path / "plan.yaml"))
    assert "tokens" in answer.out, answer
    told = ask(mail, "plan", str(tmp_path / "plan.yaml"), "--no-calibrate", "--json").told
    assert [(trunk["max_tokens"], trunk["image_size_px"]) for trunk in told["trunks"]] == [(16, None)]
    assert [name.split()[1:] for name in told["estimate"]["rates"]] == [["16", "tokens"]]
    (tmp_path / "plan.yaml").write_text(PLAN.format(weights=tmp_path / "weights") + "promotion: {guards: {leaks: block}}\n")
    answer = ask(mail, "plan", str(tmp_path / "plan.yaml"))
    assert (answer.status, "guards.leaks: block has nothing to block by" in answer.err) == (2, True), answer
    # Texts are cut into tokens once, and no photograph is decoded.
    assert told["estimate"]["seconds_alone"] < 0.1


def test_a_plan_tells_how_many_texts_are_longer_than_the_network_reads(
    workspace: Path, tmp_path: Path, ask: Ask, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cost_estimate, "CALIBRATION_SECONDS", 0.01)
    # Half of them have 6 tokens with the marks of start and end, half 42.
    long = [row.replace("a red house", "a red house " * 12 + "a red a") if n % 4 < 2 else row for n, row in enumerate(rows())]
    assert ask(workspace, "data", "ingest", str(table(tmp_path / "source", long))).status == 0
    plan = tmp_path / "plan.yaml"
    plan.write_text(PLAN.format(weights=write_encoder(tmp_path / "weights")).replace("16", "[16, 42]"))
    answer = ask(workspace, "plan", str(plan))
    assert answer.status == 0, answer
    told = (
        f"20 of {NUM_TEXTS} texts have more than the 16 tokens that {SIZE.name} reads (max_tokens); 45.8% of all tokens are read"
    )
    assert told in answer.out, answer.out
    assert "than the 42" not in answer.out
    cuts = ask(workspace, "plan", str(plan), "--json").told["cut_texts"]
    counts = [(cut["max_tokens"], cut["texts"], cut["texts_counted"], cut["texts_cut"]) for cut in cuts]
    assert counts == [(16, NUM_TEXTS, NUM_TEXTS, 20), (42, NUM_TEXTS, NUM_TEXTS, 0)]
    assert [cut["tokens_read_share"] for cut in cuts] == [pytest.approx((6 + 16) / (6 + 42)), 1.0]
    monkeypatch.setattr(text_lengths, "MAX_TEXTS", 10)
    monkeypatch.setattr(text_lengths, "MAX_LETTERS", 30)
    answer = ask(workspace, "plan", str(plan))
    assert "of all tokens are read (estimated from 10 of 40 texts)" in answer.out, answer.out
    # Of what it would read nothing is known yet: its words are learned later.
    plan.write_text("name: mail\nbackbones: [textcnn]\nfit: {max_tokens: 16}\n")
    assert ask(workspace, "plan", str(plan), "--json").told["cut_texts"] == []


def test_classes_by_the_thousand_are_planned(workspace: Path, tmp_path: Path, ask: Ask) -> None:
    lines = [f"text {n} of {split},class {n},{split}" for n in range(1000) for split in ("train", "val", "test")]
    assert ask(workspace, "data", "ingest", str(table(tmp_path / "source", lines))).status == 0
    (tmp_path / "plan.yaml").write_text(PLAN.format(weights=write_encoder(tmp_path / "weights")))
    answer = ask(workspace, "plan", str(tmp_path / "plan.yaml"))
    assert answer.status == 0, answer


@pytest.fixture(scope="module")
def reader(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bundle that reads texts."""
    torch.set_num_threads(1)
    folder = tmp_path_factory.mktemp("reader")
    encoder = write_encoder(folder / "encoder")
    variant = Variant(backbone=SIZE.name, heads=(Head(target="kind"),), fit=Fit(max_tokens=16))
    classes = {"kind": ("pay", "ask")}
    made = {"model": build_model(variant, classes, encoder), "variant": variant, "classes": classes}
    vocabulary = preparation_of(SIZE.name).vocabulary_of(variant, encoder, [])
    return bundle.save(folder / "bundle", **made, preprocess=preprocess_of(variant), facts={}, vocabulary=vocabulary)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("content", "words"),
    [(b"", "is empty"), (b" \n", "is empty"), (b"\x89PNG\r\n\x1a\n\0\xff", "is no text in UTF-8"), (b"a\0b", "holds NUL bytes")],
)
def test_a_file_that_is_no_text_is_no_question(content: bytes, words: str, reader: Path, tmp_path: Path, ask: Ask) -> None:
    (tmp_path / "mail.txt").write_bytes(content)
    answer = ask(tmp_path, "predict", str(reader), "mail.txt")
    assert (answer.status, f"mail.txt: {words}" in answer.err) == (2, True), answer


def test_texts_of_any_length_are_answered_in_their_order(reader: Path, tmp_path: Path, ask: Ask) -> None:
    texts = ["a red house", f"{'very long ' * 100_000}", "blue", *(f"{'a ' * (n % 9)}car" for n in range(50))]
    words = [word for text in texts for word in ("--text", text)]
    told = ask(tmp_path, "predict", str(reader), *words, "--json").told["predictions"]
    assert [row["file"] for row in told] == texts
    loaded = bundle.load(reader)
    for text, row in zip(texts, told, strict=True):
        alone = loaded.predict([text])[0]["kind"]
        assert row["kind"]["probability"] == pytest.approx(alone.probability, abs=1e-5)  # type: ignore[union-attr]
    assert json.dumps(ask(tmp_path, "predict", str(reader), "--text", "", "--json").status) == "2"
