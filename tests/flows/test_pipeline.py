"""The deployments of a plan, without a server."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from prefect.deployments.runner import RunnerDeployment

from flows import prefect_server
from flows.cron import local_timezone
from flows.errors import AskedWrongly
from flows.plan import parse_plan

Live = Callable[[str], None]


@pytest.fixture
def live_in(monkeypatch: pytest.MonkeyPatch) -> Iterator[Live]:
    """Gives this process's clock another time zone."""

    def live(timezone: str) -> None:
        patched.setenv("TZ", timezone)
        # It is asked for once a process.
        time.tzset()
        patched.setattr("tzlocal.unix._cache_tz_name", None)

    with monkeypatch.context() as patched:
        yield live
    time.tzset()


def test_the_nightly_cron_counts_in_local_time(live_in: Live) -> None:
    from flows import deployments

    live_in("Europe/Berlin")
    nightly, by_hand = deployments.of_plan(parse_plan({"name": "pets"}), "0 2 * * *", None)
    assert [(s.schedule.cron, s.schedule.timezone) for s in nightly.schedules or []] == [("0 2 * * *", "Europe/Berlin")]
    assert not by_hand.schedules


@pytest.mark.parametrize(
    ("rule", "offset"), [("UTC-3", "+03:00"), ("<-0330>3:30", "-03:30"), ("GMT0BST,M3.5.0/1,M10.5.0", "+01:00")]
)
def test_a_clock_whose_time_zone_has_no_name_is_refused_where_a_cron_would_count_in_utc(
    live_in: Live, rule: str, offset: str
) -> None:
    live_in("Etc/UTC")
    assert local_timezone() == "Etc/UTC"
    live_in(rule)
    told = rf"TZ={re.escape(repr(rule))} gives .* no name .*where this machine's clock is {re.escape(offset)}"
    with pytest.raises(AskedWrongly, match=told):
        local_timezone()


class Serving:
    """A runner of Prefect's that writes down what is asked of it."""

    def __init__(self, asked: list[str]) -> None:
        self.asked = asked

    def __call__(self, *, limit: int, pause_on_shutdown: bool) -> Serving:
        self.asked.append(f"limit {limit}")
        return self

    def add_deployment(self, deployment: RunnerDeployment) -> None:
        self.asked.append(deployment.name)

    async def start(self) -> None:
        self.asked.append("start")


def test_how_to_start_a_deployment_is_told_once_prefect_knows_it(monkeypatch: pytest.MonkeyPatch) -> None:
    from flows import deployments

    asked: list[str] = []
    monkeypatch.setattr(deployments, "Runner", Serving(asked))
    served = deployments.of_plan(parse_plan({"name": "pets"}), "0 2 * * *", None)
    deployments.serve(served, lambda: asked.append("told"))
    assert asked == ["limit 2", "nightly", "on-demand", "told", "start"]


def test_a_plan_with_manual_promotion_has_a_deployment_that_approves() -> None:
    from flows import deployments

    served = deployments.of_plan(parse_plan({"name": "pets", "promotion": {"manual": True}}), "0 2 * * *", None)
    assert [each.name for each in served] == ["nightly", "on-demand", "approve"]
    assert (served[2].flow_name, served[2].parameters) == ("pets", {"name": "pets"})
    assert served[2].entrypoint == "flows.pipeline.approve"
    form = served[2]._parameter_openapi_schema
    assert "reason" in form.required
    assert form.properties["decision"]["enum"] == ["approve", "reject"]
    told = deployments.how_to_start(
        [parse_plan({"name": "pets", "promotion": {"manual": True}}), parse_plan({"name": "cats"})], "http://127.0.0.1:4200"
    )
    assert told.startswith("Serving pets/nightly, pets/on-demand, pets/approve, cats/nightly, cats/on-demand\n")


BEGIN = """
import os
from pathlib import Path
from flows import pipeline, prefect_server
from flows.errors import Unreachable
from flows.plan import parse_plan
try:
    with prefect_server.of_its_own(lambda: None, Path(os.environ["PREFECT_HOME"])):
        pipeline.retrain(parse_plan({"name": "pets"}))
except Unreachable as error:
    print(error)
"""


def test_a_server_of_prefects_own_that_does_not_answer_in_time_is_told_with_what_to_do(tmp_path: Path) -> None:
    env = {name: value for name, value in os.environ.items() if not name.startswith("PREFECT_")}
    seconds = "PREFECT_SERVER_EPHEMERAL_STARTUP_TIMEOUT_SECONDS"
    env |= {"PREFECT_HOME": str(tmp_path), "PREFECT_SERVER_EPHEMERAL_ENABLED": "true", seconds: "0"}
    done = subprocess.run([sys.executable, "-c", BEGIN], env=env, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.stdout.startswith("the server that Prefect starts for itself did not answer within 0 seconds"), done.stderr
    assert seconds in done.stdout
    assert "`headstart up`" in done.stdout


EARLY = """
import httpx
from prefect.client.orchestration import get_client
from prefect.server.api.server import SubprocessASGIServer
from flows import prefect_server
done = []
with prefect_server.of_its_own(lambda: done.append(True)):
    address = SubprocessASGIServer().api_url
    print(done, httpx.get(address + "/health").json(), str(get_client(sync_client=True).api_url).startswith(address))
"""


def test_the_server_of_prefects_own_starts_while_other_things_are_done_and_is_the_one_that_a_flow_finds(tmp_path: Path) -> None:
    env = {name: value for name, value in os.environ.items() if not name.startswith("PREFECT_")}
    env |= {"PREFECT_HOME": str(tmp_path), "PREFECT_SERVER_EPHEMERAL_ENABLED": "true"}
    env |= {"PREFECT_SERVER_EPHEMERAL_STARTUP_TIMEOUT_SECONDS": "120"}
    done = subprocess.run([sys.executable, "-c", EARLY], env=env, cwd=tmp_path, capture_output=True, text=True, check=True)
    assert done.stdout == "[True] True True\n"


def test_what_else_goes_wrong_in_a_flow_is_told_as_it_is() -> None:
    with pytest.raises(RuntimeError, match="out of memory"), prefect_server.of_its_own():
        raise RuntimeError("out of memory")
