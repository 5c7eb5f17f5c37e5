"""What `headstart plan` says of trunks: who shares them, what is stored, what is left, and what it saves."""

from __future__ import annotations

import hashlib
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from flows.cli import planning
from flows.compile_times import KeptCompileTimes
from flows.files import write_json
from flows.plan import VariantPhases, group_by_trunk, parse_plan
from flows.records import DataVersion, Sample
from flows.settings import Settings
from flows.stages.planning import make_work_plan
from flows.stages.preview.compile_forecast import CompileForecast, forecast
from flows.stages.preview.cost_estimate import estimate_costs
from flows.stages.values import WorkPlan
from heads.backbones import BACKBONES
from heads.data.image_dataset import ImageDataset
from heads.data.image_transforms import preprocess_for
from heads.features import FeatureStore
from heads.model.model import build_backbone, build_model
from heads.phases import PhaseInputs, Tap, compile_policy
from heads.spec import Fit, Head, Variant
from heads.training.compile_payback import CompileCase, CompileTimes
from heads.training.loop import train
from heads.trunks.extraction import ExtractionRequest, extract
from heads.trunks.pricing import forward_multiply_adds
from heads.trunks.threads import threads
from heads.trunks.trunk import trunk_of

NUM_TRAIN, NUM_VAL, SIZE_PX = 10, 5, 64


def phases_of(
    freeze: str, *taps: tuple[int, Any], trunks: tuple[str, ...] = ("t",), done: bool = False, **fit: Any
) -> VariantPhases:
    variant = Variant(backbone="mobilenet_v2", heads=(Head(target="kind"),), freeze=freeze, fit=Fit(epochs=9, **fit))
    first, *others = compile_policy(variant)
    inputs = {first: PhaseInputs(tuple(Tap(*tap) for tap in taps), "frozen")}
    return VariantPhases(variant, done, inputs | {phase: PhaseInputs((), "trained") for phase in others}, trunks)


def test_variants_that_read_one_trunk_share_it_whatever_they_read() -> None:
    probe, other = phases_of("all", (8, "pooled")), phases_of("all", (8, "map"), learning_rate=0.01)
    tuned, whole = phases_of("lp_ft", (8, "pooled")), phases_of("none")
    (group,) = group_by_trunk([probe, other, tuned, whole])
    assert group.variants == tuple(each.variant.variant_id for each in (probe, other, tuned))
    assert group.taps == ((8, "map"), (8, "pooled"))
    assert (group.views, group.through, group.num_stages) == ((0,), "top", 9)
    assert [phase.num_frozen_stages for phase in tuned.from_samples] == [0]
    assert whole.from_samples == whole.inputs


def test_a_trunk_runs_only_as_deep_as_those_left_read_it() -> None:
    deep, shallow = phases_of("all", (8, "pooled"), done=True), phases_of("upto:stage5", (5, "map"))
    (group,) = group_by_trunk([deep, shallow])
    assert (group.through, group.left) == ("stage5", (shallow.variant.variant_id,))
    (finished,) = group_by_trunk([deep])
    assert (finished.through, finished.left) == ("top", ())


def test_varied_views_are_a_trunk_of_their_own_beside_the_plain_one() -> None:
    plain = phases_of("all", (8, "pooled"))
    varied = phases_of("all", (8, "pooled"), trunks=("t", "light", "light"), views=3)
    first, second = group_by_trunk([plain, varied])
    assert (first.trunk_id, first.views, len(first.variants)) == ("t", (0,), 2)
    assert (second.trunk_id, second.views, second.variants) == ("light", (1, 2), (varied.variant.variant_id,))


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A file of weights, since frozen ones must come from somewhere."""
    file = tmp_path_factory.mktemp("weights") / "mobilenet_v2.pth"
    torch.save(BACKBONES["mobilenet_v2"].build().state_dict(), file)
    return file


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    return Settings(workspace=tmp_path)


@pytest.fixture
def version(tmp_path: Path) -> DataVersion:
    """Fifteen pictures, the last two of them byte for byte the same."""
    samples = []
    for number, split in enumerate(["train"] * NUM_TRAIN + ["val"] * NUM_VAL):
        pixels = np.random.default_rng(min(number, 13)).integers(0, 256, (40, 40, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(tmp_path / f"{number}.png")
        digest = hashlib.md5((tmp_path / f"{number}.png").read_bytes()).hexdigest()
        samples.append(Sample(digest, f"{number}.png", split, {"label": "ab"[number % 2]}))
    return DataVersion("d" * 32, "r" * 40, tuple(samples), tmp_path, ())


def work_plan_of(version: DataVersion, weights: Path, **changes: Any) -> WorkPlan:
    fit = {"epochs": 6, "image_size_px": SIZE_PX, "augment": "none", **changes.pop("fit", {})}
    plan = {"name": "x", "backbones": ["mobilenet_v2"], "weights": str(weights), "freeze": ["all"], "fit": fit, **changes}
    return make_work_plan(parse_plan(plan), version)


def fill(settings: Settings, work_plan: WorkPlan, version: DataVersion, split: str) -> None:
    variant, weights = work_plan.works[0].variant, work_plan.works[0].weights
    chosen = [sample for sample in version.samples if sample.split == split]
    dataset = ImageDataset(
        [version.data / sample.file for sample in chosen],
        {"label": [0] * len(chosen)},
        preprocess_for(variant.backbone, SIZE_PX),
        digests=[sample.digest for sample in chosen],
    )
    extract(
        lambda: build_backbone(variant, weights.path).eval(),
        trunk_of(variant, weights.digest, torch.device("cpu")),
        [ExtractionRequest(dataset, 0, [Tap(8, "pooled")])],
        FeatureStore(settings.storage / "features"),
        device=torch.device("cpu"),
        precision="auto",
    )


def test_samples_are_left_to_forward_until_the_store_holds_them(settings: Settings, version: DataVersion, weights: Path) -> None:
    work_plan = work_plan_of(version, weights, heads=["linear", "mlp"])
    cold = estimate_costs(settings, work_plan, calibrate=False)
    (trunk,) = cold.trunks
    assert (trunk.samples, trunk.samples_stored, trunk.samples_to_forward) == (14, 0, 14)
    assert trunk.bytes == 14 * 1280 * 4
    assert trunk.flops == 14 * forward_multiply_adds("mobilenet_v2", SIZE_PX)
    assert cold.estimate.flops_alone == 2 * 6 * 15 * forward_multiply_adds("mobilenet_v2", SIZE_PX)
    assert cold.estimate.flops_factor == round(2 * 6 * 15 / 14, 1)
    assert cold.images == ()
    fill(settings, work_plan, version, "train")
    (half,) = estimate_costs(settings, work_plan, calibrate=False).trunks
    assert (half.samples_stored, half.samples_to_forward) == (10, 4)
    fill(settings, work_plan, version, "val")
    warm = estimate_costs(settings, work_plan, calibrate=False)
    assert (warm.trunks[0].samples_to_forward, warm.trunks[0].flops) == (0, 0)
    assert warm.estimate.flops == 0
    assert warm.estimate.flops_factor is None
    assert 0 < warm.estimate.seconds < cold.estimate.seconds < cold.estimate.seconds_alone


def test_a_sample_pays_for_the_stages_up_to_what_it_lacks(settings: Settings, version: DataVersion, weights: Path) -> None:
    probes = work_plan_of(version, weights)
    fill(settings, probes, version, "train")
    (trunk,) = estimate_costs(settings, work_plan_of(version, weights, freeze=["all", "upto:stage5"]), calibrate=False).trunks
    assert trunk.samples_to_forward == 14
    prefix, whole = (forward_multiply_adds("mobilenet_v2", SIZE_PX, number) for number in (6, None))
    assert trunk.flops == 10 * prefix + 4 * whole


def test_looking_at_a_plan_changes_no_file_even_where_the_store_is_damaged(
    settings: Settings, version: DataVersion, weights: Path
) -> None:
    work_plan = work_plan_of(version, weights)
    fill(settings, work_plan, version, "train")
    (shard,) = (settings.storage / "features").rglob("*.safetensors")
    content = bytearray(shard.read_bytes())
    content[-1] ^= 1
    shard.write_bytes(content)

    def state() -> dict[Path, tuple[bytes, int]]:
        files = (path for path in settings.workspace.rglob("*") if path.is_file())
        return {path: (path.read_bytes(), path.stat().st_mtime_ns) for path in files}

    before = state()
    estimate_costs(settings, work_plan, calibrate=False)
    assert state() == before


def test_phases_on_images_are_named_with_the_reason(settings: Settings, version: DataVersion, weights: Path) -> None:
    told = estimate_costs(settings, work_plan_of(version, weights, freeze=["lp_ft", "upto:stem"]), calibrate=False)
    tuned, cut = told.images
    assert (tuned.epochs, tuned.num_frozen_stages, tuned.reason) == (4, 0, "the whole backbone is trained")
    assert (cut.epochs, cut.num_frozen_stages) == (6, 1)
    assert cut.reason.startswith("frozen through stem: 131 kB a sample")


def test_finished_variants_cost_nothing_any_more(settings: Settings, version: DataVersion, weights: Path) -> None:
    work_plan = work_plan_of(version, weights, heads=["linear", "mlp"])
    for work in work_plan.works:
        write_json(settings.storage / "work" / work.key / "result.json", {})
    told = estimate_costs(settings, work_plan, calibrate=True)
    assert [trunk.samples_to_forward for trunk in told.trunks] == [0]
    assert (told.estimate.seconds, told.estimate.calibrated) == (0.0, False)


def test_seconds_are_timed_on_this_machine_within_seconds(settings: Settings, version: DataVersion, weights: Path) -> None:
    before = torch.get_num_threads()
    told = estimate_costs(settings, work_plan_of(version, weights, fit={"image_size_px": [SIZE_PX, 96]}), calibrate=True)
    rates = told.estimate.rates
    assert told.estimate.calibrated
    assert rates.keys() == {f"mobilenet_v2 {SIZE_PX} px", "mobilenet_v2 96 px"}
    assert all(1e7 < each.multiply_adds_per_second < 1e14 for each in rates.values())
    assert all(0 < each.kept_sample_seconds <= each.sample_seconds < 10 for each in rates.values())
    assert torch.get_num_threads() == before


class Asked(KeptCompileTimes):
    """The times kept on this machine, which get the ones given whenever a training asks for its own."""

    def __init__(self, times: CompileTimes) -> None:
        self.times = times

    def read(self, case: CompileCase) -> CompileTimes | None:
        assert super().read(case) is None
        self.write(case, self.times)
        return None


def foretold(work_plan: WorkPlan, *, is_here: bool = True) -> CompileForecast:
    (told,) = forecast(work_plan, work_plan.works, device="cpu", is_here=is_here)
    return told


def test_a_plan_says_what_is_compiled_by_what_a_training_of_it_measured(
    version: DataVersion, weights: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    fit = {"compile": True, "epochs": 2, "batch_size": 4, "precision": "fp32"}
    work_plan = work_plan_of(version, weights, freeze=["none"], fit=fit)
    assert forecast(work_plan, [], device="cpu", is_here=True) == ()
    plain = work_plan_of(version, weights)
    assert forecast(plain, plain.works, device="cpu", is_here=True) == ()
    told = foretold(work_plan)
    assert (told.num_steps, told.least_seconds, told.is_compiled) == (4, pytest.approx(300), None)
    assert not (tmp_path / "cache" / "headstart" / "compile_times").exists(), "looking touches nothing"
    (line,) = planning.describe_compiling([told, told])
    assert line == (
        "compile: mobilenet_v2, 0 stages frozen: nothing is measured yet where it trains: it is compiled if its 4 steps take "
        "more than 5 min"
    )
    variant, samples = work_plan.works[0].variant, [s for s in version.samples if s.split == "train"]
    images = ImageDataset(
        [version.data / s.file for s in samples], {"label": [0, 1] * 5}, preprocess_for(variant.backbone, SIZE_PX)
    )
    model = build_model(variant, {"label": ["a", "b"]}, weights)
    with threads(1):
        records = Asked(CompileTimes(8.0, 4.0, 1.0))
        train(model, variant, images, images, device="cpu", on_epoch=lambda *_: None, compile_records=records)
    (file,) = (tmp_path / "cache" / "headstart" / "compile_times").iterdir()
    told = foretold(work_plan)
    assert (told.compile_seconds, told.saved, told.steps_to_pay_back, told.is_compiled) == (8.0, 0.75, 3, True)
    assert planning.describe_compiling([told]) == [
        "compile: mobilenet_v2, 0 stages frozen: pays back after about 3 steps, and this plan has 4: it is compiled (measured on "
        "this machine: 8.0 s to compile, 75% saved of a step)"
    ]
    assert foretold(work_plan, is_here=False).is_compiled is None
    assert foretold(work_plan_of(version, weights, freeze=["none"], fit=fit | {"batch_size": 5})).is_compiled is None
    one_epoch = work_plan_of(version, weights, freeze=["none"], fit=fit | {"epochs": 1})
    assert "this plan has 2: it is not compiled" in planning.describe_compiling([foretold(one_epoch)])[0]
    never = replace(told, saved=-0.1, steps_to_pay_back=None, is_compiled=False)
    assert planning.describe_compiling([never])[0].endswith("steps were no shorter compiled on this machine: it is not compiled")
    assert len(planning.describe_compiling([replace(told, num_steps=n) for n in range(9)])) == 6
    file.write_text("{")
    assert foretold(work_plan).is_compiled is None
