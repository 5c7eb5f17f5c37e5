"""Another kind of sample than images goes the whole way through `heads`: plan's variant, data set, training, feature store."""

from __future__ import annotations

from pathlib import Path
from typing import Any, get_args

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from heads.backbones import imagenet_weights
from heads.catalogue import BACKBONE_STAGES, FIT_FIELDS_OF, MODALITY_OF, Modality
from heads.data.loading import Loaders, SampleLoader
from heads.data.modalities import MODALITIES, preparation_of, preprocess_of
from heads.errors import WeightsError
from heads.features import FeatureStore, Key
from heads.model.model import build_backbone, build_model
from heads.phases import Phase
from heads.spec import Fit, Head, Variant
from heads.training.loop import train
from heads.training.state import TrainingOutcome
from heads.trunks.extraction import ExtractionRequest, extract
from heads.trunks.stored import FeatureLoader, open_views
from heads.trunks.trunk import stored_taps, trunk_of
from tests.heads.vectors import BACKBONE, LENGTH, Vectors, add_vectors, digests_of, write_vectors

CPU, CLASSES = torch.device("cpu"), {"sign": ("minus", "plus")}
NUM_TRAIN, NUM_VAL = 48, 24


@pytest.fixture
def vectors(monkeypatch: pytest.MonkeyPatch) -> None:
    add_vectors(monkeypatch)


def test_every_modality_is_in_every_table() -> None:
    assert set(get_args(Modality)) == set(MODALITIES) == set(FIT_FIELDS_OF) == set(MODALITY_OF.values())
    assert set(MODALITY_OF) == set(BACKBONE_STAGES)
    for fields in FIT_FIELDS_OF.values():
        assert fields <= set(Fit.model_fields)


def variant_of(freeze: str = "none", **fit: Any) -> Variant:
    head = Head(target="sign", design="linear")
    return Variant(backbone=BACKBONE, heads=(head,), freeze=freeze, fit=Fit(epochs=8, learning_rate=0.02, **fit))


def sets_of(folder: Path, variant: Variant) -> tuple[Vectors, Vectors]:
    files = write_vectors(folder, NUM_TRAIN + NUM_VAL)
    made = []
    for part, varied in ((slice(NUM_TRAIN), True), (slice(NUM_TRAIN, None), False)):
        labels = {"sign": torch.tensor([int(file.stem) % 2 for file in files[part]])}
        preparation = preparation_of(variant.backbone)
        made.append(
            preparation.open_samples(variant, files[part], labels, {}, digests_of(files[part]), varied=varied, cache_bytes=0)
        )
    return made[0], made[1]  # type: ignore[return-value]


def run(
    variant: Variant, sets: tuple[Vectors, Vectors], stored: dict[Phase, Loaders] | None = None
) -> tuple[TrainingOutcome, Tensor]:
    """The outcome, and the first weights of the trained head."""
    model = build_model(variant, CLASSES, None)
    found = train(model, variant, *sets, device=CPU, on_epoch=lambda *_: None, stored=stored)
    return found, next(iter(model.heads.parameters())).detach().clone()


def loaders_of(variant: Variant, sets: tuple[Vectors, Vectors], store: FeatureStore) -> dict[Phase, Loaders]:
    """What the variant reads from the store, which is filled for it."""
    ((phase, taps),) = stored_taps(variant).items()
    trunk = trunk_of(variant, "none", CPU)
    stages = build_backbone(variant, None).eval().requires_grad_(False)
    wanted = [ExtractionRequest(each, 0, taps) for each in sets]
    assert extract(lambda: stages, trunk, wanted, store, device=CPU, precision="fp32") == NUM_TRAIN + NUM_VAL
    assert extract(lambda: stages, trunk, wanted, store, device=CPU, precision="fp32") == 0
    views = [open_views(store, [trunk], taps, each.digests, CPU, shuffled=False) for each in sets]
    fit = variant.fit
    train_loader = FeatureLoader(sets[0], views[0], taps, fit.batch_size, CPU, training=True)
    return {phase: Loaders(train_loader, FeatureLoader(sets[1], views[1], taps, fit.batch_size, CPU))}


@pytest.mark.usefixtures("vectors")
def test_a_variant_of_vectors_is_trained_from_its_files(tmp_path: Path) -> None:
    variant = variant_of()
    sets = sets_of(tmp_path, variant)
    found, _ = run(variant, sets)
    assert found.metrics["val/sign/accuracy"] == 1.0
    batch = next(iter(SampleLoader(sets[1], NUM_VAL, CPU)))
    assert batch.inputs.size is None
    assert isinstance(batch.inputs.features, Tensor)
    assert batch.inputs.features.shape == (NUM_VAL, LENGTH)
    assert not batch.inputs.features[:, LENGTH - 3 :][::3].any(), "shorter vectors are filled up"


@pytest.mark.usefixtures("vectors")
def test_its_frozen_trunk_goes_through_the_store_and_trains_to_the_same(tmp_path: Path) -> None:
    variant, store = variant_of("all"), FeatureStore(tmp_path / "store")
    sets = sets_of(tmp_path, variant)
    stored = loaders_of(variant, sets, store)
    rows = store.trunk(trunk_of(variant, "none", CPU).id).open([Key(d) for d in sets[1].digests], ["1:pooled"])
    stages = build_backbone(variant, None).eval()
    with torch.no_grad():
        samples = [sets[1][index][0] for index in range(NUM_VAL)]
        wanted = torch.cat([stages(F.pad(sample, (0, LENGTH - len(sample)))[None]) for sample in samples])
    torch.testing.assert_close(rows[torch.arange(NUM_VAL)]["1:pooled"], wanted, atol=1e-6, rtol=1e-5)
    # Without noise, so that an epoch of files is the stored view.
    sets[0].varied = False
    from_files, from_store = run(variant, sets), run(variant, sets, stored)
    assert from_store[0].metrics["val/sign/accuracy"] == from_files[0].metrics["val/sign/accuracy"] > 0.9
    torch.testing.assert_close(from_store[1], from_files[1], atol=1e-5, rtol=1e-4)


@pytest.mark.usefixtures("vectors")
def test_a_trunk_is_named_by_how_its_samples_are_prepared_and_varied() -> None:
    variant = variant_of("all")
    plain, varied = (trunk_of(variant, "none", CPU, varied=varied) for varied in (False, True))
    assert plain.id != varied.id
    assert plain.preprocess == preprocess_of(variant)
    assert preparation_of(BACKBONE).describe_view(varied.view) == "noise"


@pytest.mark.usefixtures("vectors")
@pytest.mark.parametrize("field", sorted(FIT_FIELDS_OF["image"]))
def test_what_is_set_for_images_is_refused_by_name(field: str) -> None:
    other = {"image_size_px": 64, "augment": "strong", "flip": True, "channels_last": False, "mixup": 0.2, "cutmix": 1.0}[field]
    with pytest.raises(
        ValueError, match=rf"fit's {field} is for images, and {BACKBONE} reads vectors; leave it out; allowed: epochs, "
    ):
        variant_of(**{field: other})


@pytest.mark.usefixtures("vectors")
def test_a_backbone_without_published_weights_says_so() -> None:
    with pytest.raises(WeightsError, match=f"no weights of {BACKBONE} are published; .* weights: none"):
        imagenet_weights(BACKBONE)
