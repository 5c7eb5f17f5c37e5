"""The driver of a job: it stays for another job, and ends when it is told so, or told nothing; and when it trains by itself."""

from __future__ import annotations

import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from flows import job
from flows.errors import AskedWrongly
from flows.job import __main__ as driver
from flows.plan import parse_plan
from flows.records import DataVersion, Sample, Weights, Work, Workers
from flows.settings import Settings
from flows.stages.driver_training import trains_in_driver
from flows.stages.values import WorkPlan
from heads.spec import Fit, Head, Variant


def _begin(storage: Path, key: str) -> job.JobFolder:
    version = DataVersion("d" * 32, "r" * 40, (), storage / "data", ())
    return job.write_job(job.Job("score", key, "tiny", storage, version, {"label": ("a", "b")}, Workers()))


def _wait_for_outcome(folder: job.JobFolder) -> None:
    end_at = time.monotonic() + 60
    while not folder.has_outcome():
        assert time.monotonic() < end_at
        time.sleep(0.02)


def test_a_driver_that_stays_does_what_it_is_handed_and_ends_when_told(tmp_path: Path) -> None:
    first, second = (_begin(tmp_path, key) for key in ("a", "b"))
    with ThreadPoolExecutor(1) as pool:
        ended = pool.submit(driver.main, first.job_file, "--stay")
        _wait_for_outcome(first)
        first.hand_on(second.job_file)
        _wait_for_outcome(second)
        assert not ended.done()
        second.hand_on("")
        assert ended.result(10) == 0
    assert second.read_outcome() == job.JobOutcome(scores={})


def test_a_driver_without_a_job_waits_for_its_first_and_leaves_no_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    begun, order = job.new_folder(tmp_path), _begin(tmp_path, "a")
    with ThreadPoolExecutor(1) as pool:
        ended = pool.submit(driver.main, begun.job_file, "--wait")
        begun.hand_on(order.job_file)
        _wait_for_outcome(order)
        assert begun.place.facts() == {}
        order.hand_on("")
        assert ended.result(10) == 0
    monkeypatch.setattr(driver, "STAY_SECONDS", 0.3)
    assert driver.main(job.new_folder(tmp_path).job_file, "--wait") == 0
    assert [path.name for path in (tmp_path / "jobs").iterdir()] == ["score-a"]


def test_a_driver_that_is_told_nothing_ends_by_itself_and_one_that_does_not_stay_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(driver, "STAY_SECONDS", 0.3)
    folder, began = _begin(tmp_path, "a"), time.monotonic()
    assert driver.main(folder.job_file, "--stay") == 0
    assert time.monotonic() - began > 0.3
    monkeypatch.setattr(driver, "STAY_SECONDS", 600.0)
    assert driver.main(folder.job_file) == 0


def test_a_job_that_a_staying_driver_cannot_do_ends_it_with_the_reason(tmp_path: Path) -> None:
    first, second = _begin(tmp_path, "a"), _begin(tmp_path, "b")
    first.hand_on(second.job_file)
    second.place.remove("samples.json")
    status: list[int] = []
    thread = threading.Thread(target=lambda: status.append(driver.main(first.job_file, "--stay")))
    thread.start()
    thread.join(60)
    assert status == [1]
    with pytest.raises(AskedWrongly, match="holds no job: it was removed meanwhile"):
        second.read_outcome()


def test_a_job_asked_for_again_hands_its_driver_nothing_of_before(tmp_path: Path) -> None:
    folder = _begin(tmp_path, "a")
    folder.hand_on("")
    folder.forget()
    assert folder.read_next() is None


def _trains(
    folder: Path, freeze: str, workers: object = 1, *, samples: int = 40, design: str = "linear", ray: str | None = None
) -> bool:
    """Whether the driver trains a variant of this policy and design by itself, with these workers and so many samples."""
    rows = [Sample(f"{n:032x}", f"{n}.png", ("train", "val")[n % 2], {"label": "ab"[n // 2 % 2]}) for n in range(samples)]
    version = DataVersion("d" * 32, "r" * 40, tuple(rows), folder, ())
    asked = {"name": "x", "backbones": ["resnet18"], "weights": "none", "freeze": "none"}
    plan = parse_plan(asked | {"workers": workers if isinstance(workers, dict) else {"count": workers}})
    variant = Variant(backbone="resnet18", heads=(Head(target="label", design=design),), freeze=freeze, fit=Fit(epochs=2))
    work_plan = WorkPlan(plan, version, (Work("w", variant, Weights("w")),), "label/accuracy", "k")
    settings = Settings(workspace=folder, storage_root=folder / "storage", ray_address=ray)
    return trains_in_driver(settings, work_plan, [work for work in work_plan.works if not work_plan.is_done(settings, work)])


def test_a_driver_trains_by_itself_what_is_heads_alone_and_done_before_a_group_would_have_started(tmp_path: Path) -> None:
    assert _trains(tmp_path, "all")
    assert _trains(tmp_path, "all", samples=40_000), "a group of one would be no faster"
    assert _trains(tmp_path, "all", 2)
    assert not _trains(tmp_path, "all", 2, samples=40_000), "a group of two would be"
    assert _trains(tmp_path, "all", design="attention")
    assert not _trains(tmp_path, "all", 2, design="attention"), "what heads compute on maps is not estimated"


def test_a_backbone_that_learns_has_a_group_and_so_has_all_that_this_machines_processors_do_not_train(
    tmp_path: Path,
) -> None:
    assert not any(_trains(tmp_path, freeze) for freeze in ("none", "lp_ft", "upto:layer3"))
    assert not _trains(tmp_path, "all", {"count": 1, "gpus_per_worker": 1})
    assert not _trains(tmp_path, "all", ray="http://127.0.0.1:1")
