"""What `headstart up` does while it is up: dead parts, and errors in logs."""

from __future__ import annotations

from pathlib import Path

import pytest

from flows.errors import HeadstartError
from flows.stack.logs import Log
from flows.stack.watch import MAX_RESTARTS, StackServer, look


def test_a_part_that_dies_is_started_again_a_few_times_and_then_the_stack_ends() -> None:
    starts: list[int] = []
    told: list[str] = []
    part = StackServer("Prefect", lambda: "killed by SIGKILL", lambda: starts.append(1))
    for _ in range(MAX_RESTARTS):
        look([part], told.append, lambda: told.append("changed"))
    assert len(starts) == MAX_RESTARTS
    assert told[0] == f"Prefect died (killed by SIGKILL); starting it again (1 of {MAX_RESTARTS})"
    assert told.count("changed") == MAX_RESTARTS
    with pytest.raises(HeadstartError, match="Prefect died again"):
        look([part], told.append, lambda: None)
    assert len(starts) == MAX_RESTARTS


def test_deaths_of_long_ago_do_not_count(monkeypatch: pytest.MonkeyPatch) -> None:
    part = StackServer("MLflow", lambda: "status 1", lambda: None, restarts=[-1e9] * MAX_RESTARTS)
    look([part], lambda _: None, lambda: None)
    assert len(part.restarts) == 1


def test_a_living_part_is_left_alone() -> None:
    def never() -> None:
        raise AssertionError("it lives")

    look([StackServer("Ray", lambda: None, never)], lambda _: never(), never)


def _log(folder: Path) -> tuple[Log, Path, list[str]]:
    file, told = folder / "prefect.log", list[str]()
    file.write_text("Traceback (most recent call last):\n  of yesterday\nValueError: old\n")
    return Log("Prefect", file, told.append), file, told


def _add(file: Path, text: str) -> None:
    with file.open("a") as stream:
        stream.write(text)


TRACEBACK = 'Traceback (most recent call last):\n  File "a.py", line 1, in f\n    g()\nInvalidRequestError: no bulk\n'


def test_the_first_error_of_a_log_is_told_with_the_line_that_says_it_and_where_the_log_is(tmp_path: Path) -> None:
    log, file, told = _log(tmp_path)
    _add(file, "12:00:00.1 | INFO    | prefect - all is well, no ERRORS here\n" + TRACEBACK[:60])
    log.look()
    assert told == []
    _add(file, TRACEBACK[60:])
    log.look()
    assert told == [f"Warning: Prefect met an error; see its log, {file}: InvalidRequestError: no bulk"]


def test_later_errors_are_counted(tmp_path: Path) -> None:
    log, file, told = _log(tmp_path)
    for _ in range(71):
        _add(file, TRACEBACK)
        log.look()
    assert log.num_errors == 71
    assert told[1:] == [f"Warning: Prefect met 10 errors by now; see {file}"]


@pytest.mark.parametrize(
    "line",
    [
        "04:56:15.704 | ERROR   | prefect.server.services - it broke",
        "2026/11/27 04:56:15 ERROR mlflow.server: it broke",
        "ERROR:    Application startup failed. Exiting.",
        "[2026-11-27 04:56:15 +0000] [12] [CRITICAL] WORKER TIMEOUT",
    ],
)
def test_an_error_is_known_by_its_level(tmp_path: Path, line: str) -> None:
    log, file, told = _log(tmp_path)
    _add(file, line + "\n")
    log.look()
    assert line[:290] in told[0]
