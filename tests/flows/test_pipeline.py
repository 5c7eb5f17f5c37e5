"""The deployments of a plan, without a server."""

from __future__ import annotations

import pytest

from flows.plan import parse_plan


def test_the_nightly_cron_counts_in_local_time(monkeypatch: pytest.MonkeyPatch) -> None:
    from flows import pipeline

    monkeypatch.setenv("TZ", "Europe/Berlin")
    nightly, by_hand = pipeline.deployments(parse_plan({"name": "pets"}), "0 2 * * *", None)
    assert [(s.schedule.cron, s.schedule.timezone) for s in nightly.schedules or []] == [("0 2 * * *", "Europe/Berlin")]
    assert not by_hand.schedules
