"""MLflow runs against real SQLite databases and a real server that is killed on the way."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import socket
import sqlite3
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from flows import tracking
from flows.errors import AskedWrongly, HeadstartError, Unreachable
from flows.mlflow_connection import check, connect, database_file
from flows.places import open_place
from flows.records import Verdict, Weights, Work
from flows.tracking import Origin, Tracker, VariantRuns
from flows.tracking.moving import follow_move
from flows.work_records import EpochRecord, WorkResult
from heads.spec import Fit, Head, Variant

VERSION = "3eaab9e1b6c9a3f2d1c0b9a8f7e6d5c4.dir"
ORIGIN = Origin(VERSION, "rev1", "/data/objects", git_commit="c0ffee", flow_run_id="flow-1")
MEASURE = "val/label/accuracy"


def make_work(seed: int) -> Work:
    variant = Variant(backbone="resnet18", heads=(Head(target="label"),), fit=Fit(epochs=3, seed=seed))
    return Work(f"{seed:016x}", variant, Weights("none"))


def make_epochs(num: int) -> list[dict[str, Any]]:
    return [{"epoch": i, "phase": 0, "metrics": {MEASURE: i / 10, "train/loss": 1 - i / 10}, "seconds": 0.5} for i in range(num)]


def epoch_records(num: int) -> list[EpochRecord]:
    return [EpochRecord(**epoch) for epoch in make_epochs(num)]


def write(file: Path, value: Any) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    made = file.with_suffix(".part")
    made.write_text(json.dumps(value))
    made.rename(file)


def progress(root: Path, work: Work, num_epochs: int) -> None:
    write(root / work.key / "progress.json", {"work_key": work.key, "epochs": make_epochs(num_epochs)})


def finish(root: Path, work: Work) -> None:
    folder = root / work.key
    (folder / "bundle").mkdir(parents=True)
    (folder / "bundle" / "card.md").write_text("a card")
    counts = {"num_parameters": 10, "num_trained_parameters": 2, "num_forwarded": 30, "seconds": 1.5, "best_epoch": 1}
    confusion = {"confusion": {"label": [[1, 0], [0, 1]]}, "classes": {"label": ["a", "b"]}}
    epochs = {"metrics": {MEASURE: 0.1, "train/loss": 0.9}, "epochs": make_epochs(3)}
    about = {"work_key": work.key, "ended": "all 3 epochs are done", "variant": work.variant.model_dump(mode="json")}
    write(folder / "result.json", {**about, **counts, **confusion, **epochs})


def draw(result: WorkResult) -> dict[str, bytes]:
    return {"learning_curves.png": b"a picture of " + result.work_key.encode()}


@pytest.fixture(scope="module")
def address(tmp_path_factory: pytest.TempPathFactory) -> str:
    return f"sqlite:///{tmp_path_factory.mktemp('mlflow')}/deep/er/mlflow.db"


@pytest.fixture
def tracker(address: str, tmp_path: Path) -> Tracker:
    return Tracker(address, tmp_path / "artifacts", f"pets-{tmp_path.name}")


def variant_runs(tracker: Tracker, parent: str, works: Sequence[Work], root: Path) -> VariantRuns:
    """The runs of the works whose folders lie in `root`."""
    return VariantRuns(tracker, parent, works, open_place(root), ORIGIN)


def runs(tracker: Tracker) -> dict[str, Any]:
    """Every run of the tracker's experiment by its name, as MLflow tells it."""
    return {run.info.run_name: run for run in tracker._find()}


def states(tracker: Tracker, run_ids: Mapping[str, str]) -> list[str]:
    """The status of each of these runs."""
    return [tracker._client.get_run(run_id).info.status for run_id in run_ids.values()]


def curve(tracker: Tracker, run_id: str, name: str) -> list[tuple[int, float]]:
    """A metric's points: step and value."""
    return [(point.step, point.value) for point in tracker._client.get_metric_history(run_id, name)]


def wait_for(said: Callable[[], Any], seconds: float = 30.0) -> None:
    end = time.monotonic() + seconds
    while not said():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.05)


def test_a_retraining_and_its_variant_say_where_they_come_from(tracker: Tracker) -> None:
    parent = tracker.start_retraining("key1", ORIGIN, {"name": "pets", "fit": {"epochs": [1, 2]}, "weights": None})
    child = tracker.start_variant(parent, make_work(1), ORIGIN)
    run = tracker._client.get_run(child)
    assert run.data.tags["mlflow.parentRunId"] == parent
    assert run.data.tags["headstart.data_version"] == VERSION
    assert run.data.tags["headstart.git_commit"] == run.data.tags["mlflow.source.git.commit"] == "c0ffee"
    assert run.data.tags["headstart.variant_id"] == make_work(1).variant.variant_id
    assert run.data.params["fit.learning_rate"] == "0.001"
    assert run.data.params["heads.label.design"] == "linear"
    assert run.inputs is not None
    data = run.inputs.dataset_inputs[0]
    assert (data.dataset.name, data.dataset.digest) == (tracker.name, VERSION)
    assert {tag.key: tag.value for tag in data.tags}["mlflow.data.context"] == "training"
    assert tracker._client.get_run(parent).data.params == {"name": "pets", "fit.epochs": "[1, 2]"}


def test_starting_twice_gives_the_same_runs(tracker: Tracker) -> None:
    parent = tracker.start_retraining("key1", ORIGIN)
    child = tracker.start_variant(parent, make_work(1), ORIGIN)
    again = Tracker(tracker.address, tracker.artifacts, tracker.name)
    assert again.start_retraining("key1", replace(ORIGIN, flow_run_id="flow-2")) == parent
    assert again.start_variant(parent, make_work(1), ORIGIN) == child
    assert len(runs(tracker)) == 2
    inputs = tracker._client.get_run(child).inputs
    assert inputs is not None
    assert len(inputs.dataset_inputs) == 1
    assert tracker._client.get_run(parent).data.tags["headstart.flow_run_id"] == "flow-2"


def test_epochs_are_logged_once_however_often_they_are_given(tracker: Tracker) -> None:
    run_id = tracker.start_variant(tracker.start_retraining("key1", ORIGIN), make_work(1), ORIGIN)
    for num_epochs in (1, 1, 3, 2, 3):
        tracker.log_epochs(run_id, epoch_records(num_epochs))
    assert curve(tracker, run_id, f"epoch/{MEASURE}") == [(0, 0.0), (1, 0.1), (2, 0.2)]


def test_what_mlflow_shows_of_a_run_is_its_best_epoch_and_its_curve_ends_with_its_last(tracker: Tracker, tmp_path: Path) -> None:
    work = make_work(1)
    progress(tmp_path, work, 2)
    parent = tracker.start_retraining("key1", ORIGIN)
    run_id = variant_runs(tracker, parent, [work], tmp_path).fill_in(draw)[work.key]
    assert MEASURE not in tracker._client.get_run(run_id).data.metrics, "no measure of a model that is not there yet"
    finish(tmp_path, work)
    variant_runs(tracker, parent, [work], tmp_path).fill_in(draw)
    assert curve(tracker, run_id, f"epoch/{MEASURE}") == [(0, 0.0), (1, 0.1), (2, 0.2)]
    assert curve(tracker, run_id, MEASURE) == [(1, 0.1)]
    assert curve(tracker, run_id, "train/loss") == [(1, 0.9)]
    shown = tracker._client.get_run(run_id).data.metrics
    assert (shown[MEASURE], shown[f"epoch/{MEASURE}"], shown["epoch"]) == (0.1, 0.2, 2)


def test_a_run_begun_when_curves_had_the_measures_own_names_still_shows_its_best_epoch(tracker: Tracker, tmp_path: Path) -> None:
    work = make_work(1)
    run_id = tracker.start_variant(tracker.start_retraining("key1", ORIGIN), work, ORIGIN)
    for step, value in enumerate((0.0, 0.1, 0.2)):
        tracker._client.log_metric(run_id, MEASURE, value, step=step)
    finish(tmp_path, work)
    variant_runs(tracker, "none", [work], tmp_path).fill_in(draw)
    assert tracker._client.get_run(run_id).data.metrics[MEASURE] == 0.1


def test_a_retraining_is_called_by_its_plan_its_day_and_its_data(tracker: Tracker) -> None:
    name = tracker._client.get_run(tracker.start_retraining("key1", ORIGIN)).info.run_name
    assert re.fullmatch(rf"{tracker.name} \d{{4}}-\d\d-\d\d \d\d:\d\d, data {VERSION[:8]}", name)


def test_a_run_and_a_version_have_a_page_where_mlflow_is_a_server_alone() -> None:
    assert (
        tracking.run_page("http://ml:5000/", "3", "abc")
        == "http://ml:5000/#/experiments/3/runs/abc?workflowType=machine_learning"
    )
    assert tracking.version_page("https://ml", "pets", "7") == "https://ml/#/models/pets/versions/7?workflowType=machine_learning"
    assert tracking.run_page("sqlite:////a/mlflow.db", "3", "abc") is None
    assert tracking.version_page("sqlite:////a/mlflow.db", "pets", "7") is None


def test_a_storage_that_moved_or_was_copied_keeps_its_artifacts(tmp_path: Path) -> None:
    def storage(name: str) -> Tracker:
        return Tracker(f"sqlite:///{tmp_path / name / 'mlflow.db'}", tmp_path / name / "artifacts", "pets")

    def seen(tracker: Tracker) -> tuple[str, list[str]]:
        tracking.reach(tracker.address, tracker.artifacts)
        uri = tracker._client.get_run(run_id).info.artifact_uri
        return uri, [file.path for file in tracker._client.list_artifacts(run_id, "bundle")]

    work, first = make_work(1), storage("a")
    finish(tmp_path / "work", work)
    parent = first.start_retraining("key1", ORIGIN)
    run_id = variant_runs(first, parent, [work], tmp_path / "work").fill_in(draw)[work.key]
    assert follow_move(first.address, first.artifacts) == 0

    shutil.copytree(tmp_path / "a", tmp_path / "copy of a")
    uri, files = seen(storage("copy of a"))
    assert (str(tmp_path / "copy of a" / "artifacts") in uri, files) == (True, ["bundle/card.md"])
    (tmp_path / "a").rename(tmp_path / "a%20b")
    moved = storage("a%20b")
    follow_move(moved.address, moved.artifacts)
    with sqlite3.connect(tmp_path / "a%20b" / "mlflow.db") as database:
        found = database.execute(
            "select artifact_uri from runs union select artifact_location from experiments where name = 'pets'"
        )
        assert {str(Path(place).relative_to(moved.artifacts)).split("/")[0] for (place,) in found} == {"pets"}
    # What is logged from now on does not make the old folder again.
    other = storage("copy of a")
    finish(tmp_path / "work", make_work(2))
    variant_runs(other, other.start_retraining("key2", ORIGIN), [make_work(2)], tmp_path / "work").fill_in(draw)
    assert not (tmp_path / "a").exists()


def test_a_database_elsewhere_keeps_the_paths_of_a_storage_that_is_only_not_named_now(tmp_path: Path) -> None:
    address = f"sqlite:///{tmp_path / 'db' / 'mlflow.db'}"
    work = make_work(1)
    finish(tmp_path / "work", work)
    tracker = Tracker(address, tmp_path / "one" / "artifacts", "pets")
    run_id = variant_runs(tracker, tracker.start_retraining("k", ORIGIN), [work], tmp_path / "work").fill_in(draw)[work.key]
    assert follow_move(address, tmp_path / "two" / "artifacts") == 0
    assert [file.path for file in tracker._client.list_artifacts(run_id, "bundle")] == ["bundle/card.md"]
    (tmp_path / "one").rename(tmp_path / "three")
    assert follow_move(address, tmp_path / "two" / "artifacts") == 0, "nothing of it lies there"
    assert follow_move(address, tmp_path / "three" / "artifacts") > 0
    assert [file.path for file in tracker._client.list_artifacts(run_id, "bundle")] == ["bundle/card.md"]


def test_a_name_that_mlflow_does_not_take_is_replaced_not_refused(tracker: Tracker) -> None:
    run_id = tracker.start_retraining("key1", ORIGIN, {"targets": {"a?b=c": 1}, "long": "x" * 9000})
    tracker.log_epochs(run_id, [EpochRecord(0, 0, {"val/größe (cm)/accuracy": float("nan")}, 0.1)])
    run = tracker._client.get_run(run_id)
    assert "targets.a_b_c" in run.data.params
    assert "epoch/val/größe _cm_/accuracy" in run.data.metrics


def test_a_finished_variant_holds_measures_pictures_and_the_bundle(tracker: Tracker, tmp_path: Path) -> None:
    work = make_work(1)
    finish(tmp_path, work)
    result = json.loads((tmp_path / work.key / "result.json").read_text())
    for number, epoch in enumerate(result["epochs"]):
        epoch["is_compiled"] = number > 0
    write(tmp_path / work.key / "result.json", result)
    parent = tracker.start_retraining("key1", ORIGIN)
    run_id = variant_runs(tracker, parent, [work, make_work(2)], tmp_path).fill_in(draw)[work.key]
    run = tracker._client.get_run(run_id)
    assert run.info.status == "FINISHED"
    assert run.data.metrics[MEASURE] == 0.1, "the measures shown are those of the weights kept, not of the last epoch"
    assert run.data.metrics["num_trained_parameters"] == 2
    assert run.data.tags["headstart.ended"] == "all 3 epochs are done"
    assert run.data.tags["headstart.compiled"] == "2 of 3 epochs"
    files = {f.path for folder in ("", "pictures", "bundle") for f in tracker._client.list_artifacts(run_id, folder)}
    assert {"result.json", "pictures/learning_curves.png", "bundle/card.md"} <= files
    assert len(runs(tracker)) == 2, "a work that has not begun has no run"


def test_a_variant_that_failed_for_good_ends_failed_with_its_reason_once(tracker: Tracker, tmp_path: Path) -> None:
    work = make_work(1)
    progress(tmp_path, work, 1)
    parent = tracker.start_retraining("key1", ORIGIN)
    begun = variant_runs(tracker, parent, [work], tmp_path).fill_in(draw)
    write(tmp_path / work.key / "failure.json", {"work_key": work.key, "reason": "it diverged", "epochs": make_epochs(2)})
    assert variant_runs(tracker, parent, [work], tmp_path).fill_in(draw) == begun
    run = tracker._client.get_run(begun[work.key])
    assert (run.info.status, run.data.metrics["epoch"]) == ("FAILED", 1)
    assert run.data.tags["mlflow.note.content"] == "Failed: it diverged"
    variant_runs(tracker, tracker.start_retraining("key2", ORIGIN), [work], tmp_path).fill_in(draw)
    again = tracker._client.get_run(begun[work.key])
    assert again.to_dictionary() == run.to_dictionary()


def test_filling_in_again_changes_nothing(tracker: Tracker, tmp_path: Path) -> None:
    finish(tmp_path, make_work(1))
    parent = tracker.start_retraining("key1", ORIGIN)
    first = variant_runs(tracker, parent, [make_work(1)], tmp_path).fill_in(draw)
    before = tracker._client.get_run(first[make_work(1).key])
    other = tracker.start_retraining("key2", ORIGIN)
    assert variant_runs(tracker, other, [make_work(1)], tmp_path).fill_in(draw) == first
    after = tracker._client.get_run(first[make_work(1).key])
    assert after.to_dictionary() == before.to_dictionary()
    assert after.data.tags["mlflow.parentRunId"] == parent


def test_runs_are_started_first_and_filled_in_until_that_is_to_stop(tracker: Tracker, tmp_path: Path) -> None:
    works, parent, stop = [make_work(1), make_work(2), make_work(3)], tracker.start_retraining("key1", ORIGIN), threading.Event()
    for work in works[:2]:
        finish(tmp_path, work)
    started = variant_runs(tracker, parent, works, tmp_path).start()
    assert list(started) == [work.key for work in works[:2]], "not of what has not begun"
    assert states(tracker, started) == ["RUNNING", "RUNNING"]

    def draw_and_stop(result: WorkResult) -> dict[str, bytes]:
        stop.set()
        return draw(result)

    first = works[0].key
    assert variant_runs(tracker, parent, works, tmp_path).fill_in(draw_and_stop, stop) == {first: started[first]}
    assert variant_runs(tracker, parent, works, tmp_path).fill_in(draw) == started
    assert variant_runs(tracker, parent, works, tmp_path).start() == started
    assert states(tracker, started) == ["FINISHED", "FINISHED"], "a complete run stays as it is"


def test_following_logs_while_works_train_and_ends_when_all_are_done(tracker: Tracker, tmp_path: Path) -> None:
    works = [make_work(1), make_work(2)]
    parent = tracker.start_retraining("key1", ORIGIN)
    thread = threading.Thread(target=variant_runs(tracker, parent, works, tmp_path).follow, args=(draw, threading.Event(), 0.05))
    thread.start()
    progress(tmp_path, works[0], 1)
    wait_for(lambda: len(runs(tracker)) == 2)
    progress(tmp_path, works[0], 2)
    wait_for(lambda: any(run.data.metrics.get("epoch") == 1 for run in runs(tracker).values()))
    finish(tmp_path, works[0])
    finish(tmp_path, works[1])
    thread.join(30)
    assert not thread.is_alive()
    assert sorted(run.info.status for run in runs(tracker).values()) == ["FINISHED", "FINISHED", "RUNNING"]


def test_following_rests_beside_a_training_and_ends_with_it(tracker: Tracker, tmp_path: Path) -> None:
    works, ended = [make_work(1), make_work(2)], threading.Event()
    parent = tracker.start_retraining("key1", ORIGIN)

    def draw_slowly(result: WorkResult) -> dict[str, bytes]:
        end = time.thread_time() + 2
        while time.thread_time() < end:
            pass
        return {}

    for work in works:
        finish(tmp_path, work)
    thread = threading.Thread(target=variant_runs(tracker, parent, works, tmp_path).follow, args=(draw_slowly, ended))
    thread.start()
    # The parent's run is one of them.
    wait_for(lambda: sorted(run.info.status for run in runs(tracker).values()) == ["FINISHED", "RUNNING"])
    # The second would begin at once: now it waits for nine times the processor time that the first one took.
    time.sleep(3)
    assert len(runs(tracker)) == 2
    ended.set()
    thread.join(5)
    assert not thread.is_alive()
    assert len(runs(tracker)) == 2


def test_following_stops_when_told(tracker: Tracker, tmp_path: Path) -> None:
    stop = threading.Event()
    thread = threading.Thread(target=variant_runs(tracker, "none", [make_work(1)], tmp_path).follow, args=(draw, stop))
    thread.start()
    stop.set()
    thread.join(5)
    assert not thread.is_alive()


def test_a_closed_retraining_tells_its_leaderboard_and_verdict(tracker: Tracker) -> None:
    parent = tracker.start_retraining("key1", ORIGIN)
    child = tracker.start_variant(parent, make_work(1), ORIGIN)
    rows = [{"variant": "a|b", MEASURE: 0.97123456, "run_id": child}]
    verdict = Verdict(False, ("it is not better: 3 against 4 samples, p = 1.0",), {"p": 1.0})
    for _ in range(2):
        tracker.close_retraining(
            parent,
            "FINISHED",
            leaderboard=rows,
            verdict=verdict,
            metrics={"label/accuracy": 0.9},
            pictures={"board.png": b"png"},
            baseline="majority",
        )
    run = tracker._client.get_run(parent)
    assert run.info.status == "FINISHED"
    assert run.data.metrics["label/accuracy"] == 0.9
    assert run.data.tags["headstart.baseline"] == "majority"
    assert "3 against 4" in run.data.tags["mlflow.note.content"]
    assert "a\\|b" in run.data.tags["mlflow.note.content"]
    files = {file.path for folder in ("", "pictures") for file in tracker._client.list_artifacts(parent, folder)}
    assert {"verdict.json", "leaderboard.json", "leaderboard.md", "pictures/board.png"} <= files
    assert tracker._client.get_run(child).info.status == "FAILED", "no child outlives its parent"


def test_runs_whose_retraining_is_gone_are_killed_and_go_on_when_it_returns(tracker: Tracker) -> None:
    gone = tracker.start_retraining("gone", ORIGIN)
    child = tracker.start_variant(gone, make_work(1), ORIGIN)
    assert tracker.repair() == (gone,)
    assert [tracker._client.get_run(run).info.status for run in (gone, child)] == ["KILLED", "KILLED"]
    assert tracker.repair() == ()
    assert tracker.start_variant(tracker.start_retraining("gone", ORIGIN), make_work(1), ORIGIN) == child
    assert [tracker._client.get_run(run).info.status for run in (gone, child)] == ["RUNNING", "RUNNING"]


def test_a_variant_that_a_job_opens_again_after_its_retraining_was_killed_does_not_say_running_for_ever(tracker: Tracker) -> None:
    gone = tracker.start_retraining("gone", ORIGIN)
    left = tracker.start_variant(gone, make_work(1), ORIGIN)
    tracker.repair()
    assert tracker.start_variant(gone, make_work(1), ORIGIN) == left, "its job's driver lives on for a while"
    mine = tracker.start_variant(tracker.start_retraining("mine", ORIGIN), make_work(2), ORIGIN)
    tracker.end_abandoned()
    assert [tracker._client.get_run(run).info.status for run in (left, mine)] == ["KILLED", "RUNNING"]
    tracker.start_variant(gone, make_work(1), ORIGIN)
    tracker.repair()
    assert [tracker._client.get_run(run).info.status for run in (left, mine)] == ["KILLED", "KILLED"]


def test_stopping_a_flow_run_kills_its_runs_and_no_other(tracker: Tracker) -> None:
    mine = tracker.start_retraining("mine", replace(ORIGIN, flow_run_id=tracker.name))
    child = tracker.start_variant(mine, make_work(1), ORIGIN)
    other = tracker.start_retraining("other", replace(ORIGIN, flow_run_id="another"))
    assert tracking.stop_runs(tracker.address, tracker.name) == (mine,)
    assert [tracker._client.get_run(run).info.status for run in (mine, child, other)] == ["KILLED", "KILLED", "RUNNING"]


def test_an_experiment_that_someone_deleted_is_restored(tracker: Tracker) -> None:
    parent = tracker.start_retraining("key1", ORIGIN)
    tracker._client.delete_experiment(tracker._experiment)
    again = Tracker(tracker.address, tracker.artifacts, tracker.name)
    assert again.start_retraining("key1", ORIGIN)
    assert again._client.get_experiment(tracker._experiment).lifecycle_stage == "active"
    assert parent


@pytest.mark.parametrize("wrong", ["", "mlruns", "file:///tmp/mlruns", "http:/x"])
def test_an_address_that_mlflow_does_not_take_is_asked_wrongly(wrong: str) -> None:
    with pytest.raises(AskedWrongly, match="HEADSTART_TRACKING_ADDRESS"):
        check(wrong)


@pytest.mark.parametrize("ask", [check, connect])
def test_an_address_with_a_password_is_refused_without_repeating_it(ask: Callable[[str], object]) -> None:
    with pytest.raises(AskedWrongly, match="MLFLOW_TRACKING_PASSWORD") as refused:
        ask("https://me:hidden@mlflow.example")
    assert "hidden" not in str(refused.value)


def test_a_server_that_does_not_answer_is_found_within_ten_seconds() -> None:
    with socket.socket() as deaf:
        deaf.bind(("127.0.0.1", 0))
        deaf.listen()
        started = time.monotonic()
        silent, nobody = f"http://127.0.0.1:{deaf.getsockname()[1]}", "http://127.0.0.1:1"
        for address in (nobody, silent):
            with pytest.raises(Unreachable, match=f"{address}.*headstart up"):
                check(address)
        assert time.monotonic() - started < 10


def test_a_database_that_can_not_be_made_is_unreachable(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(Unreachable, match=r"mlflow\.db"):
        check(f"sqlite:///{tmp_path / 'file' / 'mlflow.db'}")
    check(f"sqlite:///{tmp_path / 'new' / 'folder' / 'mlflow.db'}")
    assert not (tmp_path / "new").exists()


def test_a_failure_of_mlflow_is_one_of_ours(tracker: Tracker) -> None:
    with pytest.raises(HeadstartError, match="no-such-run"):
        tracker.log_epochs("no-such-run", epoch_records(1))


WRITER = """
import json, sys
from pathlib import Path
from flows import tracking
from flows.places import open_place
from flows.records import Weights, Work
from heads.spec import Fit, Head, Variant
address, artifacts, root, name, first, last = sys.argv[1:]
origin = tracking.Origin("v", "r", "/data")
works = [Work(f"{i:016x}", Variant(backbone="resnet18", heads=(Head(target="label"),), fit=Fit(seed=i)), Weights("none"))
         for i in range(int(first), int(last))]
tracker = tracking.Tracker(address, Path(artifacts), name)
parent = tracker.start_retraining(f"key-{first}", origin)
runs = tracking.VariantRuns(tracker, parent, works, open_place(Path(root)), origin)
print(json.dumps(runs.fill_in(lambda result: {"a.png": b"a"})))
"""


def writer(tracker: Tracker, root: Path, first: int, last: int) -> subprocess.Popen[str]:
    """Another process that fills in the works of the seeds first to last."""
    command = [sys.executable, "-W", "ignore", "-c", WRITER, tracker.address, str(tracker.artifacts), str(root), tracker.name]
    project = str(Path(__file__).parents[2])
    env = os.environ | {"PYTHONPATH": project}
    pipe = subprocess.PIPE
    return subprocess.Popen([*command, str(first), str(last)], stdout=pipe, stderr=pipe, text=True, env=env, cwd=root)


def test_two_processes_make_a_missing_database_and_write_to_it_at_once(tmp_path: Path) -> None:
    tracker = Tracker(f"sqlite:///{tmp_path / 'new' / 'mlflow.db'}", tmp_path / "artifacts", "pets")
    root = tmp_path / "work"
    for seed in range(8):
        finish(root, make_work(seed))
    writers = [writer(tracker, root, 0, 4), writer(tracker, root, 4, 8)]
    for process in writers:
        out, err = process.communicate(timeout=120)
        assert process.returncode == 0, err
        assert len(json.loads(out)) == 4, "standard output holds nothing but what was asked for"
        assert err == "", "MLflow chatters on standard error"
    found = list(tracker._find())
    assert len(list(tracker._find("tags.`headstart.kind` = 'variant'", "attributes.status = 'FINISHED'"))) == 8
    assert len(found) == 10
    left = {path.name for path in root.iterdir()} - {make_work(seed).key for seed in range(8)}
    assert not left, "something is left in the folder it ran in"


def start_server(database: Path, port: int) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-W", "ignore", "-m", "mlflow", "server", "--host", "127.0.0.1", "--port", str(port)]
    served = str(database.parent / "served")
    stores = ["--workers", "1", "--backend-store-uri", f"sqlite:///{database}", "--artifacts-destination", served]
    env = os.environ | {"MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false", "MLFLOW_DISABLE_TELEMETRY": "true", "DO_NOT_TRACK": "1"}
    quiet = subprocess.DEVNULL
    return subprocess.Popen([*command, *stores], stdout=quiet, stderr=quiet, env=env, cwd=database.parent, start_new_session=True)


def kill(server: subprocess.Popen[bytes]) -> None:
    """Kill the server with its worker: it leads a process group of its own."""
    os.killpg(server.pid, signal.SIGKILL)
    server.wait(30)


def answers(address: str) -> bool:
    try:
        check(address)
    except Unreachable:
        return False
    return True


@pytest.fixture
def server(tracker: Tracker, tmp_path: Path) -> Iterator[tuple[str, Callable[[], None], Callable[[], None]]]:
    """An address, and how to start and to kill the real server there; its database is a copy, as making one takes seconds."""
    tracker.start_retraining("other", ORIGIN)
    shutil.copy(str(database_file(tracker.address)), tmp_path / "mlflow.db")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    running: list[subprocess.Popen[bytes]] = []
    address = f"http://127.0.0.1:{port}"

    def start() -> None:
        running.append(start_server(tmp_path / "mlflow.db", port))
        wait_for(lambda: answers(address), 90)

    def stop() -> None:
        kill(running.pop())

    yield address, start, stop
    while running:
        stop()


@pytest.mark.slow
def test_a_server_killed_in_the_middle_costs_no_training_and_no_run(
    server: tuple[str, Callable[[], None], Callable[[], None]], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    address, start, kill_server = server
    works, root = [make_work(1), make_work(2)], tmp_path / "work"
    start()
    tracker = Tracker(address, tmp_path / "unused", "pets")
    parent = tracker.start_retraining("key1", ORIGIN)
    stop = threading.Event()
    follower = threading.Thread(target=variant_runs(tracker, parent, works, root).follow, args=(draw, stop, 0.1))
    follower.start()
    progress(root, works[0], 1)
    wait_for(lambda: len(runs(tracker)) == 2)

    kill_server()
    finish(root, works[0])
    progress(root, works[1], 2)
    wait_for(lambda: "the training goes on" in caplog.text)
    assert follower.is_alive()
    stop.set()
    follower.join(30)
    assert not follower.is_alive()
    with pytest.raises(Unreachable):
        variant_runs(tracker, parent, works, root).fill_in(draw)

    finish(root, works[1])
    start()
    filled = variant_runs(tracker, parent, works, root).fill_in(draw)
    assert set(filled) == {work.key for work in works}
    for run_id in filled.values():
        run = tracker._client.get_run(run_id)
        assert (run.info.status, run.data.metrics[MEASURE], run.data.metrics["epoch"]) == ("FINISHED", 0.1, 2)
        assert [file.path for file in tracker._client.list_artifacts(run_id, "bundle")] == ["bundle/card.md"]
    assert len(runs(tracker)) == 3
