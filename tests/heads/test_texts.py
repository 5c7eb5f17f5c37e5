"""Texts through `heads`: encoders and networks from nothing, padding, training, the feature store, bundles and programs."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from torch import Tensor, nn

from heads import bundle
from heads.backbones import build_stages, check_weights, sized
from heads.bundle.program import export_program
from heads.catalogue import CLASS_DESIGNS, TEXT_BACKBONES
from heads.data.loading import Loaders
from heads.data.modalities import preparation_of, preprocess_of
from heads.data.text_dataset import TextDataset
from heads.data.text_preprocess import compose, decode_text
from heads.data.wordpiece import MASK
from heads.errors import BundleError, TextError, WeightsError
from heads.features import FeatureStore
from heads.fused.training import TrainingRequest, train_together
from heads.model.model import Model, build_backbone, build_model
from heads.phases import Tap
from heads.spec import Fit, Head, Variant
from heads.training.loop import train
from heads.training.state import TrainingOutcome
from heads.trunks.extraction import ExtractionRequest, extract
from heads.trunks.stored import FeatureLoader, open_views
from heads.trunks.trunk import choose_taps, stored_taps, trunk_of
from tests.heads.encoders import SIZE, write_encoder, write_texts

CPU, CLASSES = torch.device("cpu"), {"colour": ("red", "blue"), "kinds": ("house", "car")}
NUM_TRAIN, NUM_VAL = 48, 24
MINILM = Path(__file__).resolve().parents[2].parent / "shared" / "weights" / "minilm_l6_v2_fp16"
NETWORKS = [SIZE.name, *TEXT_BACKBONES[1:], "lstm-2x24", "gru-3x16-forward"]


@pytest.fixture(scope="module")
def encoder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_encoder(tmp_path_factory.mktemp("encoder"))


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    return write_texts(tmp_path_factory.mktemp("texts"), NUM_TRAIN + NUM_VAL)


def variant_of(backbone: str, freeze: str = "none", design: str = "linear", **fit: Any) -> Variant:
    head = Head(target="colour", design=design)
    settings = {"epochs": 6, "learning_rate": 0.01, "max_tokens": 16, "batch_size": 16} | fit
    return Variant(backbone=backbone, heads=(head,), freeze=freeze, fit=Fit(**settings))


def weights_of(backbone: str, encoder: Path) -> Path | None:
    return encoder if backbone == SIZE.name else None


def sets_of(files: list[Path], variant: Variant, weights: Path | None) -> tuple[TextDataset, TextDataset]:
    preparation, made = preparation_of(variant.backbone), []
    vocabulary = preparation.vocabulary_of(variant, weights, files[:NUM_TRAIN])
    for part, varied in ((slice(NUM_TRAIN), True), (slice(NUM_TRAIN, None), False)):
        labels = {"colour": torch.tensor([int(file.stem) % 2 for file in files[part]])}
        digests = [f"{int(file.stem):032x}" for file in files[part]]
        made.append(
            preparation.open_samples(
                variant, files[part], labels, {}, digests, varied=varied, cache_bytes=0, vocabulary=vocabulary
            )
        )
    return made[0], made[1]  # type: ignore[return-value]


def run(
    variant: Variant, sets: tuple[TextDataset, TextDataset], weights: Path | None, stored: Any = None
) -> tuple[TrainingOutcome, Model]:
    model = build_model(variant, CLASSES, weights)
    return train(model, variant, *sets, device=CPU, on_epoch=lambda *_: None, stored=stored), model


@pytest.mark.skipif(not MINILM.is_dir(), reason="needs the encoder beside the checkout")
def test_an_encoder_gives_what_the_library_gave_on_its_weights() -> None:
    reference = json.loads((MINILM / "reference.json").read_text())
    name = sized("bert", MINILM)
    assert name == "bert-6x384x12"
    variant = variant_of(name, max_tokens=128)
    vocabulary = preparation_of(name).vocabulary_of(variant, MINILM, [])
    assert vocabulary
    ids = [vocabulary.encode(text, 128) for text in reference["texts"]]
    assert ids == reference["token_ids"]
    with torch.inference_mode():
        batch = nn.utils.rnn.pad_sequence([torch.tensor(row) for row in ids], batch_first=True)
        pooled = build_stages(name, MINILM).eval()(batch)[:, 0, :8]
    torch.testing.assert_close(pooled, torch.tensor(reference["mean_pooled_first_8"]), atol=1e-4, rtol=0)


@pytest.mark.parametrize("pooling", ["mean", "class", "attention"])
@pytest.mark.parametrize("design", CLASS_DESIGNS)
@pytest.mark.parametrize("backbone", NETWORKS)
def test_padding_changes_no_answer(backbone: str, design: str, pooling: str, encoder: Path) -> None:
    model = build_model(variant_of(backbone, design=design, pooling=pooling), CLASSES, weights_of(backbone, encoder)).eval()
    for parameter in model.heads.parameters():
        # A query of zeros weighs all positions alike.
        nn.init.normal_(parameter)
    texts = [torch.randint(1, 14, (length,)) for length in (2, 5, 9)]
    batch = nn.utils.rnn.pad_sequence([*texts, torch.ones(16, dtype=torch.int64)], batch_first=True)
    with torch.inference_mode():
        together = model.forward_heads(model.forward_backbone(batch), None)["colour"]
        for text, row in zip(texts, together, strict=False):
            alone = model.forward_heads(model.forward_backbone(text[None]), None)["colour"][0]
            assert (row - alone).abs().max() <= 1e-5 * alone.abs().max()


@pytest.mark.parametrize("backbone", NETWORKS)
def test_every_network_of_texts_learns_a_colour(backbone: str, encoder: Path, files: list[Path]) -> None:
    rate = 0.003 if backbone == "transformer" else 0.01
    variant, weights = variant_of(backbone, epochs=12, learning_rate=rate), weights_of(backbone, encoder)
    found, _ = run(variant, sets_of(files, variant, weights), weights)
    assert found.metrics["val/colour/accuracy"] == 1.0


@pytest.mark.parametrize("freeze", ["all", "upto:embeddings", "upto:layer1", "gradual", "lp_ft", "adaptive"])
def test_every_freeze_policy_trains_an_encoder_and_keeps_what_is_frozen(freeze: str, encoder: Path, files: list[Path]) -> None:
    variant = variant_of(SIZE.name, freeze, epochs=12)
    found, model = run(variant, sets_of(files, variant, encoder), encoder)
    assert found.metrics["val/colour/accuracy"] > 0.6
    kept = build_backbone(variant, encoder)
    same = [all(map(torch.equal, one.parameters(), other.parameters())) for one, other in zip(kept, model.backbone, strict=True)]
    assert same == {"all": [True] * 3, "upto:embeddings": [True, False, False], "upto:layer1": [True, True, False]}.get(
        freeze, [False] * 3
    )


@pytest.mark.parametrize(
    ("freeze", "design", "pooling"),
    [
        ("all", "linear", "mean"),
        ("all", "linear", "class"),
        ("all", "mlp", "attention"),
        ("all", "attention", "mean"),
        ("upto:layer1", "linear", "mean"),
    ],
)
def test_a_frozen_encoder_goes_through_the_store_and_trains_to_the_same(
    freeze: str, design: str, pooling: str, encoder: Path, files: list[Path], tmp_path: Path
) -> None:
    variant, store = variant_of(SIZE.name, freeze, design=design, pooling=pooling), FeatureStore(tmp_path)
    sets = sets_of(files, variant, encoder)
    trunk, ((phase, taps),) = trunk_of(variant, "w", CPU), stored_taps(variant).items()
    stages = build_backbone(variant, encoder).eval().requires_grad_(False)
    wanted = [ExtractionRequest(each, 0, taps) for each in sets]
    assert extract(lambda: stages, trunk, wanted, store, device=CPU, precision="fp32") == NUM_TRAIN + NUM_VAL
    views = [open_views(store, [trunk], taps, each.digests, CPU, shuffled=False, length=each.length) for each in sets]
    loaders = [FeatureLoader(each, view, taps, 16, CPU, training=each is sets[0]) for each, view in zip(sets, views, strict=True)]
    from_files, from_store = run(variant, sets, encoder), run(variant, sets, encoder, {phase: Loaders(*loaders)})
    assert from_store[0].metrics["val/colour/accuracy"] == from_files[0].metrics["val/colour/accuracy"]
    for one, other in zip(from_store[1].heads.parameters(), from_files[1].heads.parameters(), strict=True):
        torch.testing.assert_close(one, other, atol=1e-5, rtol=1e-4)
    if freeze == "all":
        models = [build_model(variant, CLASSES, encoder, backbone=stages) for _ in range(2)]
        train_together([TrainingRequest(model, variant, lambda *_: None, lambda _: None) for model in models], Loaders(*loaders))
        for model in models:
            assert all(map(torch.equal, model.heads.parameters(), from_store[1].heads.parameters())), "each as alone, to the bit"


@pytest.mark.parametrize("name", ["lstm-1x128", "lstm-0x12", "lstm-9x12", "gru-2x5000", "rnn-02x12", "textcnn-2x12"])
def test_a_name_of_no_size_of_a_recurrent_network_is_no_backbone(name: str) -> None:
    with pytest.raises(ValueError, match=f"backbone '{name}' is unknown"):
        variant_of(name)


def test_layers_of_a_recurrent_network_are_stages() -> None:
    assert variant_of("lstm-3x24", "upto:layer2").stages == ("embeddings", "layer1", "layer2", "layer3")
    with pytest.raises(ValueError, match="lstm-3x24 has no stage 'layer4'; allowed: embeddings, layer1, layer2, layer3"):
        variant_of("lstm-3x24", "upto:layer4")


def test_a_recurrent_network_of_several_layers_is_torchs() -> None:
    stages = build_stages("lstm-2x24", None).eval()
    lstm = nn.LSTM(128, 24, num_layers=2, bidirectional=True, batch_first=True)
    state = {}
    for number, stage in enumerate(list(stages)[1:]):
        for suffix, way in (("", "forwards"), ("_reverse", "backwards")):
            own = stage.get_submodule(f"layer.{way}").state_dict()
            state |= {name.replace("_l0", f"_l{number}{suffix}"): weight for name, weight in own.items()}
    lstm.load_state_dict(state)
    ids = torch.randint(1, 14, (3, 9))
    with torch.inference_mode():
        words = stages[0](ids)[..., :-1]
        torch.testing.assert_close(stages(ids)[:, 1:], lstm(words)[0], atol=1e-6, rtol=1e-5)


def test_heads_of_the_mean_and_of_all_tokens_share_one_pass(encoder: Path, files: list[Path], tmp_path: Path) -> None:
    store, variants = FeatureStore(tmp_path), [variant_of(SIZE.name, "all", design) for design in ("linear", "attention")]
    (train_set, _), trunk = sets_of(files, variants[0], encoder), trunk_of(variants[0], "w", CPU)
    assert trunk_of(variants[1], "w", CPU) == trunk
    stages = build_backbone(variants[0], encoder).eval().requires_grad_(False)
    taps = [tap for variant in variants for of_phase in stored_taps(variant).values() for tap in of_phase]
    told: list[int] = []
    for num_forwarded in (NUM_TRAIN, 0):
        wanted = [ExtractionRequest(train_set, 0, taps)]
        on_stored = told.append
        assert extract(lambda: stages, trunk, wanted, store, device=CPU, precision="fp32", on_stored=on_stored) == num_forwarded
    assert sum(told) == NUM_TRAIN
    pooled, tokens = (
        open_views(store, [trunk], [tap], train_set.digests, CPU, shuffled=False, length=train_set.length)[0] for tap in taps
    )
    places = torch.arange(NUM_TRAIN)
    assert torch.equal(pooled[places][taps[0].name], tokens[places][taps[1].name][:, :1]), "the mean stands before the tokens"


def test_what_hangs_on_its_own_words_or_on_tokens_that_a_view_lacks_is_not_stored() -> None:
    (own,) = choose_taps(variant_of("textcnn", "all")).values()
    assert (own.taps, own.reason) == ((), "its words are learned from this data version alone")
    for weighing in ({"design": "attention"}, {"pooling": "attention"}):
        (tokens,) = choose_taps(variant_of(SIZE.name, "all", views=2, word_dropout=0.1, **weighing)).values()
        assert (tokens.taps, tokens.reason) == ((), "features of tokens are not stored in views that lack some of a text's")
        (tokens,) = choose_taps(variant_of(SIZE.name, "all", views=2, token_masking=0.1, **weighing)).values()
        assert tokens.taps == (Tap(2, "map"),)


def test_a_head_that_weighs_tokens_finds_the_one_that_matters(encoder: Path, files: list[Path]) -> None:
    variant = variant_of("textcnn", design="mlp", pooling="attention", epochs=12)
    found, model = run(variant, sets_of(files, variant, None), None)
    assert found.metrics["val/colour/accuracy"] == 1.0
    assert model.heads[model.head_keys["colour"]].get_parameter("0.query").abs().max() > 0.01


def test_training_texts_lose_and_hide_tokens_by_seed_epoch_and_number_alone(encoder: Path, files: list[Path]) -> None:
    variant = variant_of(SIZE.name, word_dropout=0.3, token_masking=0.3)
    (one, val), (other, _) = (sets_of(files, variant, encoder) for _ in range(2))
    hidden = one.vocabulary.ids[MASK]
    plain = [one.view(index, 0) for index in range(NUM_TRAIN)]
    seen: list[Tensor] = []
    for epoch in (0, 1):
        for each in (one, other):
            each.set_epoch(epoch)
        rows = [one[index][0] for index in range(NUM_TRAIN)]
        assert all(torch.equal(row, other[index][0]) for index, row in enumerate(rows))
        assert all(row[0] == p[0] and row[-1] == p[-1] for row, p in zip(rows, plain, strict=True))
        assert any(len(row) < len(p) for row, p in zip(rows, plain, strict=True))
        assert any((row == hidden).any() for row in rows)
        seen.append(torch.cat(rows))
    assert not torch.equal(*(row[:40] for row in seen))
    assert torch.equal(val[0][0], val.view(0, 0))


@pytest.mark.parametrize("backbone", NETWORKS)
def test_a_bundle_of_texts_answers_as_its_model_and_exports_for_any_batch_and_length(
    backbone: str, encoder: Path, files: list[Path], tmp_path: Path
) -> None:
    variant, weights = variant_of(backbone, design="attention"), weights_of(backbone, encoder)
    model = build_model(variant, CLASSES, weights)
    sets = sets_of(files, variant, weights)
    made = {"model": model, "variant": variant, "classes": {"colour": CLASSES["colour"]}, "preprocess": preprocess_of(variant)}
    folder = bundle.save(tmp_path / "bundle", **made, facts={}, vocabulary=sets[0].vocabulary)  # type: ignore[arg-type]
    assert sorted(file.name for file in folder.iterdir()) == sorted((*bundle.FILES, bundle.VOCABULARY, bundle.SUMS))
    loaded = bundle.load(folder)
    texts = [file.read_text() for file in files[:5]]
    answers = loaded.predict([*texts[:2], files[2], files[3].read_bytes(), texts[4]])
    assert answers == loaded.predict(texts)
    with pytest.warns(
        UserWarning, match=rf"texts\[1\], '{files[2]}', is a string .*; to read the file, give .* pathlib.Path"
    ) as told:
        assert loaded.predict([texts[0], *map(str, files[2:4])])[1] == loaded.predict([f"{files[2]} "])[0] != answers[2]
    assert [Path(warning.filename) for warning in told] == [Path(__file__)]
    alone = [loaded.predict([text])[0]["colour"] for text in texts]
    for answer, one in zip(answers, alone, strict=True):
        assert answer["colour"].probabilities == pytest.approx(one.probabilities, abs=1e-5)  # type: ignore[union-attr]
    program = export_program(loaded)
    dims = {0: torch.export.Dim.DYNAMIC, 1: torch.export.Dim.DYNAMIC}
    exported = torch.export.export(program, (torch.ones(2, 16, dtype=torch.int64),), dynamic_shapes=(dims,)).module()
    rows = [torch.tensor(sets[0].vocabulary.encode(text, 16)) for text in texts]
    ids = nn.utils.rnn.pad_sequence(rows, batch_first=True)
    wanted = torch.tensor([list(answer["colour"].probabilities.values()) for answer in answers])  # type: ignore[union-attr]
    torch.testing.assert_close(exported(ids).detach(), wanted, atol=1e-5, rtol=0)


def test_a_bundle_whose_words_are_changed_gone_or_too_many_is_refused(encoder: Path, files: list[Path], tmp_path: Path) -> None:
    variant = variant_of(SIZE.name)
    model, (train_set, _) = build_model(variant, CLASSES, encoder), sets_of(files, variant, encoder)
    made: dict[str, Any] = {"model": model, "variant": variant, "classes": {"colour": CLASSES["colour"]}}
    made |= {"preprocess": preprocess_of(variant), "facts": {}}
    whole = bundle.save(tmp_path / "whole", **made, vocabulary=train_set.vocabulary)
    (whole / bundle.VOCABULARY).write_text("red\n")
    with pytest.raises(BundleError, match=r"vocab.txt is not what was written"):
        bundle.load(whole)
    (whole / bundle.VOCABULARY).unlink()
    with pytest.raises(BundleError, match=r"it lacks vocab.txt; pull it again"):
        bundle.verify(whole)
    with pytest.raises(BundleError, match="at most as many tokens as its network, 14, and this has none"):
        bundle.load(bundle.save(tmp_path / "none", **made))
    many = type(train_set.vocabulary)((*train_set.vocabulary.tokens, "more"))
    with pytest.raises(BundleError, match="and this has one of 15 tokens"):
        bundle.load(bundle.save(tmp_path / "many", **made, vocabulary=many))


@pytest.mark.parametrize(
    ("config", "words"),
    [
        ({"model_type": "roberta", "architectures": ["RobertaModel"]}, r"is of 'roberta' \(RobertaModel\), which is not read"),
        ({"hidden_act": "relu"}, "has hidden_act 'relu' in config.json, which is not read; allowed: 'gelu'"),
        ({"num_attention_heads": 3}, "tells of bert-2x16x3.*, which cannot be built"),
        ({"hidden_size": None}, "does not tell the encoder's size"),
        ({"vocab_size": 3}, "vocab.txt holds 14 tokens, and config.json tells of 3"),
    ],
)
def test_weights_of_another_architecture_are_refused_with_what_they_are(
    config: dict[str, Any], words: str, tmp_path: Path
) -> None:
    with pytest.raises(WeightsError, match=words):
        sized("bert", write_encoder(tmp_path, **config))


def test_weights_that_lack_a_file_or_a_layer_or_are_a_file_are_refused(encoder: Path, tmp_path: Path) -> None:
    with pytest.raises(WeightsError, match=r"does not hold what its config.json says, bert-3x16x2.*; missing: encoder.layer.2"):
        check_weights(sized("bert", write_encoder(tmp_path / "deep", num_hidden_layers=3)), tmp_path / "deep")
    (write_encoder(tmp_path / "bare") / "vocab.txt").unlink()
    with pytest.raises(WeightsError, match=r"lacks vocab.txt or tokenizer.json; give a folder with config.json, model.safetens"):
        sized("bert", tmp_path / "bare")
    (write_encoder(tmp_path / "cut") / "model.safetensors").write_bytes(b"junk")
    with pytest.raises(WeightsError, match=r"model.safetensors could not be read"):
        check_weights(SIZE.name, tmp_path / "cut")
    with pytest.raises(WeightsError, match="is no folder, and encoders of texts have a folder of weights"):
        sized("bert", encoder / "vocab.txt")
    with pytest.raises(WeightsError, match="textcnn learns its words from the training texts, and was given weights"):
        sized("textcnn", encoder)


@pytest.mark.parametrize("prefix", ["", "bert.", "model.bert.", "0.auto_model."])
def test_parameters_are_known_by_the_names_of_old_files_and_of_other_models(prefix: str, encoder: Path, tmp_path: Path) -> None:
    folder, file = write_encoder(tmp_path), tmp_path / "model.safetensors"
    state = {prefix + name.removeprefix("bert."): tensor for name, tensor in safetensors.torch.load_file(file).items()}
    state |= {"cls.seq_relationship.bias": torch.zeros(2), "qa_outputs.bias": torch.zeros(2)}
    renamed = {
        name.replace("LayerNorm.weight", "LayerNorm.gamma").replace("LayerNorm.bias", "LayerNorm.beta"): tensor
        for name, tensor in state.items()
    }
    assert sum(name.endswith(("gamma", "beta")) for name in renamed) == 10
    safetensors.torch.save_file(renamed, file)
    check_weights(SIZE.name, folder)
    old, new = (build_stages(SIZE.name, each).state_dict() for each in (folder, encoder))
    assert old.keys() == new.keys()
    assert all(map(torch.equal, old.values(), new.values()))


@pytest.mark.parametrize("number", [float("nan"), float("-inf")])
def test_weights_with_numbers_that_are_not_finite_are_refused_by_their_name(number: float, tmp_path: Path) -> None:
    file = write_encoder(tmp_path) / "model.safetensors"
    state = safetensors.torch.load_file(file)
    # Finite, though their sum is not.
    state["bert.embeddings.word_embeddings.weight"] = torch.full((14, 16), 3e38)
    safetensors.torch.save_file(state, file)
    check_weights(SIZE.name, tmp_path)
    state["bert.encoder.layer.1.output.dense.bias"][3] = number
    safetensors.torch.save_file(state, file)
    with pytest.raises(
        WeightsError, match=r"holds numbers that are not finite in encoder.layer.1.output.dense.bias; give another"
    ):
        check_weights(SIZE.name, tmp_path)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "is empty"),
        (b" \n\t ", "is empty"),
        (b"\xff\xd8\xff\xe0", "is no text in UTF-8 .*; save it as UTF-8"),
        (b"a\0b", "holds NUL bytes"),
    ],
)
def test_what_is_no_text_is_refused(content: bytes, words: str) -> None:
    with pytest.raises(TextError, match=rf"x: {words}"):
        decode_text(content, "x")


def test_texts_that_look_alike_are_the_same() -> None:
    assert decode_text("\ufeffcafe\u0301\r\nau lait\r ".encode()) == compose("café\nau lait") == "café\nau lait"


def test_settings_of_images_are_refused_of_texts_and_the_other_way() -> None:
    with pytest.raises(ValueError, match=r"fit's mixup is for images, and textcnn reads texts; leave it out; allowed: epochs, "):
        variant_of("textcnn", mixup=0.2)
    with pytest.raises(ValueError, match=r"fit's word_dropout is for texts, and resnet18 reads images"):
        Variant(backbone="resnet18", heads=(Head(target="x"),), fit=Fit(word_dropout=0.1))
    with pytest.raises(ValueError, match=r"max_tokens 128 does not fit the places of bert-2x16x2.*; allowed: 8 to 64"):
        variant_of(SIZE.name, max_tokens=128)
    with pytest.raises(ValueError, match=r"views 2 of texts that nothing varies would all be one"):
        variant_of(SIZE.name, "all", views=2)
