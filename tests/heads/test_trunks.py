"""What frozen trunks gave is stored once, and training from it gives what training from images gives, together or alone."""

from __future__ import annotations

import dataclasses
import hashlib
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn

from heads.catalogue import BACKBONE_STAGES
from heads.data.image_dataset import ImageDataset
from heads.data.image_transforms import preprocess_for
from heads.data.loading import Loaders
from heads.errors import CheckpointError, TrainingDiverged
from heads.features import FeatureStore, Key
from heads.fused.training import TrainingRequest, train_together
from heads.model.model import build_backbone, build_model
from heads.phases import Tap, compile_policy
from heads.spec import Head, Variant
from heads.training.loop import train
from heads.training.metrics import MAX_PENDING_BYTES
from heads.training.state import TrainingOutcome
from heads.trunks.extraction import ExtractionRequest, count_missing, extract
from heads.trunks.forward import Forward
from heads.trunks.stored import FeatureLoader, open_views
from heads.trunks.trunk import stored_taps, trunk_of
from tests.heads.stored_training import (
    CLASSES,
    CPU,
    KIND,
    LABELS,
    LINEAR,
    MASK,
    NUM_TRAIN,
    NUM_VAL,
    POLICIES,
    SIZE_PX,
    TAGS,
    datasets,
    distance,
    fill,
    loaders_of,
    pictures,
    run,
    train_side_by_side,
    trunks_of,
    variant_of,
)
from tests.products import Products
from tests.rounding import ROUNDING

__all__ = ["pictures"]


@pytest.mark.parametrize("name", POLICIES)
def test_training_from_the_store_gives_what_training_from_images_gives(name: str, pictures: Path, tmp_path: Path) -> None:
    variant, store = POLICIES[name], FeatureStore(tmp_path)
    sets = datasets(pictures, variant)
    assert stored_taps(variant)
    assert fill(variant, sets, store) == NUM_TRAIN + NUM_VAL
    assert fill(variant, sets, store) == 0
    from_images, expected = run(variant, sets)
    from_store, found = run(variant, sets, loaders_of(variant, sets, store))
    # Rounding, which the variances of small batches in deep stages carry furthest: kernels that go by a sample's place in a
    # batch (such as MKL_CBWR=COMPATIBLE) leave 2e-4 of them.
    assert distance(from_images, from_store) < 1e-3
    assert found.metrics == pytest.approx(expected.metrics, abs=1e-4)
    assert found.confusion == expected.confusion
    num_epochs = sum(phase.num_epochs for phase in compile_policy(variant) if phase not in stored_taps(variant))
    assert found.num_forwarded == num_epochs * (NUM_TRAIN + NUM_VAL)


TOGETHER = [
    variant_of(KIND, learning_rate=0.01, mlp_dropout=0.4),
    variant_of(KIND, learning_rate=0.002, mlp_dropout=0.4, weight_decay=0.1, optimiser="sgd"),
    variant_of(KIND, learning_rate=0.03, mlp_dropout=0.4, epochs=9, patience=1, schedule="plateau"),
    variant_of(KIND, learning_rate=0.001, weight_decay=0.1, mlp_depth=2, optimiser="sgd"),
    variant_of(LINEAR, epochs=5, ema=0.5, label_smoothing=0.1),
    variant_of(LINEAR, epochs=4, gradient_clip=0.0, label_smoothing=0.1),
    variant_of(Head(target="kind", design="cosine"), loss="focal", class_weights="balanced", gradient_clip=0.1),
    *(variant_of(KIND, learning_rate=rate, mlp_width=50, mlp_activation="silu") for rate in (0.01, 0.003, 0.001)),
]
# Odd sizes: where an element lies in a stack must not matter.
OF_TWO_TARGETS = [
    variant_of(KIND, LABELS, mlp_width=50, batch_size=7, accumulate=2, mlp_dropout=0.2, mlp_activation=activation, **own)
    for own in (
        {"learning_rate": 0.01, "gradient_clip": 0.1},
        {"learning_rate": 0.003, "optimiser": "sgd", "weight_decay": 0.1, "gradient_clip": 0.3},
        {"learning_rate": 0.01, "optimiser": "sgd", "ema": 0.9, "epochs": 5},
    )
    for activation in ("gelu", "relu")
]


@pytest.mark.parametrize("variants", [TOGETHER, OF_TWO_TARGETS], ids=["one target", "two targets"])
def test_variants_trained_together_end_as_each_does_alone_to_the_bit(
    variants: list[Variant], pictures: Path, tmp_path: Path
) -> None:
    sets, store = datasets(pictures, variants[0]), FeatureStore(tmp_path)
    assert fill(variants[0], sets, store) == NUM_TRAIN + NUM_VAL
    assert [fill(variant, sets, store) for variant in variants[1:]] == [0] * (len(variants) - 1)
    together = train_side_by_side(variants, sets, store)
    for variant, (model, end, told) in zip(variants, together, strict=True):
        alone, expected = run(variant, sets, loaders_of(variant, sets, store))
        assert isinstance(end, TrainingOutcome)
        assert distance(alone, model) == 0
        assert end.metrics == expected.metrics
        assert (end.best_epoch, end.ended, end.confusion) == (expected.best_epoch, expected.ended, expected.confusion)
        assert end.temperatures == expected.temperatures
        assert told == list(range(len(end.epochs)))
    assert variants is not TOGETHER or len(together[2][2]) < 9, "one stopped early while the others went on"


class Given:
    """Features at one tap as if they were stored."""

    def __init__(self, tap: Tap, rows: Tensor) -> None:
        self.tap, self.rows = tap, rows

    def __getitem__(self, positions: Tensor) -> dict[str, Tensor]:
        return {self.tap.name: self.rows[positions]}


def test_a_large_validation_measures_the_same_beside_others_as_alone_to_the_bit(monkeypatch: pytest.MonkeyPatch) -> None:
    variant, num_labels = variant_of(LABELS, epochs=1), 7
    monkeypatch.setitem(CLASSES, "tags", tuple(map(str, range(num_labels))))
    (taps,) = stored_taps(variant).values()
    random, preprocess = torch.Generator().manual_seed(0), preprocess_for(variant.backbone, SIZE_PX)

    def loader(num_samples: int, batch_size: int, **how: Any) -> FeatureLoader:
        labels = torch.randint(2, (num_samples, num_labels), generator=random)
        samples = ImageDataset([Path("unread.png")] * num_samples, {"tags": labels}, preprocess)
        features = torch.randn(num_samples, 576, 1, 1, generator=random)
        return FeatureLoader(samples, [Given(taps[0], features)], taps, batch_size, CPU, **how)  # type: ignore[list-item]

    loaders = Loaders(loader(16, 8, training=True), loader(6000, 341))
    assert len(loaders.val.dataset) * num_labels * 12 > 1.5 * MAX_PENDING_BYTES, "they are counted in several parts"

    def measure(num_together: int) -> TrainingOutcome:
        ends: list[TrainingOutcome] = []
        models = [build_model(variant, CLASSES, None) for _ in range(num_together)]
        train_together([TrainingRequest(model, variant, lambda *_: None, ends.append) for model in models], loaders)  # type: ignore[arg-type]
        return ends[0]

    alone, beside_others = measure(1), measure(3)
    assert beside_others.metrics == alone.metrics
    assert beside_others.thresholds == alone.thresholds


def test_who_trains_by_itself_in_a_group_has_the_updates_and_the_validation_of_one_alone(
    pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    variant, store = variant_of(KIND), FeatureStore(tmp_path)
    sets = datasets(pictures, variant)
    # Of two ranks each would have one of the last two samples, which is too few for an update; one rank has both.
    variant = variant.model_copy(update={"fit": variant.fit.model_copy(update={"batch_size": len(sets[0]) - 2})})
    fill(variant, sets, store)
    ((_, alone, _),) = train_side_by_side([variant], sets, store)
    # The loaders are opened by the second of two ranks, the training is its own.
    for name, value in (("is_initialized", True), ("get_rank", 1), ("get_world_size", 2)):
        monkeypatch.setattr(torch.distributed, name, lambda value=value: value)
    ((_, member, _),) = train_side_by_side([variant], sets, store)
    assert isinstance(alone, TrainingOutcome)
    assert isinstance(member, TrainingOutcome)
    assert member.metrics == alone.metrics
    assert member.confusion == alone.confusion
    assert member.temperatures == alone.temperatures
    assert sum(map(sum, member.confusion["kind"])) == NUM_VAL


def test_variants_that_go_on_from_different_epochs_end_as_they_would_have_to_the_bit(pictures: Path, tmp_path: Path) -> None:
    variants, store = TOGETHER[:4], FeatureStore(tmp_path / "store")
    sets = datasets(pictures, variants[0])
    fill(variants[0], sets, store)
    whole = train_side_by_side(variants, sets, store, saves=tmp_path)
    resume = {0: tmp_path / "0.1.pt", 2: tmp_path / "2.0.pt"}
    resumed = train_side_by_side(variants, sets, store, resume=resume)
    assert [told[0] for _, _, told in resumed] == [2, 0, 1, 0]
    for (model, end, _), (again, second, _) in zip(whole, resumed, strict=True):
        assert isinstance(end, TrainingOutcome)
        assert isinstance(second, TrainingOutcome)
        assert distance(model, again) == 0
        assert second.metrics == end.metrics
    with pytest.raises(CheckpointError, match="resume each from its own"):
        train_side_by_side(variants, sets, store, resume={0: tmp_path / "1.0.pt"})


def test_no_product_of_stacked_training_begins_where_one_of_a_trainings_own_would_not(pictures: Path, tmp_path: Path) -> None:
    sets, store = datasets(pictures, OF_TWO_TARGETS[0]), FeatureStore(tmp_path)
    fill(OF_TWO_TARGETS[0], sets, store)
    with Products() as products:
        train_side_by_side(OF_TWO_TARGETS, sets, store)
    assert products.count > 100
    assert products.misaligned == []


def test_one_that_diverges_leaves_the_others_as_they_are(pictures: Path, tmp_path: Path) -> None:
    wild = variant_of(KIND, gradient_clip=0, optimiser="sgd", epochs=60)
    wild = wild.model_copy(update={"fit": wild.fit.model_copy(update={"learning_rate": 1e38})})
    calm = variant_of(KIND)
    sets, store = datasets(pictures, calm), FeatureStore(tmp_path)
    fill(calm, sets, store)
    (_, end, _), (model, _, _) = train_side_by_side([wild, calm], sets, store)
    assert isinstance(end, TrainingDiverged)
    assert distance(train_side_by_side([calm], sets, store)[0][0], model) == 0


def test_a_resumed_training_from_the_store_equals_an_uninterrupted_one(pictures: Path, tmp_path: Path) -> None:
    variant = variant_of(KIND, freeze="lp_ft", epochs=6)
    sets, store = datasets(pictures, variant), FeatureStore(tmp_path / "store")
    fill(variant, sets, store)
    stored = loaders_of(variant, sets, store)
    whole, _ = run(variant, sets, stored, on_epoch=lambda epoch, save: save(tmp_path / f"{epoch.index}.pt"))
    # Once within the probe, once within fine-tuning.
    for index in (0, 3):
        resumed, _ = run(variant, sets, stored, resume=tmp_path / f"{index}.pt")
        assert distance(whole, resumed) == 0


def test_a_checkpoint_holds_nothing_of_stages_that_no_phase_thaws(pictures: Path, tmp_path: Path) -> None:
    sizes = {}
    for freeze in ("all", "none"):
        variant = variant_of(KIND, freeze=freeze, epochs=1)
        run(variant, datasets(pictures, variant), on_epoch=lambda _, save: save(tmp_path / "state.pt"))
        sizes[freeze] = (tmp_path / "state.pt").stat().st_size
    assert sizes["all"] < sizes["none"] / 5


@pytest.mark.parametrize("held_bytes", [2**20, 0], ids=["held in memory", "read by position"])
def test_views_beyond_the_first_are_varied_and_epochs_take_turns(
    pictures: Path, tmp_path: Path, held_bytes: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("heads.trunks.stored.MAX_HELD_BYTES", {"cpu": held_bytes})
    variant = variant_of(KIND, views=3, augment="strong", flip=True)
    sets, store = datasets(pictures, variant), FeatureStore(tmp_path)
    assert fill(variant, sets, store) == 3 * NUM_TRAIN + NUM_VAL
    (loaders,) = loaders_of(variant, sets, store).values()
    seen = []
    for epoch in range(6):
        loaders.train.set_epoch(epoch, variant.fit.seed)
        order = torch.cat([step.here for step in loaders.train.steps])
        rows = torch.cat([next(iter(batch.inputs.features.values())) for batch in loaders.train])  # type: ignore[union-attr]
        seen.append(rows[order.argsort()])
    assert all(torch.equal(seen[epoch], seen[epoch + 3]) for epoch in range(3))
    assert not any(torch.equal(seen[0], seen[view]) for view in (1, 2))
    assert not torch.equal(seen[1], seen[2])
    stages = build_backbone(variant, None).eval()
    for view in (1, 2):
        with torch.no_grad():
            features = stages(torch.stack([sets[0].view(index, view) for index in range(NUM_TRAIN)]))
        torch.testing.assert_close(seen[view], features.mean(dim=(2, 3), keepdim=True), atol=1e-5, rtol=1e-4)
    plain = variant_of(KIND)
    (unvaried,) = loaders_of(plain, datasets(pictures, plain), store).values()
    unvaried.train.set_epoch(0, variant.fit.seed)
    rows = torch.cat([next(iter(batch.inputs.features.values())) for batch in unvaried.train])  # type: ignore[union-attr]
    assert torch.equal(rows[torch.cat([step.here for step in unvaried.train.steps]).argsort()], seen[0]), "the first is plain"


def test_a_view_of_a_mask_is_the_place_that_its_image_shows(pictures: Path) -> None:
    variant = variant_of(MASK, views=4, augment="light", flip=True)
    images, _ = datasets(pictures, variant)
    # The mask as the picture: where the two are varied alike, the picture is still the mask.
    drawn = ImageDataset(
        images.masks["mask"].paths, {}, images.preprocess, "light", flip=True, masks=images.masks, digests=images.digests
    )
    for index in range(6):
        for view in range(4):
            mask = images.labels_in_view(torch.tensor([index]), view)["mask"][0]
            assert torch.equal(drawn.labels_in_view(torch.tensor([index]), view)["mask"][0], mask)
            picture = drawn.view(index, view).mean(dim=0)
            lit = picture > (picture.min() + picture.max()) / 2
            assert (lit == mask.bool()).float().mean() > 0.97


@pytest.mark.parametrize(
    ("variant", "expected"),
    [
        (variant_of(freeze="none"), {}),
        (variant_of(freeze="adaptive"), {}),
        (variant_of(mixup=0.2), {}),
        (variant_of(cutmix=1.0), {}),
        (variant_of(), {(0, 6): ["5:pooled"]}),
        (variant_of(KIND, TAGS), {(0, 6): ["5:map"]}),
        (variant_of(Head(target="mask", task="segmentation", design="fcn")), {(0, 6): ["5:map"]}),
        (variant_of(freeze="lp_ft", epochs=3), {(0, 6): ["5:pooled"]}),
    ],
)
def test_phases_read_the_store_where_their_trunk_is_as_it_came(variant: Variant, expected: dict[Any, list[str]]) -> None:
    found = {
        (phase.first_epoch, phase.num_frozen_stages): [tap.name for tap in taps] for phase, taps in stored_taps(variant).items()
    }
    assert found == expected


def test_gradual_thawing_reads_ever_earlier_cuts() -> None:
    phases = stored_taps(variant_of(freeze="gradual", backbone="mobilenet_v2", epochs=10, image_size_px=224))
    cuts = {phase.num_frozen_stages: [tap.name for tap in taps] for phase, taps in phases.items()}
    assert cuts[9] == ["8:pooled"]
    assert cuts[8] == ["7:map"]
    assert cuts[6] == ["5:map"]
    assert 0 not in cuts


@pytest.mark.parametrize("change", ["backbone", "weights", "size", "whole", "precision", "augment"])
def test_what_changes_features_changes_the_trunk(change: str) -> None:
    base = variant_of(KIND, augment="light")
    changed = {
        "backbone": (variant_of(KIND, augment="light", backbone="mobilenet_v3_large"), "w"),
        "weights": (base, "other"),
        "size": (variant_of(KIND, augment="light", image_size_px=64), "w"),
        "whole": (variant_of(MASK, augment="light"), "w"),
        "precision": (variant_of(KIND, augment="light", precision="bf16"), "w"),
        "augment": (variant_of(KIND, augment="strong"), "w"),
    }[change]
    ids = [trunk_of(variant, weights, CPU, varied=change == "augment").id for variant, weights in ((base, "w"), changed)]
    assert ids[0] != ids[1]
    heads_alone = variant_of(Head(target="other", design="linear"), augment="strong", learning_rate=0.5, seed=3)
    assert trunk_of(heads_alone, "w", CPU).id == trunk_of(base, "w", CPU).id
    on_gpu = trunk_of(base, "w", torch.device("cuda"))
    assert on_gpu.id != dataclasses.replace(on_gpu, prepared_on="").id, "images that are prepared on a GPU are rounded otherwise"


def test_features_are_what_the_backbone_gives(pictures: Path, tmp_path: Path) -> None:
    variant, store = variant_of(KIND, TAGS), FeatureStore(tmp_path)
    sets = datasets(pictures, variant)
    fill(variant, sets, store)
    trunk, taps = trunks_of(variant)[0], (Tap(5, "map"), Tap(5, "pooled"), Tap(1, "pooled"))
    stages = build_backbone(variant, None).eval()
    asked = []

    def build() -> nn.Sequential:
        asked.append(1)
        return stages

    # What is there already is left alone, and only what lacks is computed.
    assert extract(build, trunk, [ExtractionRequest(sets[0], 0, taps)], store, device=CPU, precision="fp32") == NUM_TRAIN
    assert count_missing(store, trunk, taps, sets[0].digests, 0) == 0
    rows = store.trunk(trunk.id).open([Key(digest) for digest in sets[0].digests], [tap.name for tap in taps])
    found = rows[torch.arange(NUM_TRAIN)]
    with torch.no_grad():
        images = torch.stack([sets[0].view(index, 0) for index in range(NUM_TRAIN)])
        last = stages(images)
        early = stages[:2](images)
    torch.testing.assert_close(found["5:map"], last, atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(found["5:pooled"], last.mean(dim=(2, 3), keepdim=True), atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(found["1:pooled"], early.mean(dim=(2, 3), keepdim=True), atol=1e-5, rtol=1e-4)
    assert extract(build, trunk, [ExtractionRequest(sets[0], 0, taps)], store, device=CPU, precision="fp32") == 0
    assert asked, "the backbone is built only where a sample is missing"


def test_byte_identical_images_and_new_ones_are_forwarded_once(pictures: Path, tmp_path: Path) -> None:
    variant, store = variant_of(KIND), FeatureStore(tmp_path)
    (images, _), trunk, taps = datasets(pictures, variant), trunks_of(variant)[0], [Tap(5, "pooled")]
    stages = build_backbone(variant, None).eval()

    def do(*sets: ImageDataset) -> int:
        wanted = [ExtractionRequest(each, 0, taps) for each in sets]
        return extract(lambda: stages, trunk, wanted, store, device=CPU, precision="fp32")

    assert do(part_of(images, [0, 1, 2, 2, 1])) == 3
    assert do(part_of(images, range(8)), part_of(images, [8, 9, 9])) == 7
    assert do(images) == NUM_TRAIN - 10


def part_of(images: ImageDataset, indices: Any) -> ImageDataset:
    chosen = list(indices)
    labels = {target: column[chosen] for target, column in images.labels.items()}
    digests = [images.digests[index] for index in chosen]
    return ImageDataset([images.paths[index] for index in chosen], labels, images.preprocess, digests=digests)


def test_a_damaged_shard_is_computed_again(pictures: Path, tmp_path: Path) -> None:
    variant = variant_of(KIND)
    sets = datasets(pictures, variant)
    # The training images and one of validation in a shard, the others in the next.
    fill(variant, (sets[0], part_of(sets[1], [0])), FeatureStore(tmp_path))
    fill(variant, sets, FeatureStore(tmp_path))
    shard = sorted(tmp_path.rglob("*.safetensors"), key=lambda path: path.stat().st_size)[-1]
    content = bytearray(shard.read_bytes())
    content[-5] ^= 1
    shard.write_bytes(content)
    store = FeatureStore(tmp_path)
    assert fill(variant, sets, store) == NUM_TRAIN + 1
    assert len(loaders_of(variant, sets, store)) == 1


def test_a_samples_features_are_the_same_but_for_rounding_whatever_it_is_computed_with(tmp_path: Path) -> None:
    random, files = np.random.default_rng(1), []
    for number in range(23):
        files.append(tmp_path / f"{number}.png")
        Image.fromarray(random.integers(0, 256, (96, 96, 3), dtype=np.uint8)).save(files[-1])
    variant = variant_of(Head(target="kind"), backbone="mobilenet_v2", image_size_px=96)
    stages, trunk, taps = build_backbone(variant, None).eval(), trunks_of(variant)[0], stored_taps(variant)
    (wanted,) = taps.values()

    def stored(root: str, *parts: slice) -> torch.Tensor:
        store, digests = FeatureStore(tmp_path / root), []
        for part in parts:
            own = files[part]
            digests += [hashlib.md5(file.read_bytes()).hexdigest() for file in own]
            labels = {"kind": torch.zeros(len(own), dtype=torch.long)}
            images = ImageDataset(own, labels, preprocess_for(variant.backbone, 96), digests=digests[-len(own) :])
            extract(lambda: stages, trunk, [ExtractionRequest(images, 0, wanted)], store, device=CPU, precision="fp32")
        (view,) = open_views(store, [trunk], wanted, sorted(digests), CPU, shuffled=False)
        return view[torch.arange(len(files))][wanted[0].name]

    whole, parts = stored("whole", slice(None)), stored("parts", slice(0, 1), slice(1, 4), slice(4, None))
    assert (whole - parts).abs().max() <= ROUNDING * whole.abs().max()


def test_a_killed_extraction_loses_a_shard_at_most_and_goes_on_where_it_was(pictures: Path, tmp_path: Path) -> None:
    variant, store = variant_of(KIND), FeatureStore(tmp_path / "store")
    images, taps = datasets(pictures, variant)[0], [Tap(5, "pooled")]
    program = subprocess.Popen(
        [sys.executable, __file__, str(pictures), str(tmp_path / "store")],
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])},
        stdout=subprocess.PIPE,
        text=True,
    )
    assert program.stdout is not None
    told = [int(program.stdout.readline()) for _ in range(2)]
    os.kill(program.pid, signal.SIGKILL)
    program.wait()
    program.stdout.close()
    assert count_missing(store, trunks_of(variant)[0], taps, images.digests, 0) <= NUM_TRAIN - sum(told)
    missing = count_missing(store, trunks_of(variant)[0], taps, images.digests, 0)
    stages, wanted = build_backbone(variant, None).eval(), [ExtractionRequest(images, 0, taps)]
    again = extract(lambda: stages, trunks_of(variant)[0], wanted, store, device=CPU, precision="fp32")
    assert again == missing < NUM_TRAIN


def extract_slowly(pictures: Path, root: Path) -> None:
    """Stores five samples a shard and says so; to be killed."""
    import heads.trunks.extraction

    torch.set_num_threads(1)
    heads.trunks.extraction.BATCH_SIZES["cpu"], heads.trunks.shards.SHARD_SECONDS = 5, 0.0
    variant = variant_of(KIND)

    def say(num_samples: int) -> None:
        print(num_samples, flush=True)  # noqa: T201
        time.sleep(0.5)

    stages = build_backbone(variant, None).eval()
    wanted = [ExtractionRequest(datasets(pictures, variant)[0], 0, [Tap(5, "pooled")])]
    trunk = trunks_of(variant)[0]
    extract(lambda: stages, trunk, wanted, FeatureStore(root), device=CPU, precision="fp32", on_stored=say)


def test_stages_before_the_cut_are_not_run_again(pictures: Path, tmp_path: Path) -> None:
    variant, store = variant_of(KIND, freeze="upto:stage3", backbone="mobilenet_v2", epochs=1), FeatureStore(tmp_path)
    sets = datasets(pictures, variant)
    fill(variant, sets, store)
    model, runs = build_model(variant, CLASSES, None), []
    for number, stage in enumerate(model.backbone):
        stage.register_forward_hook(lambda *_, number=number: runs.append(number))
    train(model, variant, *sets, device=CPU, on_epoch=lambda *_: None, stored=loaders_of(variant, sets, store))
    cut = BACKBONE_STAGES["mobilenet_v2"].index("stage3")
    assert min(runs) == cut + 1


if __name__ == "__main__":
    extract_slowly(Path(sys.argv[1]), Path(sys.argv[2]))


class Narrow(nn.Module):
    """Stands for a device with room for so many samples at once; remembers how many came together."""

    def __init__(self, room: int) -> None:
        super().__init__()
        self.room, self.sizes = room, list[int]()

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        self.sizes.append(len(features))
        if len(features) > self.room:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return features * 2


def test_a_batch_that_finds_no_room_runs_in_halves_and_so_do_later_ones() -> None:
    narrow, taps = Narrow(room=3), (Tap(0, "map"),)
    forward = Forward(nn.Sequential(narrow), taps, "fp32", num_batches=2)
    for number in range(2):
        samples = torch.arange(10.0).reshape(10, 1, 1, 1) + number
        assert torch.equal(forward(samples)["0:map"], samples * 2)
    assert narrow.sizes == [10, 5, 3, 3, 3, 1, 3, 3, 3, 1]
    with pytest.raises(torch.OutOfMemoryError):
        Forward(nn.Sequential(Narrow(room=0)), taps, "fp32", num_batches=1)(torch.ones(4, 1, 1, 1))
