"""A forward pass is compiled where that pays back, by measured times; what was decided holds, on all ranks and after a resume."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from heads.data.inputs import Inputs
from heads.errors import HeadsError
from heads.features import FeatureStore
from heads.model.model import Model, build_model
from heads.spec import Variant
from heads.training import checkpoint
from heads.training.compile_payback import (
    FIRST_GUESS,
    NUM_TIMED,
    NUM_WARM_UPS,
    CompileCase,
    CompileTimes,
    Stopwatch,
    is_enough,
    pays_back,
    steps_to_pay_back,
    typical,
)
from heads.training.loop import train
from heads.training.state import TrainingOutcome
from tests.heads import stored_training
from tests.heads.stored_training import pictures as photos
from tests.heads.test_loop import CLASSES, datasets, pictures, run, same, variant_of, without_seconds

__all__ = ["photos", "pictures"]

FREE, NEVER = CompileTimes(0.0, 1.0, 0.5), CompileTimes(1.0, 1.0, 1.1)
# Eleven steps an epoch, the last of them of three images: it decides after seven, and has judged after fourteen.
SMALL: dict[str, Any] = {"backbone": "squeezenet1_1", "freeze": "none", "design": "linear", "batch_size": 2, "epochs": 2}


class Records:
    """Compile times in memory."""

    def __init__(self, known: CompileTimes | None = None) -> None:
        self.known, self.cases = known, list[CompileCase]()
        self.written = list[CompileTimes]()

    def read(self, case: CompileCase) -> CompileTimes | None:
        self.cases.append(case)
        return self.known

    def write(self, case: CompileCase, times: CompileTimes) -> None:
        assert case == self.cases[-1]
        self.written.append(times)


class Compiler:
    """Stands for torch.compile: counts what it is asked, and how many samples have run compiled; each call takes `seconds`."""

    def __init__(self, seconds: float = 0.0) -> None:
        self.seconds, self.num_compiled, self.sizes = seconds, 0, list[int]()

    def __call__(self, forward: Callable[[Inputs], dict[str, Tensor]], **how: Any) -> Callable[[Inputs], dict[str, Tensor]]:
        assert how == {"dynamic": False, "isolate_recompiles": True}
        self.num_compiled += 1

        def compiled(inputs: Inputs) -> dict[str, Tensor]:
            time.sleep(self.seconds)
            assert isinstance(inputs.features, Tensor)
            self.sizes.append(len(inputs.features))
            return forward(inputs)

        return compiled


@pytest.fixture
def compiler(monkeypatch: pytest.MonkeyPatch) -> Compiler:
    found = Compiler()
    monkeypatch.setattr(torch, "compile", found)
    return found


def run_with(
    records: Records | None, variant: Variant, pictures: Path, saves: Path | None = None, resume: Path | None = None
) -> tuple[Model, TrainingOutcome]:
    def keep(epoch: Any, save: Callable[[Path], None]) -> None:
        if saves:
            save(saves / f"{epoch.index}.pt")

    model, sets = build_model(variant, CLASSES, None), datasets(pictures, variant)
    return model, train(model, variant, *sets, device="cpu", on_epoch=keep, resume=resume, compile_records=records)


def decided(outcome: TrainingOutcome) -> list[bool | None]:
    return [epoch.is_compiled for epoch in outcome.epochs]


def test_a_compilation_pays_back_by_what_it_saves_of_the_steps_left() -> None:
    times = CompileTimes(compile_seconds=54.0, plain_step_seconds=0.1, compiled_step_seconds=0.075)
    assert times.saved == pytest.approx(0.25)
    assert steps_to_pay_back(times, 0.1) == pytest.approx(54 / 0.025)
    # A share is saved: of steps that now take twice as long, twice as much.
    assert steps_to_pay_back(times, 0.2) == pytest.approx(54 / 0.05)
    assert pays_back(times, 0.1, 2161)
    assert not pays_back(times, 0.1, 2159)
    assert steps_to_pay_back(NEVER, 10.0) == math.inf
    assert not pays_back(NEVER, 10.0, 10**9)


def test_a_first_compilation_is_tried_where_five_minutes_are_left() -> None:
    assert FIRST_GUESS.compile_seconds / FIRST_GUESS.saved == pytest.approx(300)
    assert pays_back(None, 0.1, 3010)
    assert not pays_back(None, 0.1, 2990)


def test_the_first_steps_of_a_kind_are_left_out_of_its_time_and_what_they_take_longer_is_compiling() -> None:
    slow = [9.0] * NUM_WARM_UPS
    watch = Stopwatch([*slow, 1.0, 1.0, 1.2, 1.0, 5.0], [*slow, 0.5, 0.5, 0.5, 0.4, 0.7])
    assert is_enough(watch.plain)
    assert not is_enough(watch.plain[:-1])
    assert watch.times == CompileTimes(2 * 9.0 - 2 * 0.5, 1.0, 0.5)
    assert typical([3.0, 2.0]) == 2.0, "of an epoch of few steps the last"


def test_a_training_compiles_after_a_few_plain_steps_and_keeps_what_that_took(pictures: Path, compiler: Compiler) -> None:
    records = Records(FREE)
    one, first = run(variant_of(**SMALL), pictures)
    other, second = run_with(records, variant_of(**SMALL, compile=True), pictures)
    assert same(one, other)
    assert without_seconds(first) == without_seconds(second)
    (times,) = records.written
    assert times.plain_step_seconds > 0
    assert times.compiled_step_seconds > 0
    assert compiler.num_compiled == 1
    # 22 batches: the last one of an epoch is of another size and is never compiled.
    assert compiler.sizes == [2] * (22 - 2 - (NUM_WARM_UPS + NUM_TIMED))
    case = records.cases[0]
    assert (case.backbone, case.heads, case.reads, case.batch_size) == ("squeezenet1_1", "linear+linear", "samples", 2)


@pytest.mark.parametrize("known", [None, NEVER])
def test_a_training_that_cannot_pay_back_compiles_nothing(known: CompileTimes | None, pictures: Path, compiler: Compiler) -> None:
    records = Records(known)
    _, outcome = run_with(records, variant_of(**SMALL, compile=True), pictures)
    assert decided(outcome) == [False, False]
    assert len(records.cases) == 1, "decided once"
    assert (compiler.num_compiled, records.written) == (0, [])


def test_steps_that_are_no_shorter_compiled_run_plain_again(pictures: Path, compiler: Compiler) -> None:
    compiler.seconds = 0.1
    records = Records(FREE)
    _, outcome = run_with(records, variant_of(**{**SMALL, "batch_size": 1, "epochs": 1}, compile=True), pictures)
    (times,) = records.written
    assert times.saved < 0
    assert decided(outcome) == [False]
    assert len(compiler.sizes) == NUM_WARM_UPS + NUM_TIMED


def test_each_phase_decides_for_its_own_steps_within_its_first_epoch(pictures: Path, compiler: Compiler) -> None:
    variant = variant_of("squeezenet1_1", "lp_ft", "linear", epochs=4, compile=True)
    records = Records(FREE)
    _, outcome = run_with(records, variant, pictures)
    assert [case.num_frozen_stages for case in records.cases] == [variant.num_stages, 0]
    # Three full steps an epoch are few to go by, but all that there are; after the first phase's only epoch none are left.
    assert decided(outcome) == [False, True, True, True]
    assert compiler.num_compiled == 1
    assert len(compiler.sizes) == 3 * 2


@pytest.mark.parametrize(("known", "later"), [(FREE, NEVER), (NEVER, FREE)])
def test_a_resumed_training_holds_to_what_was_decided(
    known: CompileTimes, later: CompileTimes, pictures: Path, tmp_path: Path, compiler: Compiler
) -> None:
    variant = variant_of("squeezenet1_1", "none", "linear", epochs=3, compile=True)
    model, outcome = run_with(Records(known), variant, pictures, saves=tmp_path)
    num_compiled = len(compiler.sizes)
    records = Records(later)
    resumed, second = run_with(records, variant, pictures, resume=tmp_path / "0.pt")
    assert records.cases == []
    assert decided(second) == decided(outcome) == [known is FREE] * 3
    assert len(compiler.sizes) == 2 * num_compiled
    assert same(resumed, model)
    assert without_seconds(second) == without_seconds(outcome)


def test_a_checkpoint_of_an_earlier_version_goes_on_compiled_and_a_plain_one_says_nothing_new(
    pictures: Path, tmp_path: Path, compiler: Compiler
) -> None:
    variant = variant_of("squeezenet1_1", "none", "linear", epochs=2, compile=True)
    run_with(Records(FREE), variant, pictures, saves=tmp_path)
    state = torch.load(tmp_path / "0.pt", weights_only=True)
    del state["epochs"][0]["is_compiled"]
    torch.save(state, tmp_path / "before.pt")
    assert checkpoint.load(tmp_path / "before.pt", variant).epochs[0].is_compiled is None
    compiler.sizes.clear()
    run_with(Records(NEVER), variant, pictures, resume=tmp_path / "before.pt")
    assert len(compiler.sizes) == 3
    run_with(None, variant_of("squeezenet1_1", "none", "linear", epochs=1), pictures, saves=tmp_path)
    assert "is_compiled" not in torch.load(tmp_path / "0.pt", weights_only=True)["epochs"][0]


def test_where_torch_compile_fails_it_is_said_what_to_do(pictures: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise type("Unsupported", (RuntimeError,), {"__module__": "torch._dynamo.exc"})("no compiler")

    monkeypatch.setattr(torch, "compile", lambda forward, **_: fail)
    with pytest.raises(HeadsError, match=r"torch.compile failed \(no compiler\); train with compile: false"):
        run_with(Records(FREE), variant_of(**SMALL, compile=True), pictures)


def test_a_really_compiled_head_trains_as_a_plain_one_and_resumes(photos: Path, tmp_path: Path) -> None:
    plain, compiled = (
        stored_training.variant_of(stored_training.LINEAR, optimiser="sgd", epochs=6, batch_size=8, compile=on)
        for on in (False, True)
    )
    sets, store = stored_training.datasets(photos, plain), FeatureStore(tmp_path / "store")
    stored_training.fill(plain, sets, store)

    def fit(variant: Variant, **how: Any) -> tuple[Model, TrainingOutcome]:
        return stored_training.run(variant, sets, stored_training.loaders_of(variant, sets, store), **how)

    def keep(epoch: Any, save: Callable[[Path], None]) -> None:
        save(tmp_path / f"{epoch.index}.pt")

    records = Records(FREE)
    (one, _), (other, outcome) = fit(plain), fit(compiled, compile_records=records, on_epoch=keep)
    assert decided(outcome) == [True] * 6
    assert records.cases[0].reads == "features"
    (times,) = records.written
    assert times.compile_seconds > 10 * times.compiled_step_seconds
    assert stored_training.distance(one, other) < 1e-5
    resumed, _ = fit(compiled, compile_records=Records(NEVER), resume=tmp_path / "2.pt")
    assert same(resumed, other)
