"""Who runs a flow run, and who holds a model name, when processes are killed."""

from __future__ import annotations

import contextlib
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from flows.plan import parse_plan
from flows.settings import Settings
from flows.stages.living_runs import attending, end_crashed, forget, roll_call
from flows.stages.session import open_session
from flows.tracking import Origin, Tracker

ATTEND = """
import sys
from pathlib import Path
from flows.settings import Settings
from flows.stages.living_runs import attending
with attending(Settings(storage_root=Path(sys.argv[1])), sys.argv[2]):
    print("there", flush=True)
    sys.stdin.read()
"""
RETRAIN = """
import sys
from pathlib import Path
from flows.plan import parse_plan
from flows.settings import Settings
from flows.stages.session import open_session
from flows.tracking import Origin
settings = Settings(storage_root=Path(sys.argv[1]), workspace=Path(sys.argv[1]))
with open_session(settings, parse_plan({"name": "pets"})) as session:
    session.tracker.start_retraining("k1", Origin("d1", "r1", "x"))
    print("there", flush=True)
    sys.stdin.read()
"""


@contextmanager
def _process(code: str, *words: str) -> Iterator[subprocess.Popen[str]]:
    with subprocess.Popen(
        [sys.executable, "-W", "ignore", "-c", code, *words], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "there\n"
        try:
            yield process
        finally:
            process.kill()


def test_a_run_whose_process_was_killed_is_told_from_one_that_is_at_work(tmp_path: Path) -> None:
    settings = Settings(storage_root=tmp_path)
    with _process(ATTEND, str(tmp_path), "one") as first, _process(ATTEND, str(tmp_path), "two"):
        assert roll_call(settings) == ({"one", "two"}, set())
        first.kill()
        first.wait()
        assert roll_call(settings) == ({"two"}, {"one"})
        forget(settings, "one")
        assert roll_call(settings) == ({"two"}, set())


def test_a_run_that_ended_leaves_no_mark_and_one_just_begun_is_not_judged(tmp_path: Path) -> None:
    settings = Settings(storage_root=tmp_path)
    with attending(settings, "one"):
        pass
    (tmp_path / "runs" / "begun").touch()
    assert roll_call(settings) == ({"begun"}, set())


def test_the_mlflow_runs_of_a_killed_retraining_are_ended_once_and_those_of_a_living_one_go_on(tmp_path: Path) -> None:
    settings = Settings(storage_root=tmp_path, workspace=tmp_path)
    tracker = Tracker(settings.tracking, settings.artifacts, "pets")
    with _process(RETRAIN, str(tmp_path)) as process:
        assert end_crashed(settings) == [], "it is at work"
        process.kill()
        process.wait()
    (told,) = end_crashed(settings)
    assert "pets was killed" in told
    assert "1 MLflow retraining" in told
    assert tracker.repair() == (), "it is KILLED already"
    assert end_crashed(settings) == []


@pytest.mark.parametrize(("error", "end"), [(ValueError("bad"), "FAILED"), (KeyboardInterrupt(), "KILLED"), (None, "RUNNING")])
def test_the_run_of_a_retraining_that_fails_or_is_interrupted_says_so(
    tmp_path: Path, error: BaseException | None, end: str
) -> None:
    settings = Settings(storage_root=tmp_path, workspace=tmp_path)
    with (
        contextlib.suppress(ValueError, KeyboardInterrupt),
        open_session(settings, parse_plan({"name": "pets"})) as session,
    ):
        run_id = session.start_run("k1", Origin("d1", "r1", "x"))
        if error:
            raise error
    assert Tracker(settings.tracking, settings.artifacts, "pets")._client.get_run(run_id).info.status == end


def test_whoever_ends_well_is_not_taken_for_crashed(tmp_path: Path) -> None:
    settings = Settings(storage_root=tmp_path, workspace=tmp_path)
    with open_session(settings, parse_plan({"name": "pets"})) as session:
        session.tracker.start_retraining("k1", Origin("d1", "r1", "x"))
    assert (tmp_path / "locks" / "pets").read_text() == ""
    assert end_crashed(settings) == []
