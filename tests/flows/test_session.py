"""Two retrainings of one model name at once: the second waits, says for whom, and goes on, or gives up."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
from contextlib import suppress
from pathlib import Path

import pytest

from flows.errors import Busy
from flows.plan import parse_plan
from flows.records import Weights, Work
from flows.settings import Settings
from flows.stages.background.loading import loading_ahead
from flows.stages.session import Event, listening, open_session
from flows.tracking import Origin
from heads.spec import Head, Variant

HOLD = """
import sys
from pathlib import Path
from flows.stages.session import open_session
from flows.plan import parse_plan
from flows.settings import Settings
with open_session(Settings(storage_root=Path(sys.argv[1])), parse_plan({"name": "pets"})):
    print("there", flush=True)
    sys.stdin.read()
"""
ORIGIN = Origin(data_version="d" * 32, data_revision="r" * 40, data_source="data", git_commit=None, flow_run_id=None)
WORK = Work("work", Variant(backbone="resnet18", heads=(Head(target="kind"),)), Weights("none"))
PETS, CATS = (parse_plan({"name": name}) for name in ("pets", "cats"))


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    return Settings(storage_root=tmp_path)


def test_a_second_retraining_of_a_name_says_for_whom_it_waits_and_gives_up_after_its_time(settings: Settings) -> None:
    told: list[Event] = []
    me = f"pid {os.getpid()}"
    with open_session(settings, PETS):
        begun = time.monotonic()
        with (
            listening(told.append),
            pytest.raises(Busy, match=rf"another retraining of 'pets' is at work \({me}\); wait until it ends"),
            open_session(settings, PETS, wait_seconds=1.5),
        ):
            raise AssertionError("two are at work")
        assert 1.5 <= time.monotonic() - begun < 10
        assert [event.text for event in told] == [f"Waiting for another retraining of 'pets' ({me})"], "once, however long"
        with pytest.raises(Busy), open_session(settings, PETS, wait_seconds=0):
            raise AssertionError("who gave up left the first its name")
    with open_session(settings, PETS, wait_seconds=0):
        assert (settings.storage / "locks" / "pets").read_text() == me


def test_what_is_logged_beside_a_block_that_fails_leaves_no_run_that_says_running(settings: Settings) -> None:
    begun = threading.Event()

    def log(stop: threading.Event) -> None:
        begun.set()
        stop.wait(0.5)
        session.new_tracker().start_variant(run_id, WORK, ORIGIN)

    with suppress(NotImplementedError), open_session(settings, PETS) as session:
        run_id = session.start_run("key", ORIGIN)
        session.log_beside(log)
        assert begun.wait(10)
        raise NotImplementedError
    assert [run.info.status for run in session.tracker._find()] == ["FAILED", "FAILED"]
    with open_session(settings, PETS) as session:
        session.log_beside(lambda stop: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            session.finish_logging()


def test_another_name_and_another_storage_wait_for_nobody(settings: Settings, tmp_path: Path) -> None:
    with (
        open_session(settings, PETS),
        open_session(settings, CATS, wait_seconds=0),
        open_session(Settings(storage_root=tmp_path / "elsewhere"), PETS, wait_seconds=0),
    ):
        assert {file.name for file in (settings.storage / "locks").iterdir()} == {"pets", "cats"}


def test_whoever_waits_begins_when_the_first_has_ended(settings: Settings) -> None:
    happened: list[str] = []
    waits = threading.Event()

    def retrain() -> None:
        with listening(lambda event: waits.set()), open_session(settings, PETS, wait_seconds=60):
            happened.append("the second begins")

    second = threading.Thread(target=retrain)
    with open_session(settings, PETS):
        second.start()
        assert waits.wait(30)
        time.sleep(0.2)
        happened.append("the first ends")
    second.join(30)
    assert happened == ["the first ends", "the second begins"]
    assert (settings.storage / "locks" / "pets").read_text() == "", "nobody is at work any more"


def test_a_killed_retraining_holds_its_name_no_longer_and_is_named_until_then(settings: Settings) -> None:
    with subprocess.Popen(
        [sys.executable, "-W", "ignore", "-c", HOLD, str(settings.storage)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as first:
        try:
            assert first.stdout is not None
            assert first.stdout.readline() == "there\n"
            with pytest.raises(Busy, match=rf"\(pid {first.pid}\)"), open_session(settings, PETS, wait_seconds=0):
                raise AssertionError("two are at work")
        finally:
            first.kill()
        first.wait()
    with open_session(settings, PETS, wait_seconds=0):
        assert (settings.storage / "locks" / "pets").read_text() == f"pid {os.getpid()}"


def test_what_later_stages_need_is_loaded_by_the_blocks_end_and_what_cannot_be_loaded_costs_nothing_else(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    loaded: list[str] = []

    def load_exporter() -> None:
        time.sleep(0.3)
        loaded.append(threading.current_thread().name)

    def fail() -> None:
        raise ImportError("it is not installed")

    monkeypatch.setattr("flows.gate.load_statistics", fail)
    monkeypatch.setattr("flows.registry.load_exporter", load_exporter)
    with loading_ahead():
        assert not loaded, "the block does not wait"
    assert loaded == ["loading"]
