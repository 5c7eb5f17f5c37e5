"""Decisions whose process dies between two steps: the same decision again, or the next retraining, finishes what was begun."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from flows import mlflow_tags
from flows.stages.promotion import carry_out
from tests.flows.test_ledger import YES, aliases, by_hand, make, told
from tests.flows.test_promotion import Versions


def cut_short(registry: Versions, step: str, count: int, decide: Callable[[Versions], object]) -> None:
    """Kill a decision right after the `count`-th call of one of its steps, or before the first."""
    done, calls = getattr(registry, step), list[None]()

    def killed(*args: Any) -> None:
        if count:
            done(*args)
        calls.append(None)
        if len(calls) >= count:
            raise KeyboardInterrupt

    registry.__dict__[step] = killed
    try:
        with pytest.raises(KeyboardInterrupt):
            decide(registry)
    finally:
        del registry.__dict__[step]


# A decision on three versions, the reign before it, the aliases after it, and who is taken back then.
Decide = Callable[[Versions], object]
DECISIONS: dict[str, tuple[Decide, str, dict[str, str], list[str]]] = {
    "verdict": (lambda registry: registry.promote("m", "3", YES), "two", {"champion": "3", "previous": "2"}, []),
    "approval": (lambda registry: registry.approve("m", None, "why"), "two", {"champion": "3", "previous": "2"}, []),
    "rollback": (lambda registry: registry.rollback("m"), "three", {"champion": "2", "previous": "1"}, ["3"]),
    "rollback to": (lambda registry: registry.rollback("m", "1"), "three", {"champion": "1"}, ["3"]),
    "rollback once more": (lambda registry: registry.rollback("m"), "undone", {"champion": "2", "previous": "1"}, ["3"]),
    "rollback undone": (lambda registry: registry.rollback("m", "3", "why"), "back", {"champion": "3", "previous": "2"}, []),
}
# In which step, after how many calls of it, and who finishes it.
AGAIN, NEXT = "the same decision again", "the next retraining"
KILLS = [
    ("_keep", 0, AGAIN),
    ("_move", 0, NEXT),
    ("_move", 1, AGAIN),
    ("_move", 2, NEXT),
    ("_move", 3, AGAIN),
    ("_move", 3, NEXT),
]


@pytest.fixture(scope="module")
def reigns(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Registries in which two versions were champion and the third waits, all three were, or the third was taken back since.

    Where that was undone, it is champion again.
    """
    folder = tmp_path_factory.mktemp("reigns")
    for reign in ("two", "three", "back", "undone"):
        (folder / reign).mkdir()
        registry = make(folder / reign, 3)
        for number in range(1, 3 if reign == "two" else 4):
            registry.promote("m", str(number), YES)
        if reign == "two":
            assert carry_out(registry, registry.find("m", "3"), YES, "2", manual=True).verdict.waits
        if reign in ("back", "undone"):
            registry.rollback("m")
        if reign == "undone":
            registry.rollback("m", "3", "by mistake")
    return folder


# To undo a rollback moves two aliases.
@pytest.mark.parametrize(
    ("name", "step", "count", "by"),
    [(name, *kill) for name in DECISIONS for kill in KILLS if name != "rollback undone" or kill[1] < 3],
)
def test_a_decision_that_is_cut_short_is_made_once(
    reigns: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, step: str, count: int, by: str
) -> None:
    decide, reign, after, taken_back = DECISIONS[name]
    monkeypatch.setattr(Versions, "pull", lambda self, name, which, dest: self.find(name, which))
    shutil.copytree(reigns / reign, tmp_path / "reign")
    registry = Versions(f"sqlite:///{tmp_path / 'reign' / 'mlflow.db'}", tmp_path / "reign" / "ledger")
    entries = told(registry)
    cut_short(registry, step, count, decide)
    assert registry.moved_by_hand("m") is None, "a crash is no other hand"
    assert len(told(registry)) == len(entries) + (step == "_move")
    if by == AGAIN:
        decide(registry)
    else:
        assert registry.settle("m")
    assert aliases(registry) == after
    made = told(registry)[len(entries) :]
    kind = name if name == "rollback undone" else name.split()[0]
    assert [(entry[0], entry[3]) for entry in made] == [(kind, after["champion"])]
    assert mlflow_tags.UNDER_WAY not in registry._client.get_registered_model("m").tags
    withdrawn = [v.version for v in registry.versions("m") if v.tags.get("headstart.withdrawn")]
    assert withdrawn == taken_back


@pytest.mark.parametrize("num_moves", [0, 1])
def test_a_decision_is_not_finished_if_its_work_is_judged_again_or_another_hand_was_there(tmp_path: Path, num_moves: int) -> None:
    registry = make(tmp_path, 3)
    registry.promote("m", "1", YES)
    cut_short(registry, "_move", num_moves, lambda registry: registry.promote("m", "2", YES))
    assert aliases(registry)["champion"] == "1"
    assert registry.settle("m", besides="w2") is None
    assert aliases(registry)["champion"] == "1"
    if num_moves:
        by_hand(registry, "3")
        assert registry.settle("m")
        assert aliases(registry)["champion"] == "3"
        return
    assert registry.settle("m")
    by_hand(registry, "1")
    assert registry.moved_by_hand("m"), "back by hand is no crash"


@pytest.mark.parametrize(("step", "count"), [("_keep", 0), ("_keep", 1), ("_move", 0), ("_move", 1)])
def test_a_rejection_that_is_cut_short_is_finished_by_the_same_call(reigns: Path, tmp_path: Path, step: str, count: int) -> None:
    shutil.copytree(reigns / "two", tmp_path / "reign")
    registry = Versions(f"sqlite:///{tmp_path / 'reign' / 'mlflow.db'}", tmp_path / "reign" / "ledger")
    cut_short(registry, step, count, lambda registry: registry.reject("m", None, "why"))
    assert registry.reject("m", None, "why").version == "3"
    assert [entry[0] for entry in told(registry)].count("rejection") == 1
    assert aliases(registry) == {"champion": "2", "previous": "1"}
    tags = registry.find("m", "3").tags
    assert (tags["headstart.withdrawn"], "headstart.waits_for_approval" in tags) == ("true", False)
