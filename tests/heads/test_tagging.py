"""Tags of words through `heads`: spans, chains, words and their pieces, training, distributed measures, bundles and programs."""

from __future__ import annotations

import itertools
import re
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from heads import bundle
from heads.bundle.program import export_program
from heads.catalogue import HEAD_DESIGNS, TEXT_BACKBONES
from heads.data.inputs import Inputs
from heads.data.labels import MISSING_LABEL
from heads.data.loading import Loaders, SampleLoader
from heads.data.modalities import preparation_of, preprocess_of
from heads.data.text_dataset import TextDataset
from heads.data.wordpiece import Vocabulary, split_words
from heads.errors import BundleError, TextError
from heads.features import FeatureStore
from heads.model.model import Model, build_backbone, build_model
from heads.phases import Phase
from heads.spec import Fit, Head, Variant
from heads.tasks import tagging
from heads.tasks.answers import TagsPrediction
from heads.tasks.bio import find_fault, read_cell, spans_of, tag_names, write_cell
from heads.tasks.chains import best_tags, chain_losses
from heads.tasks.taggers import FORBIDDEN, ChainTagger, Tagger
from heads.training.loop import train
from heads.training.metrics import MetricAccumulator
from heads.training.state import TrainingOutcome
from heads.trunks.extraction import ExtractionRequest, count_missing, extract
from heads.trunks.stored import FeatureLoader, open_views
from heads.trunks.trunk import stored_taps, trunk_of
from tests.heads.encoders import SIZE, WORDS, write_encoder
from tests.heads.evaluating import measure
from tests.heads.two_ranks import be_a_rank, digest_of, run_two_ranks

CPU, NAMES = torch.device("cpu"), tag_names(["colour", "thing"])
CLASSES = {"tags": NAMES, "kind": ("short", "long")}
NUM_TRAIN, NUM_VAL = 48, 24
NETWORKS = [SIZE.name, *TEXT_BACKBONES[1:]]


def reference_spans(tags: list[str]) -> set[tuple[str, int, int]]:
    """The spans of tags by the rules of conlleval, word by word: what ends before a word, and what begins with it."""
    found, open_type, start = set(), None, 0
    for number, tag in enumerate([*tags, "O"]):
        prefix, _, name = tag.partition("-")
        if open_type is not None and (prefix in ("O", "B") or name != open_type):
            found.add((open_type, start, number))
            open_type = None
        if open_type is None and prefix != "O":
            open_type, start = name, number
    return found


def random_tags(random: np.random.Generator, num_sentences: int, most: int = 9) -> list[list[str]]:
    """Sentences of random tags, most of them with an I that goes on with nothing."""
    return [[NAMES[number] for number in random.integers(0, len(NAMES), random.integers(1, most))] for _ in range(num_sentences)]


def numbers_of(tags: list[list[str]]) -> list[Tensor]:
    return [torch.tensor([NAMES.index(tag) for tag in of_one]) for of_one in tags]


def padded(rows: list[Tensor]) -> Tensor:
    return torch.nn.utils.rnn.pad_sequence(rows, batch_first=True, padding_value=MISSING_LABEL)


def logits_for(guesses: Tensor) -> Tensor:
    """Logits whose likeliest tags are these."""
    return F.one_hot(guesses.clamp(min=0), len(NAMES)).transpose(1, 2).float()


def test_spans_and_their_f1_are_those_of_conlleval() -> None:
    random = np.random.default_rng(0)
    truths, guesses = random_tags(random, 400), []
    for tags in truths:
        assert {tuple(span) for span in spans_of(tags)} == reference_spans(tags)
        guesses.append([tag if random.random() < 0.7 else NAMES[random.integers(0, len(NAMES))] for tag in tags])
    labels, told = padded(numbers_of(truths)), padded(numbers_of(guesses))
    found = tagging.measures(tagging.count(logits_for(told), labels, torch.ones(len(labels))), None)
    true = {(place, *span) for place, tags in enumerate(truths) for span in reference_spans(tags)}
    answered = {(place, *span) for place, tags in enumerate(guesses) for span in reference_spans(tags)}
    hits = len(true & answered)
    assert found["span_precision"] == hits / len(answered)
    assert found["span_recall"] == hits / len(true)
    assert found["span_f1"] == pytest.approx(2 * hits / (len(true) + len(answered)), abs=1e-15)
    pairs = [pair for both in zip(truths, guesses, strict=True) for pair in zip(*both, strict=True)]
    assert found["token_accuracy"] == sum(one == other for one, other in pairs) / len(pairs)


def test_measures_are_exact_with_padding_unlabelled_sentences_and_samples_of_weight_nothing() -> None:
    random = np.random.default_rng(1)
    truths, guesses = (numbers_of(random_tags(random, 40)) for _ in range(2))
    guesses = [F.pad(guess, (0, 9))[: len(truth)] for truth, guess in zip(truths, guesses, strict=True)]
    whole = tagging.count(logits_for(padded(guesses)), padded(truths), torch.ones(40))
    alone = [tagging.count(logits_for(g[None]), t[None], torch.ones(1)) for t, g in zip(truths, guesses, strict=True)]
    assert torch.equal(whole, torch.stack(alone).sum(dim=0))
    # In batches of different lengths, with sentences that fill up and such without tags, as ranks have them.
    measured = MetricAccumulator({"tags": "tagging"})
    for start in range(0, 40, 7):
        part, told = truths[start : start + 7], guesses[start : start + 7]
        nothing = torch.full_like(part[0], MISSING_LABEL)
        batch, weights = [*part, part[0], nothing], torch.tensor([1.0] * len(part) + [0.0, 1.0])
        measured.add({"tags": logits_for(padded([*told, told[0], told[0]]))}, {"tags": padded(batch)}, weights)
    total = measured.totals()["tags"]
    assert torch.equal(total.counts, whole)
    assert total.num_labels == 40
    assert sum(map(sum, total.confusion or [])) == sum(map(len, truths))


def chain_of(num_words: int, seed: int = 0) -> Tensor:
    """The scores of a chain (1, C, W, C), by a head with random transitions, at features of so many words."""
    torch.manual_seed(seed)
    head = ChainTagger(3, len(NAMES), [torch.nn.Linear(3, len(NAMES))])
    torch.nn.init.normal_(head.transitions)
    torch.nn.init.normal_(head.starts)
    scores: Tensor = head(torch.randn(1, num_words, 3))
    return scores.detach()


@pytest.mark.parametrize("num_words", [1, 2, 4])
def test_a_chains_loss_and_best_tags_are_those_of_all_paths(num_words: int) -> None:
    scores, paths = chain_of(num_words), list(itertools.product(range(len(NAMES)), repeat=num_words))
    values = torch.tensor(
        [sum(float(scores[0, tag, place, path[place - 1] if place else 0]) for place, tag in enumerate(path)) for path in paths]
    )
    known = torch.ones(1, num_words, dtype=torch.bool)
    assert best_tags(scores, known)[0].tolist() == list(paths[int(values.argmax())])
    legal = [place for place, path in enumerate(paths) if find_fault([NAMES[tag] for tag in path]) is None]
    assert int(values.argmax()) in legal
    for place in (legal[0], legal[-1], legal[len(legal) // 2]):
        loss = chain_losses(scores, torch.tensor([paths[place]]), known)
        torch.testing.assert_close(loss[0], values.logsumexp(dim=0) - values[place], atol=1e-4, rtol=1e-5)
    forbidden = [place for place in range(len(paths)) if place not in legal]
    assert values[forbidden].max() < FORBIDDEN / 2 < values[legal].min()


def test_padding_changes_neither_the_loss_nor_the_tags_of_a_chain() -> None:
    short, long = chain_of(3, seed=1), chain_of(7, seed=2)
    labels = [torch.tensor([0, 1, 2]), torch.tensor([3, 4, 4, 0, 1, 0, 3])]
    both = torch.cat([torch.cat([short, torch.randn(1, len(NAMES), 4, len(NAMES))], dim=2), long])
    together = tagging.PLAIN.losses(both, padded(labels))
    alone = torch.cat([tagging.PLAIN.losses(one, row[None]) for one, row in zip((short, long), labels, strict=True)])
    torch.testing.assert_close(together, alone)
    known = padded(labels) != MISSING_LABEL
    assert torch.equal(best_tags(both, known)[0, :3], best_tags(short, known[:1, :3])[0])
    assert float(tagging.PLAIN.losses(short, torch.full((1, 3), MISSING_LABEL))) == 0.0


def test_a_chain_without_transitions_is_cross_entropy_but_for_what_the_scheme_forbids() -> None:
    torch.manual_seed(0)
    each = torch.randn(2, 3, 5)  # of one type
    labels = torch.tensor([[0, 1, 2, 0, 0], [1, 2, 2, -1, -1]])
    plain = tagging.PLAIN.losses(each[..., None].expand(-1, -1, -1, 3), labels)
    torch.testing.assert_close(plain, tagging.PLAIN.losses(each, labels))


@pytest.mark.parametrize(
    ("tags", "words"),
    [
        (["O", "I-a"], "its tag 2, 'I-a', goes on with a span of 'a' that the tag before it, 'O', is not in"),
        (["B-b", "I-a"], "'I-a', goes on with a span of 'a' that the tag before it, 'B-b', is not in; write .* as 'B-a'"),
        (["S-a"], "its tag 1 is 'S-a'; allowed: O, B-<type> and I-<type>"),
        (["B-"], "its tag 1 is 'B-'"),
        (["NOUN"], "its tag 1 is 'NOUN'"),
        (["o"], "its tag 1 is 'o'"),
    ],
)
def test_tags_that_are_no_bio_are_told(tags: list[str], words: str) -> None:
    assert re.search(words, find_fault(tags) or "")
    assert find_fault(["B-a", "I-a", "B-a", "O", "B-b"]) is None


def test_a_words_place_is_that_of_its_first_piece() -> None:
    vocabulary = Vocabulary(WORDS)
    text = "a cars \u200b house, red!"
    tokens = [vocabulary.tokens[number] for number in vocabulary.encode(text, 64)]
    assert tokens == ["[CLS]", "a", "car", "##s", "house", "[UNK]", "red", "!", "[SEP]"]
    assert split_words(text) == ("a", "cars", "\u200b", "house,", "red!")
    assert vocabulary.word_places(text, 64) == [1, 2, -1, 4, 6]
    assert vocabulary.encode(text, 6) == [*vocabulary.encode(text, 64)[:5], 3]
    assert vocabulary.word_places(text, 6) == [1, 2, -1, 4, -1], "a word that is cut off has no place"
    assert vocabulary.word_places("cars cars", 4) == [1, -1]


@pytest.fixture(scope="module")
def encoder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_encoder(tmp_path_factory.mktemp("encoder"))


@pytest.fixture(scope="module")
def sentences() -> list[tuple[str, str]]:
    return make_sentences()


def make_sentences() -> list[tuple[str, str]]:
    """Texts and cells of tags: colours are spans of one word, things of one or two; each text is another one."""
    random, made = np.random.default_rng(0), dict[str, str]()
    parts = [("a", "O"), ("red", "B-colour"), ("blue", "B-colour"), ("cars", "B-thing"), ("tree house", "B-thing I-thing")]
    while len(made) < NUM_TRAIN + NUM_VAL:
        words, tags = zip(*(parts[number] for number in random.integers(0, len(parts), random.integers(1, 6))), strict=True)
        made.setdefault(" ".join(words), write_cell(" ".join(tags).split()))
    return list(made.items())


def variant_of(backbone: str, freeze: str = "none", design: str = "linear", **fit: Any) -> Variant:
    settings = {"epochs": 6, "learning_rate": 0.01, "max_tokens": 24, "batch_size": 16} | fit
    heads = (Head(target="tags", task="tagging", design=design),)
    return Variant(backbone=backbone, heads=heads, freeze=freeze, fit=Fit(**settings))


def sets_of(sentences: list[tuple[str, str]], variant: Variant, weights: Path | None) -> tuple[TextDataset, TextDataset]:
    preparation, made = preparation_of(variant.backbone), []
    files = [text.encode() for text, _ in sentences]
    vocabulary = preparation.vocabulary_of(variant, weights, files[:NUM_TRAIN])
    for part, varied in ((slice(NUM_TRAIN), True), (slice(NUM_TRAIN, None), False)):
        tags = tagging.encode([cell for _, cell in sentences[part]], NAMES, lambda _: None)  # type: ignore[arg-type, return-value]
        labels = {"kind": torch.tensor([int(len(text.split()) > 4) for text, _ in sentences[part]])}
        asked = {head.target for head in variant.heads}
        digests = [f"{place:032x}" for place in range(len(sentences))][part]
        made.append(
            preparation.open_samples(
                variant,
                files[part],
                {target: column for target, column in labels.items() if target in asked},
                {},
                digests,
                varied=varied,
                cache_bytes=0,
                vocabulary=vocabulary,
                tags={"tags": tags},
            )
        )
    return made[0], made[1]  # type: ignore[return-value]


def run(
    variant: Variant, sets: tuple[TextDataset, TextDataset], weights: Path | None, stored: Any = None
) -> tuple[TrainingOutcome, Model]:
    model = build_model(variant, CLASSES, weights)
    return train(model, variant, *sets, device=CPU, on_epoch=lambda *_: None, stored=stored), model


def weights_of(backbone: str, encoder: Path) -> Path | None:
    return encoder if backbone == SIZE.name else None


# The head that asks most of a network on each, and every head on one.
LEARNERS = [*((backbone, "crf") for backbone in NETWORKS), ("textcnn", "linear"), ("textcnn", "mlp")]


@pytest.mark.parametrize(("backbone", "design"), LEARNERS)
def test_every_network_learns_tags_with_every_head(
    backbone: str, design: str, encoder: Path, sentences: list[tuple[str, str]]
) -> None:
    weights = weights_of(backbone, encoder)
    of_bert = backbone == SIZE.name
    variant = variant_of(backbone, design=design, epochs=20 if of_bert else 8, learning_rate=0.02 if of_bert else 0.01)
    outcome, _ = run(variant, sets_of(sentences, variant, weights), weights)
    assert outcome.metrics["val/tags/span_f1"] > 0.9, outcome.metrics


def test_a_batch_has_tags_and_places_of_its_own_length(encoder: Path, sentences: list[tuple[str, str]]) -> None:
    variant = variant_of(SIZE.name)
    _, val = sets_of(sentences, variant, encoder)
    for batch in SampleLoader(val, 5, CPU):
        assert batch.inputs.words is not None
        assert batch.inputs.words.shape == batch.labels["tags"].shape
        assert ((batch.labels["tags"] == MISSING_LABEL) <= (batch.inputs.words == 0)).all()
    assert torch.equal(val.labels_in_view(torch.arange(5), 0)["tags"], next(iter(SampleLoader(val, 5, CPU))).labels["tags"])
    counts, num = val.occurrences("tags")
    assert num == NUM_VAL
    assert counts.tolist() == [sum(read_cell(cell).count(name) for _, cell in sentences[NUM_TRAIN:]) for name in NAMES]


@pytest.mark.parametrize("design", HEAD_DESIGNS["tagging"])
def test_a_bundle_answers_alone_and_in_a_batch_and_its_program_with_any_length(
    design: str, encoder: Path, sentences: list[tuple[str, str]], tmp_path: Path
) -> None:
    variant = variant_of(SIZE.name, design=design, epochs=1)
    sets = sets_of(sentences, variant, encoder)
    _, model = run(variant, sets, encoder)
    if design == "crf":
        torch.nn.init.normal_(model.get_parameter("heads.head0.transitions"))
    bundle.save(
        tmp_path / "bundle",
        model=model,
        variant=variant,
        classes={"tags": NAMES},
        preprocess=preprocess_of(variant),
        facts={},
        vocabulary=sets[0].vocabulary,
    )
    loaded = bundle.load(tmp_path / "bundle")
    texts = ["red", *(text for text, _ in sentences[:6]), "a " * 60 + "tree house", "tree house " * 20_000]
    answers = [answer["tags"] for answer in loaded.predict(texts)]
    assert answers == [loaded.predict([text])[0]["tags"] for text in texts]
    for text, answer in zip(texts, answers, strict=True):
        assert isinstance(answer, TagsPrediction)
        assert answer.words == tuple(text.split())
        assert len(answer.tags) == len(answer.words)
        assert [(one.type, one.start, one.end) for one in answer.spans] == [tuple(one) for one in spans_of(answer.tags)]
        assert all(one.text == " ".join(answer.words[one.start : one.end]) for one in answer.spans)
        assert design != "crf" or find_fault(answer.tags) is None
    assert set(answers[-1].tags[24:]) == {"O"}, "words behind the last that is read"  # type: ignore[union-attr]
    program = export_program(loaded)
    ids = [torch.tensor(sets[0].vocabulary.encode(text, 24)) for text in texts[:4]]
    batch = torch.nn.utils.rnn.pad_sequence(ids, batch_first=True)
    sizes = torch.export.Dim.AUTO
    with torch.no_grad():
        exported = torch.export.export(program, (batch,), dynamic_shapes=({0: sizes, 1: sizes},)).module()
        told = exported(batch)
        assert told.shape == (4, len(NAMES), batch.shape[1])
        for row, own in zip(told, ids, strict=True):
            torch.testing.assert_close(row[:, : len(own)], exported(own[None])[0], atol=1e-5, rtol=1e-4)
        tagger = loaded.model.heads["head0"]
        assert isinstance(tagger, Tagger)
        tokens = loaded.model.forward_backbone(Inputs(batch).features)
        torch.testing.assert_close(told, tagger.each(next(iter(tokens.values()))[:, 1:]).softmax(dim=1), atol=1e-5, rtol=1e-4)


# Of 8 tokens three words are read, whatever comes behind them; a word of left out letters is never read.
CUT = ("cars cars cars cars tree house", "tags: B-thing B-thing O B-colour B-thing I-thing")
OTHERWISE = (CUT[0], "tags: B-thing B-thing O O O B-thing")
WHOLE = ("cars cars cars", "tags: B-thing B-thing O")
HOLED = ("red \u200b house", "tags: B-thing I-thing I-thing")
LONG = ("red " * 12, write_cell(["B-colour", "I-colour", "O"] * 4))


@pytest.mark.parametrize("design", HEAD_DESIGNS["tagging"])
def test_nothing_is_learned_of_words_that_are_not_read(design: str, encoder: Path, sentences: list[tuple[str, str]]) -> None:
    variant = variant_of(SIZE.name, design=design, max_tokens=8)
    model, losses, gradients = build_model(variant, CLASSES, encoder).eval(), [], []
    if design == "crf":
        torch.nn.init.normal_(model.get_parameter("heads.head0.transitions"))
    for one in (WHOLE, CUT, OTHERWISE, HOLED, LONG):
        # Beside a text with more words that are read.
        val = sets_of([*sentences[:NUM_TRAIN], one, LONG], variant, encoder)[1]
        (batch,) = SampleLoader(val, 2, CPU)
        losses.append(tagging.PLAIN.losses(model(batch.inputs)["tags"], batch.labels["tags"])[0])
        gradients.append(torch.autograd.grad(losses[-1], list(model.heads["head0"].parameters())[-1])[0])
    torch.testing.assert_close(losses[1:3], [losses[0]] * 2)
    torch.testing.assert_close(gradients[1:3], [gradients[0]] * 2)
    assert max(losses) < 10, "a span may go on behind a word that is not read"


@pytest.mark.parametrize("design", HEAD_DESIGNS["tagging"])
def test_words_that_are_not_read_are_outside_and_their_spans_missed_in_validation_as_on_the_holdout(
    design: str, encoder: Path, sentences: list[tuple[str, str]]
) -> None:
    variant = variant_of(SIZE.name, design=design, max_tokens=8)
    model, told = build_model(variant, CLASSES, encoder), [CUT, WHOLE, HOLED, LONG, *sentences[:6]]
    with torch.no_grad():
        list(model.heads["head0"].parameters())[-1][3] = 50.0  # B-thing, wherever it is looked
    val = sets_of([*sentences[:NUM_TRAIN], *told], variant, encoder)[1]
    served = bundle.Bundle(model, variant, CLASSES, preprocess_of(variant), {}, vocabulary=val.vocabulary)
    answers = [answer["tags"] for answer in served.predict([text for text, _ in told])]
    numbers_read = [{0, 1, 2}, {0, 1, 2}, {0, 2}, set(range(6))]
    for answer, read in zip(answers, numbers_read, strict=False):
        assert isinstance(answer, TagsPrediction)
        assert answer.tags == tuple("B-thing" if number in read else "O" for number in range(len(answer.words)))
    rows = []
    for answer, (_, cell) in zip(answers, told, strict=True):
        assert isinstance(answer, TagsPrediction)
        rows.append(tagging.judge("d", answer, cell, variant.heads[0], lambda: np.zeros(0)))
    # One batch of all, and several of other lengths.
    for size in (len(told), 3):
        measured = measure(model, SampleLoader(val, size, CPU), "fp32")["tags"]
        assert sum(map(sum, measured.confusion or [])) == sum(len(read_cell(cell)) for _, cell in told)
        on_holdout = tagging.measure_rows(rows, NAMES, None)
        assert {**on_holdout, **measured.measures} == pytest.approx(on_holdout | {"loss": measured.measures["loss"]})


def test_a_bundle_whose_tags_are_in_no_order_is_refused(encoder: Path, sentences: list[tuple[str, str]], tmp_path: Path) -> None:
    variant = variant_of(SIZE.name)
    model = build_model(variant, CLASSES, encoder)
    wrong = ("O", "I-colour", "B-colour", "B-thing", "I-thing")
    vocabulary = sets_of(sentences, variant, encoder)[0].vocabulary
    told = {"variant": variant, "preprocess": preprocess_of(variant), "facts": {}, "vocabulary": vocabulary}
    bundle.save(tmp_path / "bundle", model=model, classes={"tags": wrong}, **told)  # type: ignore[arg-type]
    with pytest.raises(BundleError, match="are not O, then B-<type> and I-<type> of each type"):
        bundle.load(tmp_path / "bundle")


def test_tags_and_classes_of_one_text_are_learned_together(
    encoder: Path, sentences: list[tuple[str, str]], tmp_path: Path
) -> None:
    heads = (Head(target="tags", task="tagging", design="crf"), Head(target="kind"))
    variant = variant_of("lstm", epochs=8).model_copy(update={"heads": heads})
    sets = sets_of(sentences, variant, None)
    outcome, model = run(variant, sets, None)
    assert outcome.metrics["val/tags/span_f1"] > 0.9
    assert outcome.metrics["val/kind/accuracy"] > 0.8
    program = export_program(bundle.Bundle(model, variant, CLASSES, preprocess_of(variant), {}, vocabulary=sets[0].vocabulary))
    told = program(torch.tensor([sets[0].vocabulary.encode("red cars", 24)]))
    assert told.shape == (1, len(NAMES) + 2, 4)
    assert torch.equal(told[:, -2:, 0], told[:, -2:, 3])


def test_what_does_not_fit_tags_is_refused() -> None:
    with pytest.raises(ValueError, match="'tags' holds tags of a text's words, and resnet18 reads images"):
        Variant(backbone="resnet18", heads=(Head(target="tags", task="tagging"),))
    with pytest.raises(ValueError, match=r"word_dropout 0.1 leaves out words whose tags 'tags' asks for; use token_masking"):
        variant_of("lstm", word_dropout=0.1)
    with pytest.raises(ValueError, match="head design 'fcn' is unknown for tagging; allowed: linear, mlp, crf"):
        variant_of("lstm", design="fcn")


def test_a_text_with_another_number_of_words_is_refused(encoder: Path) -> None:
    variant = variant_of(SIZE.name)
    train_set, _ = sets_of([("red cars", "tags: O")] * (NUM_TRAIN + 1), variant, encoder)
    with pytest.raises(TextError, match="a text of 2 words has 1 tags of 'tags'; give each word one"):
        train_set[0]
    long = ("red " * 5_000, write_cell(["B-colour"] * 5_000))
    train_set, _ = sets_of([long] * (NUM_TRAIN + 1), variant, encoder)
    words = train_set.words([0])
    assert words is not None
    assert words.shape == (1, variant.fit.max_tokens), "of a long text no more words than tokens fill a batch"
    assert train_set[0][1]["tags"].shape == (5_000,), "but all of them are measured"


def test_a_sentence_with_an_unknown_type_has_no_tags() -> None:
    found = tagging.encode(["tags: O B-else", None, "tags: B-thing"], NAMES, lambda _: None)  # type: ignore[arg-type, return-value]
    assert [row if row is None else row.tolist() for row in found.rows] == [None, None, [3]]
    assert found.known().tolist() == [MISSING_LABEL, MISSING_LABEL, 0]


def stored_loaders(
    variant: Variant, sets: tuple[TextDataset, TextDataset], store: FeatureStore, weights: Path, forwarded: int
) -> dict[Phase, Loaders]:
    """What the variant's phases read from the store, which is filled for it by forwarding so many samples."""
    trunk, stages = trunk_of(variant, "w", CPU), build_backbone(variant, weights).eval().requires_grad_(False)
    chosen = stored_taps(variant)
    requests = [ExtractionRequest(each, 0, frozenset(tap for taps in chosen.values() for tap in taps)) for each in sets]
    told: list[int] = []
    run_on = partial(extract, lambda: stages, trunk, requests, store, device=CPU, precision="fp32")
    assert run_on(on_stored=told.append) == sum(told) == forwarded
    assert run_on() == 0
    made = {}
    for phase, taps in chosen.items():
        train_view, val_view = (
            open_views(store, [trunk], taps, each.digests, CPU, shuffled=True, length=each.length) for each in sets
        )
        fit = variant.fit
        made[phase] = Loaders(
            FeatureLoader(sets[0], train_view, taps, fit.batch_size, CPU, training=True),
            FeatureLoader(sets[1], val_view, taps, fit.batch_size, CPU),
        )
    return made


@pytest.mark.parametrize("freeze", ["all", "upto:layer1", "lp_ft"])
def test_tokens_of_a_frozen_trunk_are_stored_once_and_train_to_the_same(
    freeze: str, encoder: Path, sentences: list[tuple[str, str]], tmp_path: Path
) -> None:
    # Of some sentences the last words are not read.
    variant, store = variant_of(SIZE.name, freeze, "crf", epochs=3, max_tokens=8), FeatureStore(tmp_path / "store")
    sets = sets_of(sentences, variant, encoder)
    stored = stored_loaders(variant, sets, store, encoder, NUM_TRAIN + NUM_VAL)
    (of_samples, one), (of_store, other) = (run(variant, sets, encoder, loaders) for loaders in (None, stored))
    assert of_store.metrics["val/tags/loss"] == pytest.approx(of_samples.metrics["val/tags/loss"], abs=1e-4)
    for name, weights in one.named_parameters():
        torch.testing.assert_close(other.get_parameter(name), weights, atol=1e-3, rtol=1e-2)
    (status,) = store.status()
    assert status.num_samples == NUM_TRAIN + NUM_VAL
    more = [*sentences, ("green cars", "tags: B-colour B-thing")]
    assert count_missing(store, trunk_of(variant, "w", CPU), next(iter(stored_taps(variant).values())), ["f" * 32], 0) == 1
    stored_loaders(variant, sets_of(more, variant, encoder), store, encoder, 1)


def test_tokens_of_two_data_sets_are_stored_by_one_pass_also_if_the_second_one_is_larger(
    encoder: Path, sentences: list[tuple[str, str]], tmp_path: Path
) -> None:
    variant = variant_of(SIZE.name, "all", epochs=1)
    larger, smaller = sets_of(sentences, variant, encoder)
    assert len(smaller) < len(larger)
    stored_loaders(variant, (smaller, larger), FeatureStore(tmp_path / "store"), encoder, NUM_TRAIN + NUM_VAL)


def test_two_cuts_of_one_trunk_are_stored_beside_each_other(
    encoder: Path, sentences: list[tuple[str, str]], tmp_path: Path
) -> None:
    store, variants = FeatureStore(tmp_path / "store"), [variant_of(SIZE.name, freeze) for freeze in ("all", "upto:layer1")]
    sets = sets_of(sentences, variants[0], encoder)
    taps = frozenset(tap for variant in variants for tap in next(iter(stored_taps(variant).values())))
    stages, trunk = build_backbone(variants[0], encoder).eval(), trunk_of(variants[0], "w", CPU)
    extract(lambda: stages, trunk, [ExtractionRequest(sets[1], 0, taps)], store, device=CPU, precision="fp32")
    with torch.no_grad():
        for tap in sorted(taps):
            (view,) = open_views(store, [trunk], [tap], sets[1].digests, CPU, shuffled=False, length=sets[1].length)
            rows = view[torch.tensor([3, 0])][tap.name]
            ids = sets[1].collate([sets[1][3][0], sets[1][0][0]]).features
            assert isinstance(ids, Tensor)
            is_token = (rows != 0).any(dim=-1)
            assert is_token.sum() == (ids != 0).sum() + 2 * (tap.stage == len(stages) - 1)
            torch.testing.assert_close(rows[is_token], stages[: tap.stage + 1](ids)[is_token], atol=1e-4, rtol=1e-3)


def test_going_on_after_an_epoch_gives_the_bits_of_an_uninterrupted_training(
    sentences: list[tuple[str, str]], tmp_path: Path
) -> None:
    variant = variant_of("gru", design="crf", epochs=3, token_masking=0.1)
    sets = sets_of(sentences, variant, None)
    found = []
    for resume in (None, tmp_path / "0"):
        model = build_model(variant, CLASSES, None)
        train(model, variant, *sets, device=CPU, on_epoch=lambda epoch, save: save(tmp_path / f"{epoch.index}"), resume=resume)
        found.append(model.state_dict())
    assert all(torch.equal(found[0][name], found[1][name]) for name in found[0])


# Without dropout two ranks compute what one does, to rounding: the encoder is frozen, and a CRF learns on its tokens. Their
# shares of a batch have other lengths, and of 7 sentences one share is filled up.
ALONE_OR_TWO = [("all", "crf", {"batch_size": 14}), ("all", "linear", {"batch_size": 7, "accumulate": 2, "loss": "focal"})]


def train_tags(encoder: Path) -> dict[str, Any]:
    """What a process measures and trains, by itself or as one of two, which must be equal on both."""
    found: dict[str, Any] = {}
    for freeze, design, fit in ALONE_OR_TWO:
        variant = variant_of(SIZE.name, freeze, design, epochs=3, **fit)
        sets = sets_of(make_sentences(), variant, encoder)
        untrained = measure(build_model(variant, CLASSES, encoder), SampleLoader(sets[1], 5, CPU), "fp32")["tags"]
        outcome, model = run(variant, sets, encoder)
        found[design] = {
            "counts": [untrained.num_labels, untrained.confusion],
            "epochs": [epoch.metrics for epoch in outcome.epochs],
            "confusion": outcome.confusion,
            "digest": digest_of(model),
            "num_forwarded": outcome.num_forwarded,
        }
    return found


def test_two_processes_measure_and_train_tags_as_one_does(encoder: Path, tmp_path: Path) -> None:
    torch.set_num_threads(1)
    together, alone = run_two_ranks(__file__, encoder, tmp_path), train_tags(encoder)
    for design, one in alone.items():
        two = together[design]
        assert two["counts"] == one["counts"]
        assert two["num_forwarded"] == one["num_forwarded"]
        assert two["epochs"] == [pytest.approx(metrics, rel=1e-3) for metrics in one["epochs"]]
        assert one["epochs"][-1]["train/loss"] < one["epochs"][0]["train/loss"]
        assert two["confusion"] == one["confusion"]


if __name__ == "__main__":
    be_a_rank(train_tags)
