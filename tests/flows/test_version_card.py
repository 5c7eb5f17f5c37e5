"""The card of a version: what changed in the data, accuracies with intervals, reliability; where MLflow keeps it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from statsmodels.stats.proportion import proportion_confint

from flows import dataset
from flows.errors import AskedWrongly
from flows.gate.standing import accuracies, reliability
from flows.pictures import reliability_diagram
from flows.plan import Plan
from flows.records import DataVersion, Finding, Sample, ScoreTable, TrainedVariant, Verdict, Weights, Work
from flows.registry import Registry
from flows.stages.reporting import version_card
from flows.stages.reporting.card_text import describe_change, with_verdict
from flows.stages.reporting.version_card import keep_card
from flows.stages.values import Challenge, PromotionResult, Scores, StoredBundle, WorkPlan
from flows.tracking import Origin, Tracker
from heads.backbones import BACKBONES
from heads.spec import Head, Variant
from heads.tasks.rows import Scored

METRIC = "kind/accuracy"
NAMES = ("cat", "dog", "elk")


def rows(num: int = 200) -> tuple[Scored, ...]:
    random = np.random.default_rng(0)
    sure = random.uniform(0.34, 1, num)
    truths = random.choice(NAMES, num)
    told = [truth if random.random() < p else NAMES[(NAMES.index(truth) + 1) % 3] for truth, p in zip(truths, sure, strict=True)]
    return tuple(Scored(f"s{i:031}", "kind", str(truths[i]), told[i], float(sure[i])) for i in range(num))


def table(scored: tuple[Scored, ...], task: Any = "classification") -> ScoreTable:
    return ScoreTable("b" * 64, "d2", scored, {METRIC: 0.5, "kind/ece": 0.01}, {"kind": task})


def test_accuracies_have_the_intervals_of_statsmodels() -> None:
    scored = rows()
    groups = {row.digest: "north" if int(row.digest[1:]) % 3 else "south" for row in scored[:150]}
    found = accuracies(table(scored), "kind", groups)
    parts = {("all", "all"): scored}
    parts |= {("class", name): tuple(row for row in scored if row.truth == name) for name in NAMES}
    parts |= {("group", name): tuple(row for row in scored if groups.get(row.digest) == name) for name in ("north", "south")}
    assert {(kind, one.name) for kind, ones in found.items() for one in ones} == parts.keys()
    for (kind, name), part in parts.items():
        one = next(one for one in found[kind] if one.name == name)
        right = sum(row.truth == row.predicted for row in part)
        assert (one.num_samples, one.value) == (len(part), right / len(part))
        assert (one.low, one.high) == pytest.approx(proportion_confint(right, len(part), method="wilson"))


def test_labels_are_read_each_as_a_yes_or_no_and_masks_have_no_accuracy() -> None:
    scored = (
        Scored("1", "kind", "a|b", "a", 0.8, {"a": 0.9, "b": 0.2}),
        Scored("2", "kind", "", "", 0.9, {"a": 0.1, "b": 0.25}),
    )
    found = accuracies(table(scored, "multilabel"), "kind", {})
    assert [(one.name, one.value) for one in (*found["all"], *found["class"])] == [("all", 0.5), ("a", 1.0), ("b", 0.5)]
    bins = [
        (one.low, one.num_answers, round(one.probability, 3), one.right)
        for one in reliability(table(scored, "multilabel"), "kind")
    ]
    assert bins == [(0.1, 1, 0.1, 0.0), (0.2, 2, 0.225, 0.5), (0.9, 1, 0.9, 1.0)]
    masks = table((Scored("1", "kind", "m.png", "", 0.9, {}, (("0", "0", 9),)),), "segmentation")
    assert accuracies(masks, "kind", {}) == {}
    assert reliability(masks, "kind") == ()


def test_reliability_is_what_a_plain_loop_counts() -> None:
    scored = (*rows(), Scored("x", "kind", "cat", "cat", 1.0))
    for one in reliability(table(scored), "kind"):
        part = [row for row in scored if one.low <= row.probability < one.high or (one.high == 1 and row.probability == 1)]
        assert one.num_answers == len(part)
        assert one.probability == pytest.approx(sum(row.probability for row in part) / len(part))
        assert one.right == pytest.approx(sum(row.truth == row.predicted for row in part) / len(part))
    assert sum(one.num_answers for one in reliability(table(scored), "kind")) == 201
    assert reliability_diagram([(0.1, 0.2, 3, 0.15, 0.3)], "kind")[:8] == b"\x89PNG\r\n\x1a\n"


def samples(**changes: Any) -> list[Sample]:
    splits = ["train"] * 6 + ["val"] * 2 + ["test"] * 2
    return [Sample(f"{i:032}", f"{i}.png", split, {"kind": "cat"}, **changes) for i, split in enumerate(splits)]


def test_what_changed_between_two_data_versions_is_counted_by_split() -> None:
    before = samples()
    after = [replace(one, labels={"kind": "dog"}) if one.file in ("1.png", "8.png") else one for one in before[1:]]
    after = [replace(one, split="val") if one.file == "2.png" else one for one in after]
    after += [Sample("n" * 32, "n.png", "test", {"kind": "elk"})]
    assert describe_change(before, after) == [
        "train: 0 added, 1 removed",
        "test: 1 added, 0 removed",
        "train: 1 labelled otherwise",
        "test: 1 labelled otherwise",
        "1 sample in another split",
    ]
    assert describe_change(before, before) == ["the same samples with the same labels"]


@pytest.fixture(scope="module")
def registry(tmp_path_factory: pytest.TempPathFactory) -> Registry:
    folder = tmp_path_factory.mktemp("cards")
    address = f"sqlite:///{folder / 'mlflow.db'}"
    made, tracker = Registry(address, folder / "ledger"), Tracker(address, folder / "artifacts", "pets")
    variant = Variant(backbone="resnet18", heads=(Head(target="kind"),))
    run_id = tracker.start_variant(tracker.start_retraining("k", ORIGIN), Work("w1", variant, Weights("none")), ORIGIN)
    (folder / "bundle").mkdir()
    (folder / "bundle" / "card.md").write_text("# The bundle's own card\n")
    made._client.log_text(run_id, "x", "pictures/confusion_kind.png")
    made._client.create_registered_model("pets")
    for key in ("w0", "w1"):
        tags = {"headstart.work_key": key, "headstart.data_version": "d1", "headstart.git_commit": "c0ffee"}
        run = {"headstart.run_id": run_id} if key == "w1" else {}
        made._client.create_model_version("pets", str(folder), tags=tags | run)
    return made


ORIGIN = Origin("d2", "rev", "/objects")


def kept(registry: Registry, monkeypatch: pytest.MonkeyPatch, figures: dict[str, float], weights: Weights) -> dict[str, bytes]:
    def before(workspace: Path, digest: str) -> tuple[Sample, ...]:
        if digest != "d1":
            raise AskedWrongly("no such version")
        return tuple(samples()[1:])

    monkeypatch.setattr(dataset, "read_samples", before)
    scored = rows()
    all_samples = [
        *samples()[:8],
        *(Sample(row.digest, f"{row.digest[-3:]}.jpg", "test", {"kind": "cat"}, "north") for row in scored),
    ]
    version = DataVersion("d2", "rev", tuple(all_samples), Path("data"), ())
    variant = Variant(backbone="resnet18", heads=(Head(target="kind"),))
    plan = Plan.model_validate({"name": "pets"})
    work_plan = WorkPlan(plan, version, (Work("w1", variant, weights),), METRIC, "k")
    bundle = Path(registry.ledgers.address).parent / "bundle"
    candidate = TrainedVariant("w1", variant, False, {}, 1, 1, 1, 1.0, run_id="run")
    findings = (Finding("paired_test", True, "it is better", figures), Finding("latency", False, "it is slow", {}, (), False))
    verdict = Verdict(True, ("it is better",), figures, findings)
    session: Any = SimpleNamespace(registry=registry, settings=SimpleNamespace(workspace=Path("workspace")))
    champion = registry.find("pets", "1")
    return keep_card(
        session,
        work_plan,
        Scores(candidate=candidate, table=table(scored), champion=champion, bundle=bundle),
        PromotionResult(verdict, registry.find("pets", "2")),
    )


def test_a_versions_card_is_kept_in_its_run_and_shown_on_its_page(registry: Registry, monkeypatch: pytest.MonkeyPatch) -> None:
    source = BACKBONES["resnet18"].source
    assert source is not None
    weights = Weights(source.digest + "0" * 8, Path("resnet18.pth"))
    registry._client.set_registered_model_alias("pets", "champion", "2")
    pictures = kept(registry, monkeypatch, {"gain": 0.1}, weights)
    assert pictures["reliability_kind.png"][:4] == b"\x89PNG"
    card = registry.card("pets", "champion")
    for words in (
        "# pets, version 2",
        "## Verdict: promoted",
        "- `paired_test`, passed: it is better",
        "- `latency`, warning: it is slow",
        "- version `d2`, commit `c0ffee`",
        "since version 1, the champion before: train: 1 added, 0 removed; test: 200 added, 2 removed",
        "accuracy 0.5000, ece 0.0100",
        "| north | group | 200 |",
        "| elk | class |",
        "Wrong, the surest first:",
        "`confusion_kind.png`",
        "headstart models pull pets@2 ./model",
        "IMAGENET1K_V1 of torchvision's resnet18",
        "BSD-3-Clause",
        "# The bundle's own card",
    ):
        assert words in card, words
    description = str(registry._client.get_model_version("pets", "2").description)
    assert card.startswith(description.partition("\n\n…")[0].removesuffix("\n```"))
    assert len(description) <= 5000
    assert "pets, version 2" in str(registry._client.get_registered_model("pets").description)


def test_while_evidence_is_gathered_a_card_says_nothing_of_the_holdout(
    registry: Registry, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert kept(registry, monkeypatch, {"num_looks": 2.0}, Weights("none")) == {}
    card = registry.card("pets", "2")
    assert "## Holdout" not in card
    assert "accuracy" not in card
    assert "random weights: none of others are in it" in card


def test_a_challenger_that_is_judged_later_has_its_verdict_in_its_card(
    registry: Registry, monkeypatch: pytest.MonkeyPatch
) -> None:
    kept(registry, monkeypatch, {"gain": 0.1}, Weights("none"))
    before = registry.card("pets", "2")
    verdict = Verdict(False, ("not yet",), {}, (Finding("fresh_labels", False, "not proven better yet"),))
    scored, version = table(rows()), registry.find("pets", "2")
    judged = Challenge(version, StoredBundle("", Path()), scored, registry.find("pets", "1"), scored)
    session: Any = SimpleNamespace(registry=registry)
    unused: Any = None
    assert keep_card(session, unused, unused, PromotionResult(verdict, None, judged)) == {}
    after = registry.card("pets", "2")
    assert after == before.replace(
        "promoted\n\n- `paired_test`, passed: it is better\n- `latency`, warning: it is slow",
        "not promoted\n\n- `fresh_labels`, **not passed**: not proven better yet",
    )
    assert before != after
    assert "## Verdict: not promoted" in str(registry._client.get_model_version("pets", "2").description)
    assert with_verdict("# The bundle's own card\n\n## Data\n\nnone\n", verdict).split("\n\n")[:3] == [
        "# The bundle's own card",
        "## Verdict: not promoted",
        "- `fresh_labels`, **not passed**: not proven better yet",
    ]


@pytest.mark.parametrize(
    ("readme", "words"),
    [
        (
            "---\nlicense: apache-2.0\n---\nlicense: other\n",
            "(sha256 abc): its README states the licence apache-2.0.",
        ),
        ("# A model\nlicense: mit\n", "(sha256 abc): their licence is that of the folder."),
        (None, "(sha256 abc): their licence is that of the folder."),
    ],
)
def test_the_licence_of_a_folder_of_weights_is_the_one_that_its_readme_states(
    tmp_path: Path, readme: str | None, words: str
) -> None:
    if readme:
        (tmp_path / "README.md").write_text(readme)
    told = version_card._licence("bert-6x384x12", Weights("abc", tmp_path))
    assert told == f"Its first weights are those of a folder that the plan names {words}"


def test_a_version_of_which_no_card_was_written_has_its_bundles(registry: Registry) -> None:
    assert registry.card("pets", "1") == "# The bundle's own card\n"
