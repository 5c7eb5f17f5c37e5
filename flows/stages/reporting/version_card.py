"""The card of a version that was judged: what it tells is gathered here, and kept where MLflow shows it."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

from flows import dataset
from flows.errors import HeadstartError
from flows.model_version import ModelVersion
from flows.plan import groups_of
from flows.records import Sample, Verdict, Weights
from flows.stages.reporting.card_text import CardFacts, TargetStanding, with_verdict, write_version_card
from flows.stages.reporting.text_examples import snippets, text_pictures
from flows.stages.session import RetrainingSession
from flows.stages.values import PromotionResult, Scores, WorkPlan
from heads.catalogue import TASK_FACTS

MAX_HEAD_CHARS = 4000


def keep_card(session: RetrainingSession, work_plan: WorkPlan, scores: Scores, promotion: PromotionResult) -> dict[str, bytes]:
    """Write the card of the version that was judged, and give its reliability diagrams and texts' examples by file name.

    Nothing is written if no version was registered for the candidate. Where an earlier one was judged, that one's card gets the
    verdict, and the candidate's says that it is the challenger.
    """
    if promotion.judged:
        _tell_verdict(session, promotion.judged.version, promotion.verdict)
    version, verdict = promotion.model, promotion.on_candidate
    if version is None or version.work_key != scores.candidate.key:
        return {}
    standings = _standings(work_plan, scores, verdict)
    work = next(work for work in work_plan.works if work.key == scores.candidate.key)
    data = work_plan.version
    texts = snippets(data, standings) if data.modality == "text" else {}
    facts = CardFacts(
        name=version.name,
        version=version.version,
        verdict=verdict,
        data_version=work_plan.version.digest,
        git_commit=version.git_commit or "unknown",
        samples=work_plan.version.samples,
        before=_before(session, scores.champion),
        champion=scores.champion.version if scores.champion else None,
        standings=standings,
        licence=_licence(work.variant.backbone, work.weights),
        bundle_card=(scores.bundle / "card.md").read_text(encoding="utf-8"),
        run_id=version.run_id,
        of_texts=data.modality == "text",
        files={sample.digest: sample.file for sample in work_plan.version.samples if sample.split == "test"} | texts,
        pictures=session.registry.pictures(version),
    )
    session.registry.describe(version, write_version_card(facts))
    return _diagrams(standings) | text_pictures(data, scores.bundle, standings)


def _tell_verdict(session: RetrainingSession, judged: ModelVersion, verdict: Verdict) -> None:
    try:
        card = session.registry.card(judged.name, judged.version)
        session.registry.describe(judged, with_verdict(card, verdict))
    except (HeadstartError, OSError) as error:  # its run may be gone
        session.say(f"The card of version {judged.version} does not tell its verdict: {error}")


def _standings(work_plan: WorkPlan, scores: Scores, verdict: Verdict) -> tuple[TargetStanding, ...]:
    """How each target is read; nothing while the gate gathers evidence, and says nothing of how the holdout is read."""
    from flows.gate import standing

    if scores.keeps_silent(verdict):
        return ()
    groups = groups_of(work_plan.plan, work_plan.version)
    table = scores.table
    found = []
    for target, task in table.tasks.items():
        measures = {name.rpartition("/")[2]: value for name, value in table.metrics.items() if name.rpartition("/")[0] == target}
        rows = tuple(row for row in table.rows if row.target == target) if TASK_FACTS[task].tells in ("class", "labels") else ()
        accuracies = standing.accuracies(table, target, groups)
        found.append(TargetStanding(target, measures, accuracies, standing.reliability(table, target), rows))
    return tuple(found)


def _before(session: RetrainingSession, champion: ModelVersion | None) -> Sequence[Sample] | None:
    digest = champion.data_version if champion else ""
    try:
        return dataset.read_samples(session.settings.workspace, digest) if digest else None
    except HeadstartError:
        return None


def _licence(backbone: str, weights: Weights) -> str:
    from heads.backbones import row_of
    from heads.backbones.source import LICENCE

    source = row_of(backbone).source
    if weights.path is None:
        return "It was trained from random weights: none of others are in it."
    if source and weights.digest.startswith(source.digest):
        return LICENCE.format(backbone=backbone, weights=source.name)
    if weights.origin:
        return f"Its first weights are those of {weights.origin} (sha256 {weights.digest}): their licence is told there."
    what = "folder" if weights.path.is_dir() else "file"
    words = f"Its first weights are those of a {what} that the plan names (sha256 {weights.digest})"
    stated = _stated_licence(weights.path)
    return f"{words}: {f'its README states the licence {stated}' if stated else f'their licence is that of the {what}'}."


def _stated_licence(folder: Path) -> str:
    """The licence in the head of a folder's README.md, where model cards have it; '' if there is none."""
    try:
        head = (folder / "README.md").read_text(encoding="utf-8", errors="replace")[:MAX_HEAD_CHARS]
    except OSError:
        return ""
    # Between two lines of dashes.
    head = head.split("---")[1] if head.startswith("---") else ""
    found = re.search(r"^licen[cs]e:[ \t]*['\"]?([\w.+-]{1,60})", head, re.MULTILINE)
    return found[1] if found else ""


def _diagrams(standings: Sequence[TargetStanding]) -> dict[str, bytes]:
    from flows.pictures import picture_file, reliability_diagram

    return {
        picture_file("reliability", one.target): reliability_diagram(
            [(each.low, each.high, each.num_answers, each.probability, each.right) for each in one.bins], one.target
        )
        for one in standings
        if one.bins
    }
