"""How much each token counts in an answer: the head's own attention, or gradient times input."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

from heads import bundle
from heads.bundle.token_weights import weigh_tokens
from heads.data.modalities import preparation_of, preprocess_of
from heads.model.model import build_model
from heads.spec import Fit, Head, Variant
from tests.heads.encoders import SIZE, write_encoder

TEXT = "a red house, blue cars!"
CLASSES = {"colour": ["red", "blue"]}


def bundle_of(folder: Path, backbone: str, **settings: str) -> bundle.Bundle:
    fit = Fit(max_tokens=16, pooling="attention") if settings.get("pooling") else Fit(max_tokens=16)
    head = Head(target="colour", design=settings.get("design", "linear"))
    variant = Variant(backbone=backbone, heads=(head,), freeze="none", fit=fit)
    weights = write_encoder(folder / "encoder") if backbone == SIZE.name else None
    vocabulary = preparation_of(backbone).vocabulary_of(variant, weights, [TEXT.encode()])
    model = build_model(variant, CLASSES, weights).eval()
    torch.manual_seed(0)
    for parameter in model.heads.parameters():
        nn.init.normal_(parameter)
    made = {"model": model, "variant": variant, "classes": CLASSES, "preprocess": preprocess_of(variant), "facts": {}}
    return bundle.load(bundle.save(folder / "bundle", **made, vocabulary=vocabulary))  # type: ignore[arg-type]


@pytest.mark.parametrize("settings", [{"design": "attention"}, {"design": "mlp", "pooling": "attention"}], ids=str)
def test_a_head_with_attention_is_asked_for_its_weights(tmp_path: Path, settings: dict[str, str]) -> None:
    made = bundle_of(tmp_path, SIZE.name, **settings)
    found = weigh_tokens(made, TEXT, "colour")
    assert found.how == "attention"
    assert [token.text for token in found.tokens] == ["a", "red", "house", "[UNK]", "blue", "car", "s", "!"]
    assert [token.text for token in found.tokens if token.continues] == ["s"]
    assert made.vocabulary
    ids = torch.tensor([made.vocabulary.encode(TEXT, 16)])
    with torch.inference_mode():
        tokens = made.model.backbone(ids)[0, 1:]
        query = made.model.heads["head0"].get_parameter("0.query")
        scores = torch.stack([nn.functional.layer_norm(row, row.shape) @ query for row in tokens]) / len(query) ** 0.5
        shares = scores.exp()[1:-1]
    wanted = (shares / shares.max()).tolist()
    assert [token.weight for token in found.tokens] == pytest.approx(wanted, rel=1e-4)


@pytest.mark.parametrize("backbone", [SIZE.name, "lstm-2x24", "textcnn"])
def test_another_is_weighed_by_how_its_answer_changes_as_an_embedding_grows(tmp_path: Path, backbone: str) -> None:
    made = bundle_of(tmp_path, backbone)
    found = weigh_tokens(made, TEXT, "colour")
    assert found.how == "gradient x input"
    assert made.vocabulary
    model, ids = made.model.double(), torch.tensor([made.vocabulary.encode(TEXT, 16)])

    def winner(place: int, factor: float) -> torch.Tensor:
        with torch.inference_mode():
            features = model.backbone[0](ids).double().clone()
            features[0, place, :-1] *= factor
            for part in list(model.backbone)[1:]:
                features = part(features)
            return model.heads["head0"](features)[0, best]

    with torch.inference_mode():
        best = int(model.heads["head0"](model.backbone(ids))[0].argmax())
    step = 1e-4
    changes = [float(winner(place, 1 + step) - winner(place, 1 - step)) / (2 * step) for place in range(1, ids.shape[1] - 1)]
    most = max(map(abs, changes))
    assert [token.weight for token in found.tokens] == pytest.approx([change / most for change in changes], abs=1e-3)
