"""The ledger over crashes, other hands and two promotions at once, with real processes on one real registry."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
from typer.testing import CliRunner

from flows.cli import models
from flows.errors import Overtaken
from flows.model_version import ModelVersion
from flows.records import Verdict
from flows.registry import Registry
from flows.stages.promotion import carry_out
from tests.flows.test_promotion import Versions

YES, NO = Verdict(True, ("it is better",), {"look": 1.0}), Verdict(False, ("it is not",), {"look": 1.0})


def make(folder: Path, count: int) -> Versions:
    """A registry with so many versions of `m` that hold no files."""
    registry = Versions(f"sqlite:///{folder / 'mlflow.db'}", folder / "ledger", "ann")
    for number in range(1, count + 1):
        registry.register("m", work_key=f"w{number}", data_version="d", variant_id="v")
    return registry


def told(registry: Registry) -> list[tuple[str, str, str | None, str | None]]:
    return [(e.kind, e.version, e.champion_before, e.champion_after) for e in registry.history("m")]


def aliases(registry: Registry) -> dict[str, str]:
    return {alias: version.version for alias, version in registry.current("m").items()}


def by_hand(registry: Registry, version: str | None) -> None:
    """Move the alias as a person in MLflow's UI does."""
    if version:
        registry._client.set_registered_model_alias("m", "champion", version)
    else:
        registry._client.delete_registered_model_alias("m", "champion")


def test_a_champion_from_another_hand_is_told_once_written_down_and_stays(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    registry = make(tmp_path, 2)
    assert registry.settle("unknown") is None
    registry.promote("m", "1", YES)
    assert registry.settle("m") is None
    by_hand(registry, "2")
    monkeypatch.setattr(models, "_registry", lambda _: registry)
    run = partial(CliRunner().invoke, models.app)
    for verb in ("show", "history"):
        assert "moved by another hand: it points at version 2" in " ".join(run([verb, "m"]).stderr.split())
    assert len(registry.history("m")) == 1, "to look writes nothing"
    moved = registry.settle("m")
    assert moved
    assert moved.reasons == (
        "the alias champion was moved by another hand: it points at version 2, the last decision at version 1",
    )
    assert (moved.asked_by, moved.promoted) == ("ann", False)
    assert registry.settle("m") is None
    assert "another hand" not in run(["show", "m"]).stderr
    assert aliases(registry)["champion"] == "2"
    # There and back again: what is decided on the same versions with the same champions is decided anew.
    for version in ("1", "2", "1", None):
        by_hand(registry, version)
        registry.settle("m")
    moves = [(before, after) for kind, _, before, after in told(registry) if kind == "moved by another hand"]
    assert moves == [("1", "2"), ("2", "1"), ("1", "2"), ("2", "1"), ("1", None)]
    registry.promote("m", "1", YES)
    assert told(registry)[-1] == ("verdict", "1", None, "1"), "as once before, and yet another decision"


def test_every_entry_says_who_asked_on_which_commit_and_what_level_it_took(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    registry = make(tmp_path, 1)
    registry._client.set_model_version_tag("m", "1", "headstart.git_commit", "c0ffee" * 6)
    registry.promote("m", "1", Verdict(True, ("it is better",), {"look": 1.0}, level_spent=0.0445))
    entry = registry.history("m")[0]
    assert (entry.asked_by, entry.git_commit, entry.level_spent) == ("ann", "c0ffee" * 6, 0.0445)
    monkeypatch.setattr(models, "_registry", lambda _: registry)
    shown = CliRunner().invoke(models.app, ["history", "m"], terminal_width=200, env={"COLUMNS": "200"}).stdout
    assert all(words in shown for words in ("ann", "c0ffeec0ffee", "level spent 0.044"))


def test_a_verdict_that_answers_another_question_is_another_entry_and_the_same_one_is_not(tmp_path: Path) -> None:
    registry = make(tmp_path, 2)
    registry.promote("m", "1", YES)
    verdicts = [
        Verdict(False, ("a guard refused it before a look",), metric="label/accuracy", recipe="r"),
        Verdict(False, ("it is not better",), {"look": 1.0}, metric="label/accuracy", recipe="r", level_spent=0.04),
        Verdict(False, ("it is not better",), {"look": 1.0}, metric="label/f1_macro", recipe="r", level_spent=0.04),
        Verdict(False, ("it is not better",), {"look": 1.0}, metric="label/accuracy", recipe="s", level_spent=0.04),
        Verdict(False, ("proven, waits",), {"look": 1.0}, metric="label/accuracy", recipe="s", waits=True),
    ]
    for _ in range(2):
        for verdict in verdicts:
            registry.record("m", "2", verdict)
    kept = registry.history("m")[1:]
    assert [(e.metric, e.recipe, e.is_look, e.waits) for e in kept] == [
        (v.metric, v.recipe, "look" in v.figures, v.waits) for v in verdicts
    ]
    assert len({entry.id for entry in kept}) == 5
    waiting = registry.waiting("m")
    assert waiting
    assert registry.find("m", "2").tags["headstart.waits_for_approval"] == kept[-1].id
    assert registry.history("m") == Versions(registry.address, tmp_path / "elsewhere").history("m"), "the tags hold all of it"


def test_a_verdict_of_an_earlier_version_which_named_no_measure_is_the_same_one(tmp_path: Path) -> None:
    registry = make(tmp_path, 2)
    registry.promote("m", "1", YES)
    registry.record("m", "2", NO)
    registry.record("m", "2", replace(NO, metric="label/accuracy", recipe="r"))
    assert len(registry.history("m")) == 2


PROMOTE = """
import sys, time
from pathlib import Path
from flows.records import Verdict
from flows.stages.promotion import carry_out
from tests.flows.test_promotion import Versions
folder, number = Path(sys.argv[1]), sys.argv[2]
registry = Versions(f"sqlite:///{folder / 'mlflow.db'}", folder / "ledger", f"process {number}")
version = registry.find("m", number)
(folder / number).touch()
while len(list(folder.glob("[23]"))) < 2:
    time.sleep(0.01)
promotion = carry_out(registry, version, Verdict(True, ("it is better",), {"look": 1.0}), over="1")
print(promotion.verdict.promoted, promotion.verdict.reasons[0], sep="|")
"""


def test_of_two_processes_that_promote_at_once_one_wins_and_the_other_says_that_it_lost(tmp_path: Path) -> None:
    registry = make(tmp_path, 3)
    registry.promote("m", "1", YES)
    command = [sys.executable, "-W", "ignore", "-c", PROMOTE, str(tmp_path)]
    root = Path(__file__).parents[2]
    started = [subprocess.Popen([*command, number], stdout=subprocess.PIPE, text=True, cwd=root) for number in ("2", "3")]
    said = {number: process.communicate(timeout=120)[0].strip().split("|") for number, process in zip("23", started, strict=True)}
    winner, loser = sorted(said, key=lambda number: said[number][0] != "True")
    assert said[winner] == ["True", "it is better"]
    assert said[loser] == [
        "False",
        f"version {loser} of m lost: it was compared with champion 1, and meanwhile version {winner} became champion; "
        "the next retraining compares with the champion of then",
    ]
    assert aliases(registry) == {"champion": winner, "previous": "1", "challenger": loser}
    assert told(registry)[1:] == [("verdict", winner, "1", winner), ("verdict", loser, winner, winner)]
    lost = registry.history("m")[-1]
    assert (lost.figures, lost.level_spent, lost.findings[0].guard) == ({}, 0.0, "still_champion"), "no look of the new account"


def test_a_verdict_against_a_champion_that_left_meanwhile_is_no_verdict_on_the_one_of_now(tmp_path: Path) -> None:
    registry = make(tmp_path, 3)
    registry.promote("m", "1", YES)
    version: ModelVersion = registry.find("m", "3")
    by_hand(registry, "2")
    for verdict in (YES, NO):
        with pytest.raises(Overtaken, match="compared with champion 1, and meanwhile version 2 became champion"):
            (registry.promote if verdict.promoted else registry.record)("m", "3", verdict, "1")
    promotion = carry_out(registry, version, YES, over="1")
    assert not promotion.verdict.promoted
    assert aliases(registry) == {"champion": "2", "challenger": "3"}
    kinds = [entry.kind for entry in registry.history("m")]
    assert kinds == ["verdict", "moved by another hand", "verdict"]
