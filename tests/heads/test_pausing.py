"""Variants that train together up to a pause: what they hand over, going on from it, and ending there."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import pytest
import torch
from torch import Tensor

from heads.errors import CheckpointError
from heads.features import FeatureStore
from heads.fused.training import TrainingRequest, train_together
from heads.model.model import Model, build_backbone, build_model
from heads.phases import compile_policy
from heads.spec import Variant
from heads.training.loop import conclude
from heads.training.state import Epoch, TrainingOutcome
from tests.heads.stored_training import CLASSES, KIND, datasets, distance, fill, loaders_of, pictures, run, variant_of

__all__ = ["pictures"]

NUM_PROBING = 3
# The fastest is past its best when it pauses.
RATES = (0.3, 0.001, 0.01)
VARIANTS = [variant_of(KIND, freeze="lp_ft", epochs=3 * NUM_PROBING, learning_rate=rate) for rate in RATES]
FROZEN = variant_of(KIND, epochs=5)


class Watched:
    """Members as they train: the epochs told of each, its heads after each, its ends, and the epochs that its pause gave."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.epochs: dict[Variant, list[Epoch]] = {}
        self.heads: dict[Variant, list[dict[str, Tensor]]] = {}
        self.ends: dict[Variant, object] = {}
        self.pauses: dict[Variant, list[Sequence[Epoch]]] = {}

    def checkpoint(self, variant: Variant) -> Path:
        """Where its pause saves."""
        return self.folder / f"{variant.variant_id}.pt"

    def request(
        self, variant: Variant, model: Model, num_epochs: int | None = None, resume: Path | None = None
    ) -> TrainingRequest:
        def on_epoch(epoch: Epoch, save: Callable[[Path], None]) -> None:
            self.epochs.setdefault(variant, []).append(epoch)
            heads = {name: value.detach().clone() for name, value in model.heads.state_dict().items()}
            self.heads.setdefault(variant, []).append(heads)

        def on_pause(epochs: Sequence[Epoch], save: Callable[[Path], None]) -> None:
            self.pauses.setdefault(variant, []).append(tuple(epochs))
            save(self.checkpoint(variant))

        on_end = partial(self.ends.__setitem__, variant)
        return TrainingRequest(model, variant, on_epoch, on_end, num_epochs, on_pause if num_epochs else None, resume)


@pytest.fixture(scope="module")
def store(pictures: Path, tmp_path_factory: pytest.TempPathFactory) -> FeatureStore:
    store = FeatureStore(tmp_path_factory.mktemp("store"))
    fill(FROZEN, datasets(pictures, FROZEN), store)
    return store


@pytest.fixture(scope="module")
def paused(pictures: Path, store: FeatureStore, tmp_path_factory: pytest.TempPathFactory) -> tuple[Watched, Model]:
    """Variants that pause before they fine-tune, beside one that trains to its end, and the latter's model."""
    watched, backbone = Watched(tmp_path_factory.mktemp("paused")), build_backbone(FROZEN, None)
    models = {variant: build_model(variant, CLASSES, None, backbone=backbone) for variant in (*VARIANTS, FROZEN)}
    requests = [watched.request(variant, models[variant], NUM_PROBING) for variant in VARIANTS]
    (loaders,) = loaders_of(FROZEN, datasets(pictures, FROZEN), store).values()
    train_together([*requests, watched.request(FROZEN, models[FROZEN])], loaders)
    return watched, models[FROZEN]


def test_each_pauses_once_after_its_epochs_and_has_no_end_while_the_others_go_on(
    paused: tuple[Watched, Model], pictures: Path, store: FeatureStore
) -> None:
    watched, frozen = paused
    for variant in VARIANTS:
        assert [epoch.index for epoch in watched.epochs[variant]] == list(range(NUM_PROBING))
        assert watched.pauses[variant] == [tuple(watched.epochs[variant])]
    assert watched.ends.keys() == {FROZEN}
    alone, expected = run(FROZEN, (sets := datasets(pictures, FROZEN)), loaders_of(FROZEN, sets, store))
    assert distance(alone, frozen) == 0
    end = watched.ends[FROZEN]
    assert isinstance(end, TrainingOutcome)
    assert end.metrics == expected.metrics
    assert [epoch.index for epoch in watched.epochs[FROZEN]] == list(range(5))


def test_whoever_goes_on_from_a_pause_ends_as_if_there_had_been_none(
    paused: tuple[Watched, Model], pictures: Path, store: FeatureStore
) -> None:
    variant = VARIANTS[1]
    sets = datasets(pictures, variant)
    stored = loaders_of(variant, sets, store)
    whole, expected = run(variant, sets, stored)
    resumed, found = run(variant, sets, stored, resume=paused[0].checkpoint(variant))
    assert distance(whole, resumed) == 0
    assert [epoch.metrics for epoch in found.epochs] == [epoch.metrics for epoch in expected.epochs]
    assert len(found.epochs) == 3 * NUM_PROBING


def test_whoever_is_at_its_pause_already_pauses_without_an_epoch(
    paused: tuple[Watched, Model], pictures: Path, store: FeatureStore, tmp_path: Path
) -> None:
    before, again, variant = paused[0], Watched(tmp_path), VARIANTS[0]
    (loaders,) = loaders_of(FROZEN, datasets(pictures, FROZEN), store).values()
    model = build_model(variant, CLASSES, None)
    train_together([again.request(variant, model, NUM_PROBING, before.checkpoint(variant))], loaders)
    assert again.epochs == {}
    assert again.pauses[variant] == before.pauses[variant]


def test_an_end_at_the_pause_has_the_best_epoch_so_far_and_the_reason_given(
    paused: tuple[Watched, Model], pictures: Path, store: FeatureStore
) -> None:
    watched, bests = paused[0], []
    for variant in VARIANTS:
        loaders = loaders_of(variant, datasets(pictures, variant), store)[compile_policy(variant)[0]]
        model = build_model(variant, CLASSES, None)
        outcome = conclude(model, variant, loaders, watched.checkpoint(variant), "others were better")
        told = watched.epochs[variant]
        best = max(told, key=lambda epoch: epoch.score)
        assert outcome.epochs == tuple(told)
        assert (outcome.best_epoch, outcome.metrics) == (best.index, best.metrics)
        assert outcome.ended == "others were better"
        heads = watched.heads[variant][best.index]
        assert all(torch.equal(value, heads[name]) for name, value in model.heads.state_dict().items())
        assert not model.training
        bests.append(best.index)
    assert min(bests) < NUM_PROBING - 1, "of one the last epoch is not the best"


def test_a_checkpoint_of_another_variant_ends_nothing(paused: tuple[Watched, Model], pictures: Path, store: FeatureStore) -> None:
    variant = VARIANTS[0]
    loaders = loaders_of(variant, datasets(pictures, variant), store)[compile_policy(variant)[0]]
    with pytest.raises(CheckpointError, match="resume each from its own"):
        conclude(build_model(variant, CLASSES, None), variant, loaders, paused[0].checkpoint(VARIANTS[1]), "x")
