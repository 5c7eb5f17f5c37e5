"""Promotions that wait for a person: the version that waits, its approval and rejection, and what both refuse."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import pytest
from prefect.logging import disable_run_logger
from typer.testing import CliRunner

from flows.cli import models
from flows.errors import AskedWrongly
from flows.stages.promotion import carry_out
from tests.flows.test_ledger import NO, YES, aliases, by_hand, make, told
from tests.flows.test_promotion import DAY, Nights, Versions, nights

__all__ = ["nights"]
MANUAL = {"promotion": {"manual": True}}


@pytest.fixture(autouse=True)
def without_files(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Versions, "pull", lambda self, name, which, dest: self.find(name, which))


def test_a_proven_model_waits_for_a_person_and_the_nights_until_then_say_so(nights: Nights) -> None:
    verdict = nights.night(1, **MANUAL).verdict
    assert (verdict.promoted, verdict.waits) == (False, True)
    assert verdict.reasons[0] == "proven, waits for approval: headstart models approve m --version 1 --reason TEXT"
    assert aliases(nights.registry) == {"challenger": "1"}
    nights.now += 60
    nights.registry.approve("m", None, "looked at it")
    assert aliases(nights.registry) == {"champion": "1"}
    assert nights.night(2, 0.09, **MANUAL).verdict.waits
    later = nights.night(3, **MANUAL).verdict
    assert not later.waits
    assert later.reasons[-1] == "version 2 is proven, and waits for approval"
    assert aliases(nights.registry) == {"champion": "1", "challenger": "2"}
    nights.now += 60
    nights.registry.approve("m", "2", "better at night")
    assert aliases(nights.registry) == {"champion": "2", "previous": "1"}
    entry = nights.registry.history("m")[-1]
    assert (entry.kind, entry.promoted, entry.champion_before, entry.reasons) == (
        "approval",
        True,
        "1",
        ("approved by hand: better at night",),
    )
    assert nights.registry.waiting("m") is None
    nights.now += DAY
    assert "waits" not in nights.night(4, **MANUAL).verdict.reasons[-1]


def waits(registry: Versions, version: str, over: str | None) -> None:
    assert carry_out(registry, registry.find("m", version), YES, over, manual=True).verdict.waits


def test_what_does_not_wait_or_lost_its_champion_is_refused_and_nothing_changes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    registry = make(tmp_path, 4)
    registry.promote("m", "1", YES)
    with pytest.raises(AskedWrongly, match="no version of m waits for approval; waiting: none"):
        registry.approve("m", None, "why")
    with pytest.raises(AskedWrongly, match="no model is registered as 'cats'"):
        registry.reject("cats", None, "why")
    waits(registry, "2", "1")
    before = registry.history("m")
    for decide in (registry.approve, registry.reject):
        with pytest.raises(AskedWrongly, match="version 3 of m does not wait for approval; waiting: 2"):
            decide("m", "3", "why")
        with pytest.raises(AskedWrongly, match="the reason is empty"):
            decide("m", "2", " ")
    monkeypatch.setattr(models, "_registry", lambda _: registry)
    run = partial(CliRunner().invoke, models.app)
    assert run(["approve", "m"]).exit_code == 2, "there is no reason"
    assert "Version 2 is proven and waits" in run(["show", "m"]).stderr
    assert registry.history("m") == before
    registry.promote("m", "3", YES)
    assert registry.waiting("m") is None, "it was compared with another champion"
    with pytest.raises(AskedWrongly, match="compared with version 1, and version 3 is champion now"):
        registry.approve("m", "2", "why")
    by_hand(registry, "1")
    with pytest.raises(AskedWrongly, match="waiting: 2"):
        registry.approve("m", "4", "why")
    assert run(["approve", "m", "--reason", "it is the one again"]).exit_code == 0
    assert aliases(registry)["champion"] == "2"
    assert [kind for kind, *_ in told(registry)][-2:] == ["moved by another hand", "approval"]


def test_a_rejected_version_waits_no_more_and_is_not_promoted_by_itself(tmp_path: Path) -> None:
    registry = make(tmp_path, 2)
    registry.promote("m", "1", YES)
    waits(registry, "2", "1")
    assert registry.reject("m", None, "reads cats as dogs").version == "2"
    assert aliases(registry) == {"champion": "1"}
    assert registry.find("m", "2").tags["headstart.withdrawn"] == "true"
    assert told(registry)[-1] == ("rejection", "2", "1", "1")
    with pytest.raises(AskedWrongly, match="waiting: none"):
        registry.approve("m", "2", "after all")


def test_a_version_that_was_promoted_by_itself_and_taken_back_waits_no_more(tmp_path: Path) -> None:
    registry = make(tmp_path, 3)
    registry.promote("m", "1", YES)
    waits(registry, "2", "1")
    assert carry_out(registry, registry.find("m", "2"), YES, "1").verdict.promoted
    assert "headstart.waits_for_approval" not in registry.find("m", "2").tags
    # As it was left by a version of Headstart that kept the tag.
    waiting = next(entry.id for entry in registry.history("m") if entry.waits)
    registry._client.set_model_version_tag("m", "2", "headstart.waits_for_approval", waiting)
    registry.rollback("m")
    assert registry.waiting("m") is None
    with pytest.raises(AskedWrongly, match="waiting: none"):
        registry.approve("m", None, "why")
    assert carry_out(registry, registry.find("m", "3"), NO, "1").verdict.reasons == NO.reasons, "nothing waits"
    assert aliases(registry) == {"champion": "1", "challenger": "3"}
    carry_out(registry, registry.find("m", "2"), NO, "1")
    assert aliases(registry)["challenger"] == "3", "what was taken back is no challenger"


def test_the_deployments_flow_approves_or_rejects_as_its_form_says(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from flows import pipeline

    registry = make(tmp_path, 3)
    monkeypatch.setattr(pipeline, "open_registry", lambda *_: registry)
    monkeypatch.setattr(pipeline, "prepare_process", lambda _: None)
    for version in ("2", "3"):
        waits(registry, version, None)
    with disable_run_logger():
        assert pipeline.approve.fn("m", "looked at it", "2") == "2"
        assert pipeline.approve.fn("m", "reads 3 as 8", decision="reject") == "3"
        with pytest.raises(AskedWrongly, match="waiting: none"):
            pipeline.approve.fn("m", "once more")
    assert aliases(registry) == {"champion": "2"}
    assert [kind for kind, *_ in told(registry)][-2:] == ["approval", "rejection"]
