"""Nights that are judged by what arrived since: the real score and promote stages, registry and ledger; models are drawn."""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NoReturn

import numpy as np
import pytest

from flows import job
from flows.baselines import Baseline
from flows.errors import AskedWrongly, HeadstartError
from flows.job.holdout.scores import write_scores
from flows.plan import Plan
from flows.records import DataVersion, Sample, ScoreTable, TrainedVariant, TrainResult, Weights, Work
from flows.registry import LedgerEntry
from flows.stages import scoring
from flows.stages.account import account_of
from flows.stages.promotion import promote
from flows.stages.scoring import score
from flows.stages.values import PromotionResult, WorkPlan
from heads.spec import Fit, Head, Variant
from heads.tasks.rows import Scored
from tests.flows.test_ledger import aliases
from tests.flows.test_promotion import DAY, METRIC, Versions
from tests.kills import killed_after

SPLITS = ("train", "train", "val", "test")
FRESH = {"promotion": {"evidence": "fresh"}}
A_NIGHT = 150


def drawn(*names: object) -> float:
    """A number from 0 to 1 that depends on the names alone."""
    return int(hashlib.md5("/".join(map(str, names)).encode()).hexdigest()[:8], 16) / 16**8


@dataclass
class Stream:
    """A workspace to which samples come every night, and whose model is retrained then; a candidate reads them as told."""

    folder: Path
    monkeypatch: pytest.MonkeyPatch
    now: float = 1_800_000_000.0
    data: dict[str, tuple[Sample, ...]] = field(default_factory=dict)
    gone: set[str] = field(default_factory=set)
    skills: dict[str, float] = field(default_factory=dict)
    said: list[str] = field(default_factory=list)
    jobs: list[job.Job] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.registry = Versions(f"sqlite:///{self.folder / 'mlflow.db'}", self.folder / "ledger")
        for module, name, stand_in in (
            ("time", "time", lambda: self.now),
            ("flows.dataset", "head_commit", lambda _: "c0ffee"),
            ("flows.dataset", "read_samples", self.read_samples),
            ("flows.stages.scoring", "serving_costs", lambda trained: {one.key: 1 for one in trained.variants}),
            ("flows.stages.scoring", "find_baselines", lambda *_: (Baseline(kind="majority", label="majority"),)),
            ("heads.bundle", "digest", lambda folder: folder.parent.name * 8),
            ("heads.bundle", "verify", lambda _: None),
        ):
            self.monkeypatch.setattr(f"{module}.{name}", stand_in)
        self.arrive(200)

    @property
    def version(self) -> str:
        """The newest data version."""
        return list(self.data)[-1]

    def read_samples(self, _: Path, digest: str) -> tuple[Sample, ...]:
        if digest in self.gone:
            raise AskedWrongly(f"the files of data version {digest} are not on this machine")
        return self.data[digest]

    def arrive(self, count: int, labelled: bool = True, group: Callable[[int], str | None] = lambda _: None) -> None:
        """Bring in so many samples, of all splits: a new data version."""
        before = self.data[self.version] if self.data else (Sample("f" * 32, "f.png", "train", {"label": "dog"}),)
        first = len(before)
        new = (
            Sample(f"{n:032x}", f"{n}.png", SPLITS[n % 4], {"label": f"class {n % 5}" if labelled else None}, group(n))
            for n in range(first, first + count)
        )
        self.data[f"d{len(self.data)}"] = (*before, *new)

    def table(self, key: str, version: DataVersion) -> ScoreTable:
        """How a model reads samples: of a tenth by its skill, of the others all alike but for a few."""

        def is_right(digest: str) -> bool:
            hard, luck = drawn("hard", digest) < 0.1, drawn(key, digest)
            return luck < (0.3 + 10 * self.skills[key] if hard else 0.98)

        rows = tuple(
            Scored(s.digest, "label", cell, cell if is_right(s.digest) else "dog", 0.9)
            for s in version.samples
            if (cell := s.labels["label"]) is not None
        )
        right = float(np.mean([row.predicted == row.truth for row in rows]))
        return ScoreTable(key * 8, version.digest, rows, {METRIC: right}, {"label": "classification"})

    def run_job(self, asked: job.Job) -> None:
        """Score as the job on the cluster would."""
        self.jobs.append(asked)
        for name in asked.bundles:
            table = self.table(name.split("/")[1], asked.version)
            write_scores(job.scores_file(self.folder, table.bundle_digest, asked.version.digest), table)

    def judge(self, number: int, gain: float = 0.0, **changes: Any) -> PromotionResult:
        """The stages' verdict of a night, with a candidate that gains so much."""
        key = f"{number:08x}"
        self.skills[key] = gain
        bundle = self.folder / "work" / key / "bundle"
        bundle.mkdir(parents=True, exist_ok=True)
        rules = {"promotion": {**FRESH["promotion"], "guards": UNTRIED} | changes.pop("promotion", {})}
        plan = Plan.model_validate({"name": "m", "fit": {"seed": number}} | rules | changes)
        variant = Variant(backbone="resnet18", heads=(Head(target="label"),), fit=Fit(seed=number))
        version = DataVersion(self.version, "r" * 40, self.data[self.version], self.folder / "data", ())
        work_plan = WorkPlan(plan, version, (Work(key, variant, Weights("none")),), METRIC, "k")
        settings = SimpleNamespace(root=self.folder, workspace=self.folder, features=None)
        session: Any = SimpleNamespace(
            plan=plan, registry=self.registry, settings=settings, say=self.said.append, run_job=self.run_job
        )
        trained = TrainedVariant(key, variant, False, {f"val/{METRIC}": 0.9}, 1, 1, 1, 1.0, run_id="run")
        scores = score(session, work_plan, TrainResult((trained,), 0, 0.0, run_id="run"))
        return promote(session, work_plan, scores)

    def night(self, number: int, gain: float = 0.0, count: int = A_NIGHT, **changes: Any) -> PromotionResult:
        """A day later, after so many samples came."""
        self.now += DAY
        self.arrive(count)
        return self.judge(number, gain, **changes)

    def bets(self) -> list[LedgerEntry]:
        """The verdicts that bet on new samples."""
        return [entry for entry in self.registry.history("m") if entry.fresh]

    def digests_bet_on(self) -> list[str]:
        """The samples of all bets, those of every bet once."""
        tags = {version.version: version.bundle_digest for version in self.registry.versions("m")}
        files = [job.scores_file(self.folder, tags[entry.version], entry.fresh) for entry in self.bets()]
        return [row.digest for file in files if file.exists() for row in job.read_scores(file).rows]


UNTRIED = dict.fromkeys(("loads", "latency", "leaks"), "off")


@pytest.fixture(scope="module")
def founded(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a stream after its first night, which made a champion."""
    folder = tmp_path_factory.mktemp("stream")
    with pytest.MonkeyPatch.context() as patched:
        assert Stream(folder, patched).night(1).verdict.promoted, "a first model has to beat a constant, as ever"
    return folder


@pytest.fixture
def stream(founded: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Stream:
    shutil.copytree(founded, tmp_path / "stream")
    stream = Stream(tmp_path / "stream", monkeypatch)
    stream.arrive(A_NIGHT)
    stream.skills["00000001"] = 0.0
    stream.now += DAY
    return stream


def test_a_better_challenger_is_promoted_by_what_arrived_after_it_and_an_equal_one_is_not(stream: Stream) -> None:
    second = stream.night(2)
    assert second.verdict.reasons == ("champion 1 has no challenger yet: the first is this candidate",)
    assert aliases(stream.registry) == {"champion": "1", "challenger": "2"}
    equal = [stream.night(number) for number in range(3, 7)]
    assert not any(night.verdict.promoted for night in equal)
    assert [night.judged and night.judged.version.version for night in equal] == ["2", "3", "4", "5"]
    assert (
        equal[-1]
        .verdict.reasons[0]
        .startswith("150 labels arrived since challenger and champion were made, 600 in 4 nights of the reign of champion 1: no ")
    )
    assert [asked.kind for asked in stream.jobs[-2:]] == ["score", "fresh"], "the champion is not scored on the holdout"
    assert {sample.split for sample in stream.jobs[-1].version.samples} == {"train", "val", "test"}
    better = list[PromotionResult]()
    while not better or not better[-1].verdict.promoted:
        assert len(better) < 8
        better.append(stream.night(7 + len(better), 0.06))
    judged, candidate = better[-1].judged, better[-1].model
    assert judged
    assert candidate
    assert int(candidate.version) == int(judged.version.version) + 1
    assert aliases(stream.registry) == {"champion": judged.version.version, "previous": "1", "challenger": candidate.version}
    assert [one.guard for one in better[-1].verdict.findings][:2] == ["fresh_labels", "min_gain"]
    assert better[-1].verdict.figures["wealth"] >= 20
    used = stream.digests_bet_on()
    assert len(used) == len(set(used)) == A_NIGHT * len(stream.bets()), "each label once"
    history = stream.registry.history("m")
    assert [entry.version for entry in history if entry.promoted] == ["1", judged.version.version]
    assert [entry.level_spent for entry in stream.bets()] == [0.05, *[0.0] * (len(stream.bets()) - 1)]
    assert history[-1].champion_before == judged.version.version, "the challenger of the new champion"
    later = stream.night(30, 0.06).verdict
    assert f"150 in 1 night of the reign of champion {judged.version.version}" in later.reasons[0], "which begins at nothing"


def begun(stream: Stream, *gains: float) -> Stream:
    """The stream after challengers with these gains."""
    for number, gain in enumerate(gains, start=2):
        stream.night(number, gain)
    return stream


def test_nights_without_a_new_label_and_second_runs_of_a_night_judge_nothing(stream: Stream) -> None:
    begun(stream, 0.0)
    for number, count in ((3, 0), (4, 0)):
        verdict = stream.night(number, count=count).verdict
        assert verdict.reasons == (
            f"no label of 'label' arrived since version {number - 1} and version 1 were made: there is nothing to judge by",
        )
    assert not stream.bets()
    assert aliases(stream.registry)["challenger"] == "4"
    assert stream.night(5).judged
    again = stream.judge(6, weights="none")
    assert "no label of 'label' arrived since version 5 and version 1" in again.verdict.reasons[0]
    stream.night(7, count=80)
    assert [len(part.version.samples) for part in stream.jobs if part.kind == "fresh"] == [150, 80]


def test_samples_without_a_label_do_not_count_then_or_later(stream: Stream) -> None:
    begun(stream, 0.0)
    stream.arrive(40, labelled=False)
    assert "no label of 'label' arrived" in stream.night(3, count=0).verdict.reasons[0]
    samples = stream.data[stream.version]
    stream.data["told"] = tuple(replace(sample, labels={"label": "class 0"}) for sample in samples)
    assert "no label of 'label' arrived" in stream.judge(4).verdict.reasons[0], "the challenger was made from these images"
    stream.arrive(10)
    assert stream.judge(5).verdict.figures["num_new"] == 10


def test_a_group_is_one_bet_and_one_that_a_model_knows_is_not_new(stream: Stream) -> None:
    begun(stream)
    stream.arrive(60, group=lambda n: f"old{n % 20}")
    stream.judge(2)
    stream.arrive(90, group=lambda n: f"old{n % 20}" if n % 3 else f"new{n % 10}")
    figures = stream.judge(3).verdict.figures
    assert (figures["num_new"], figures["num_bets"]) == (30, 10)
    stream.arrive(9, group=lambda n: f"old{n % 20}")
    assert stream.judge(4).verdict.reasons == (
        "9 labels of 'label' arrived since version 3 and version 1 were made, of groups that they know already: there is nothing "
        "to judge by",
    )


def test_nights_that_are_skipped_leave_their_labels_to_the_next(stream: Stream) -> None:
    begun(stream, 0.0)
    for _ in range(3):
        stream.arrive(20)
    assert stream.night(3).verdict.figures["num_new"] == 60 + A_NIGHT
    used = stream.digests_bet_on()
    stream.data["fewer"] = tuple(s for s in stream.data[stream.version] if s.digest not in set(used[:50]))
    stream.judge(4)
    stream.data["back"] = stream.data["d5"]
    assert "no label" in stream.judge(5).verdict.reasons[0], "what was bet on is not new when it comes back"


def test_a_plan_that_changes_its_evidence_has_an_account_of_each(stream: Stream) -> None:
    holdout = {"promotion": {"evidence": "holdout"}}
    begun(stream)
    assert stream.night(2, -0.02, **holdout).verdict.figures["look"] == 1
    first = stream.night(3).verdict
    assert first.figures["num_nights"] == 1
    assert first.reasons[-1].startswith(
        "the holdout was asked 1 time about challengers of champion 1 too: a plan that changes its"
    )
    for number in range(4, 7):
        stream.night(number)
    back = stream.night(7, **holdout).verdict
    assert "look" not in back.figures
    assert back.reasons[0].startswith("gathering evidence against champion 1: challenger 6 of 7 of this recipe")
    versions = {version.version: version for version in stream.registry.versions("m")}
    account = account_of(
        stream.registry.history("m"), versions, versions["1"], stream.folder, metric=METRIC, recipe="", work_key="own"
    )
    assert account.num_looks == 1, "bets are no looks at the holdout"
    assert stream.night(8).verdict.figures["num_nights"] == 5


# After which call of which step the process is killed: a better challenger is judged, or one as good.
KILLS = [
    *((0.0, step, 1) for step in ("register", "record")),
    *((0.09, step, 1) for step in ("register", "_keep", "_describe")),
    (0.09, "_move", 2),
]


@pytest.mark.parametrize(("gain", "killed_in", "call"), KILLS)
def test_a_night_that_is_killed_ends_as_it_would_have_and_uses_no_label_twice(
    stream: Stream, monkeypatch: pytest.MonkeyPatch, gain: float, killed_in: str, call: int
) -> None:
    begun(stream, gain)
    stream.arrive(600)
    stream.now += DAY
    with killed_after(monkeypatch, Versions, killed_in, call):
        stream.judge(3)
    stream.now += DAY / 24
    stream.judge(3)
    history = stream.registry.history("m")
    named = ("1", "1") if not gain else ("2", "2")
    assert [(e.version, e.promoted, bool(e.fresh), e.champion_before, e.champion_after) for e in history] == [
        ("1", True, False, None, "1"),
        ("2", False, False, "1", "1"),
        ("2", bool(gain), True, "1", named[0]),
        ("3", False, False, *named),
    ]
    kept = {"champion": "2", "previous": "1", "challenger": "3"} if gain else {"champion": "1", "challenger": "3"}
    assert aliases(stream.registry) == kept
    stream.night(4)
    used = stream.digests_bet_on()
    assert len(used) == len(set(used)) == 600 + A_NIGHT


def test_what_is_proven_waits_for_a_person_where_promotions_are_manual(stream: Stream, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Versions, "pull", lambda self, name, which, dest: self.find(name, which))
    manual = {"promotion": {"manual": True}}
    begun(stream, 0.09)
    stream.arrive(600)
    waits = stream.night(3, **manual)
    assert (waits.verdict.promoted, waits.verdict.waits) == (False, True)
    assert waits.model
    assert waits.model.version == "3"
    assert aliases(stream.registry) == {"champion": "1", "challenger": "2"}
    later = stream.night(4, -0.03, **manual)
    assert later.judged
    assert later.judged.version.version == "3", "nights go on"
    stream.now += 60
    stream.registry.approve("m", None, "looked at it")
    champion = stream.registry.current("m")["champion"].version
    assert champion in ("2", "3")
    assert f"reign of champion {champion}" in stream.night(5).verdict.reasons[0]


def test_a_champion_that_comes_back_begins_its_bets_anew_and_on_other_labels(stream: Stream) -> None:
    begun(stream, 0.09)
    stream.arrive(600)
    assert stream.night(3).verdict.promoted
    stream.registry.rollback("m")
    stream.now += 60
    verdict = stream.night(4).verdict
    assert f"{A_NIGHT} in 1 night of the reign of champion 1" in verdict.reasons[0]
    used = stream.digests_bet_on()
    assert len(used) == len(set(used))
    stream.registry._client.set_registered_model_alias("m", "champion", "4")
    by_hand = stream.night(5).verdict
    assert by_hand.reasons == ("champion 4 has no challenger yet: the first is this candidate",)
    assert stream.night(6).judged


def test_what_a_guard_of_the_holdout_keeps_from_promotion_stays_challenger(stream: Stream) -> None:
    begun(stream, 0.09)
    stream.arrive(600)
    blocked = stream.night(3, promotion={"min_gain": 0.5})
    assert not blocked.verdict.promoted
    assert {one.guard for one in blocked.verdict.findings if one.blocks and not one.passed} == {"min_gain"}
    assert aliases(stream.registry) == {"champion": "1", "challenger": "3"}
    assert stream.bets()[-1].figures["wealth"] >= 20


def test_what_cannot_be_read_is_told_and_the_night_goes_on(stream: Stream, monkeypatch: pytest.MonkeyPatch) -> None:
    begun(stream, 0.0, 0.0)

    def gone(_: Any, version: Any) -> NoReturn:
        raise HeadstartError(f"the files of version {version.version} are gone")

    with monkeypatch.context() as patched:
        patched.setattr(scoring, "checked_bundle", gone)
        verdict = stream.night(4).verdict
    assert verdict.reasons == ("nothing is judged tonight: the files of version 3 are gone",)
    assert aliases(stream.registry)["challenger"] == "4"
    stream.gone.add("d1")
    words = stream.night(5).verdict.reasons[0]
    assert "the samples that version 1 was made from are not known on this machine (data version d1)" in words
    assert "dvc fetch --all-commits" in words
    stream.gone.clear()
    assert stream.night(6).judged


def test_scores_that_are_gone_count_for_nothing_and_their_labels_stay_used(stream: Stream) -> None:
    begun(stream, 0.0, 0.0)
    (entry,) = stream.bets()
    for file in (stream.folder / "scores").glob(f"*-{entry.fresh}-*"):
        file.unlink()
    verdict = stream.night(4).verdict
    assert verdict.figures["num_labels"] == A_NIGHT
    assert verdict.reasons[-1] == "the scores of 1 earlier night of the reign are gone, and do not count"
    assert stream.bets()[-1].level_spent == 0


def test_a_verdict_that_lost_its_champion_bets_nothing_in_the_reign_of_the_next(
    stream: Stream, monkeypatch: pytest.MonkeyPatch
) -> None:
    begun(stream, 0.09, 0.0)
    stream.arrive(600)
    real = Versions.register

    def register(self: Versions, *args: Any, **options: Any) -> Any:
        made = real(self, *args, **options)
        self._client.set_registered_model_alias("m", "champion", "2")
        return made

    with monkeypatch.context() as patched:
        patched.setattr(Versions, "register", register)
        verdict = stream.night(4).verdict
    assert not verdict.promoted
    assert verdict.findings[0].guard == "still_champion"
    assert not verdict.fresh
    assert stream.registry.current("m")["champion"].version == "2"
    assert "in 1 night of the reign of champion 2" in stream.night(5).verdict.reasons[0]


def test_a_candidate_that_is_the_champion_itself_is_no_challenger(stream: Stream) -> None:
    begun(stream, 0.0)
    stream.data["again"] = stream.data["d1"]
    again = stream.judge(1)
    assert again.model
    assert again.model.version == "1"
    assert again.named is None
    assert aliases(stream.registry) == {"champion": "1", "challenger": "2"}
