"""What a work and a job leave on disk: the same bytes for the same values, and older files still read."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from flows import job
from flows.errors import AskedWrongly, HeadstartError
from flows.job.job_folder import GroupStart
from flows.job.training.checkpoint_note import CheckpointNote, read_note, write_note
from flows.records import Weights, Work
from flows.work_folder import WorkFolder, read_trained
from flows.work_records import EpochRecord, MaskExample, WorkFailure, WorkResult
from heads.spec import Head, Variant

EPOCHS = (
    EpochRecord(0, 0, {"val/a/loss": 0.5}, 1.25, 3, ("stage 2 thaws: it moved",)),
    EpochRecord(1, 1, {"val/a/loss": 0.25}, 2, 0, (), "all 2 epochs are done"),
)
EPOCHS_WRITTEN = (
    '[{"epoch": 0, "phase": 0, "metrics": {"val/a/loss": 0.5}, "seconds": 1.25, "num_frozen_stages": 3, '
    '"decisions": ["stage 2 thaws: it moved"]}, '
    '{"epoch": 1, "phase": 1, "metrics": {"val/a/loss": 0.25}, "seconds": 2, "num_frozen_stages": 0, "decisions": [], '
    '"ended": "all 2 epochs are done"}]'
)
RESULT = WorkResult(
    work_key="w1",
    variant={"backbone": "resnet18"},
    metrics={"val/a/accuracy": 1},
    num_parameters=9,
    num_trained_parameters=3,
    num_forwarded=40,
    num_features_read=20,
    flops=7,
    flops_alone=11,
    seconds=3.5,
    shared_seconds=0.25,
    gpu_seconds=0,
    best_epoch=1,
    ended="all 2 epochs are done",
    epochs=EPOCHS,
    confusion={"a": [[1, 0], [0, 1]]},
    classes={"a": ["x", "y"]},
    examples=(MaskExample("m", "1.png", 0.5, {"0": "#000000"}, "examples/i.png", "examples/t.png", "examples/p.png"),),
)
RESULT_WRITTEN = (
    '{"work_key": "w1", "variant": {"backbone": "resnet18"}, "metrics": {"val/a/accuracy": 1}, "num_parameters": 9, '
    '"num_trained_parameters": 3, "num_forwarded": 40, "num_features_read": 20, "flops": 7, "flops_alone": 11, '
    '"seconds": 3.5, "shared_seconds": 0.25, "gpu_seconds": 0, "best_epoch": 1, "ended": "all 2 epochs are done", '
    f'"epochs": {EPOCHS_WRITTEN}, "confusion": {{"a": [[1, 0], [0, 1]]}}, "classes": {{"a": ["x", "y"]}}, '
    '"examples": [{"target": "m", "file": "1.png", "right": 0.5, "colours": {"0": "#000000"}, "image": "examples/i.png", '
    '"truth": "examples/t.png", "told": "examples/p.png"}]}'
)


@pytest.fixture
def folder(tmp_path: Path) -> WorkFolder:
    return WorkFolder.of(tmp_path, "w1")


def test_a_results_bytes_are_these_and_are_read_as_the_same_value(folder: WorkFolder) -> None:
    folder.write_result(RESULT)
    assert (folder.place.path / "result.json").read_text() == RESULT_WRITTEN
    assert folder.read_result() == RESULT
    assert folder.is_finished()


def test_a_failures_and_a_progress_bytes_are_these_and_are_read_as_the_same_values(folder: WorkFolder) -> None:
    folder.add_progress("w1", EPOCHS[:1])
    assert not folder.is_finished()
    folder.add_progress("w1", EPOCHS)
    assert (folder.place.path / "progress.json").read_text() == f'{{"work_key": "w1", "epochs": {EPOCHS_WRITTEN}}}'
    assert folder.read_progress() == EPOCHS
    folder.write_failure(WorkFailure("w1", "it diverged", EPOCHS))
    written = f'{{"work_key": "w1", "reason": "it diverged", "epochs": {EPOCHS_WRITTEN}}}'
    assert (folder.place.path / "failure.json").read_text() == written
    assert folder.read_failure() == WorkFailure("w1", "it diverged", EPOCHS)
    assert folder.is_finished()


def test_an_older_result_and_one_of_a_later_version_are_read(folder: WorkFolder, tmp_path: Path) -> None:
    known = ("metrics", "num_parameters", "num_trained_parameters", "num_forwarded", "seconds", "confusion", "classes")
    old = {name: json.loads(RESULT_WRITTEN)[name] for name in ("work_key", *known)}
    epoch = {"epoch": 0, "phase": 0, "metrics": {}, "seconds": 0.5}
    folder.place.path.mkdir(parents=True)
    (folder.place.path / "result.json").write_text(json.dumps(old | {"epochs": [epoch], "of a later version": 1}))
    found = folder.read_result()
    assert found is not None
    assert (found.epochs, found.flops, found.examples) == ((EpochRecord(0, 0, {}, 0.5),), None, None)
    work = Work("w1", Variant(backbone="resnet18", heads=(Head(target="a"),)), Weights("none"))
    trained = read_trained(tmp_path, work, reused=True)
    assert (trained.seconds, trained.flops, trained.gpu_seconds) == (3.5, 0, 0)


def test_a_work_without_a_result_is_no_trained_variant(tmp_path: Path) -> None:
    work = Work("w1", Variant(backbone="resnet18", heads=(Head(target="a"),)), Weights("none"))
    with pytest.raises(FileNotFoundError, match="the work w1 has no result"):
        read_trained(tmp_path, work, reused=True)


def test_a_jobs_outcome_comes_home_with_what_its_members_stored(tmp_path: Path) -> None:
    trained, scored = job.JobFolder.at(tmp_path / "train-k"), job.JobFolder.at(tmp_path / "score-k")
    assert trained.read_outcome() is None
    trained.write_stored(40, 2.5e9)
    trained.write_outcome(job.JobOutcome(("w1",), ("w2",), 55, 1.5))
    written = '{"trained": ["w1"], "reused": ["w2"], "num_forwarded": 55, "seconds": 1.5}'
    assert (trained.place.path / "outcome.json").read_text() == written
    assert trained.read_outcome() == job.JobOutcome(("w1",), ("w2",), 55, 1.5, 2_500_000_000)
    scored.write_outcome(job.JobOutcome(scores={"bundle": "scores.json"}, num_forwarded=7))
    assert (scored.place.path / "outcome.json").read_text() == '{"scores": {"bundle": "scores.json"}, "num_forwarded": 7}'
    assert scored.read_outcome() == job.JobOutcome(scores={"bundle": "scores.json"}, num_forwarded=7)
    (scored.place.path / "outcome.json").write_text('{"scores": {"bundle": "scores.json"}}')
    assert scored.read_outcome() == job.JobOutcome(scores={"bundle": "scores.json"}), "as jobs of before wrote it"


@pytest.mark.parametrize(("error", "raised"), [(AskedWrongly("no such head"), AskedWrongly), (OSError("gone"), HeadstartError)])
def test_the_first_error_of_a_job_is_the_one_that_is_raised(tmp_path: Path, error: Exception, raised: type[Exception]) -> None:
    folder = job.JobFolder.at(tmp_path)
    folder.write_error(error)
    folder.write_error(ValueError("another"))
    assert folder.has_failed()
    with pytest.raises(raised, match=str(error)):
        folder.read_outcome()


def _deep(depth: int) -> None:
    # Two functions in turns, since Python tells a frame that repeats only once.
    _deeper(depth - 1) if depth else json.loads("{")


def _deeper(depth: int) -> None:
    _deep(depth - 1) if depth else json.loads("{")


def test_an_error_that_nobody_foresaw_says_first_what_it_is_and_then_whole_lines_of_its_traceback(tmp_path: Path) -> None:
    folder = job.JobFolder.at(tmp_path)
    try:
        _deep(200)
    except ValueError as error:
        folder.write_error(error)
    with pytest.raises(HeadstartError) as raised:
        folder.read_outcome()
    first, *more, last = str(raised.value).splitlines()
    kept = tmp_path / "traceback.txt"
    assert first.startswith("json.decoder.JSONDecodeError: Expecting property name")
    assert len("".join(more)) < 5000 < kept.stat().st_size, "the end of a long traceback"
    assert more[0].startswith("... ")
    assert more[0].removeprefix("... ") in kept.read_text().splitlines(), "cut between lines"
    assert last == f"The whole of it: {kept}"
    folder.forget()
    assert not kept.exists()


def test_an_error_of_another_process_says_first_what_went_wrong_there(tmp_path: Path) -> None:
    folder = job.JobFolder.at(tmp_path)
    remote = 'errors:\n[Rank 0]:\nTraceback (most recent call last):\n  File "a.py", line 1, in b\n    c()\nOSError: gone'
    folder.write_error(RuntimeError(remote))
    with pytest.raises(HeadstartError, match=r"\AOSError: gone\n"):
        folder.read_outcome()


def test_an_error_in_our_own_words_comes_without_its_traceback_which_is_kept(tmp_path: Path) -> None:
    folder = job.JobFolder.at(tmp_path)
    try:
        raise HeadstartError("Ray killed it") from OSError("what Ray says")
    except HeadstartError as error:
        folder.write_error(error)
    with pytest.raises(HeadstartError) as raised:
        folder.read_outcome()
    assert str(raised.value) == f"Ray killed it\nIts traceback: {tmp_path / 'traceback.txt'}"
    assert "OSError: what Ray says" in (tmp_path / "traceback.txt").read_text()


def test_a_new_job_of_the_same_key_finds_nothing_but_what_is_asked(tmp_path: Path) -> None:
    folder = job.JobFolder.at(tmp_path / "train-k")
    folder.write_job({}, {})
    asked = sorted(file.name for file in folder.place.path.iterdir())
    folder.write_outcome(job.JobOutcome())
    folder.write_error(ValueError())
    folder.write_todo(["w1"])
    folder.mark_span(2.0)
    folder.write_to_store(3)
    folder.write_stored(1, 1)
    folder.write_shares({"w1": 1})
    folder.count_driver()
    folder.add_group(GroupStart(1, 1))
    folder.add_interruption("a line")
    assert len(list(folder.place.path.iterdir())) == len(asked) + 11
    folder.forget()
    assert sorted(file.name for file in folder.place.path.iterdir()) == asked == ["job.json", "samples.json"]


def test_a_checkpoint_of_before_it_told_its_epoch_is_understood(tmp_path: Path) -> None:
    write_note(tmp_path, CheckpointNote("w1", 3, 10.5))
    assert (tmp_path / "work.json").read_text() == '{"work_key": "w1", "epoch": 3, "at": 10.5}'
    assert read_note(tmp_path / "work.json") == CheckpointNote("w1", 3, 10.5)
    (tmp_path / "work.json").write_text('{"work_key": "w1"}')
    assert read_note(tmp_path / "work.json") == CheckpointNote("w1")
