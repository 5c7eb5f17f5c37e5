"""The trials of serving: whether the candidate's bundle loads and answers as scored, and its time beside the champion's."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from flows.errors import HeadstartError
from flows.gate.trials import Serving, Trials
from flows.stages.trials.clean_process import ProcessFailed, holdout_samples, run
from heads.tasks.bio import read_cell
from heads.tasks.rows import Scored

if TYPE_CHECKING:
    from flows.stages.session import RetrainingSession
    from flows.stages.values import Contest, WorkPlan

# Other processors and GPUs round otherwise; a changed model is off by more.
TOLERANCE = 0.01
MEASURED_SECONDS = 4.0

ANSWER = """
def told(answer):
    if hasattr(answer, "mask"):
        return {"shares": dict(answer.shares), "num_pixels": answer.mask.size}
    if hasattr(answer, "tags"):
        return {"tags": list(answer.tags)}
    return {"probabilities": dict(answer.probabilities)}
answers = heads.bundle.load(asked["bundle"]).predict(samples, 4)
print(json.dumps([{target: told(answer) for target, answer in answer.items()} for answer in answers]))
"""
TIME = """
import time
bundles = [heads.bundle.load(path) for path in asked["bundles"]]
def seconds_of(bundle, sample):
    begin = time.perf_counter()
    bundle.predict([sample])
    return time.perf_counter() - begin
for bundle in bundles:
    for sample in samples[:3]:
        bundle.predict([sample])
measured, end = [], time.perf_counter() + asked["seconds"] * len(bundles)
while len(measured) < 10 or (time.perf_counter() < end and len(measured) < 400):
    number = len(measured)
    order = bundles if number % 2 else bundles[::-1]
    taken = [seconds_of(bundle, samples[number // 2 % len(samples)]) for bundle in order]
    measured.append(taken if number % 2 else taken[::-1])
print(json.dumps(list(zip(*measured))))
"""


def collect_loads(session: RetrainingSession, work_plan: WorkPlan, scores: Contest, /) -> Trials:
    """Load the candidate's bundle in a process of a consumer's, and compare its answers on holdout samples with those scored."""
    session.say("Trying the candidate's bundle in a consumer's process")
    return Trials(load_failure=_load_failure(work_plan, scores))


def collect_latency(session: RetrainingSession, work_plan: WorkPlan, scores: Contest, /) -> Trials:
    """Time the candidate and the champion in one process, sample by sample and in turns; nothing without a champion.

    A timing that fails is told and left out; where latency blocks, HeadstartError is raised, unless the guard of loading blocks.
    """
    from flows.stages.scoring import bundle_of

    if scores.champion is None:
        return Trials()
    session.say("Timing the candidate beside the champion")
    bundles = [scores.bundle, bundle_of(session, scores.champion).path]
    samples = holdout_samples(work_plan.version, {row.digest: row for row in scores.table.rows})
    try:
        seconds = run(
            TIME,
            list(samples.values()),
            work_plan.version.modality,
            bundles=[str(bundle) for bundle in bundles],
            seconds=MEASURED_SECONDS,
        )
    except ProcessFailed as error:
        guards = session.plan.promotion.guards
        if guards.latency == "block" and not (guards.loads == "block" and _load_failure(work_plan, scores)):
            raise HeadstartError(
                f"the candidate could not be timed beside version {scores.champion.version} of {scores.champion.name}: {error}; "
                "mend that, or set guards: {latency: warn}, and retrain again"
            ) from None
        session.say(f"The candidate is not judged by its latency: {error}")
        return Trials()
    new, old = (Serving(tuple(taken), _num_bytes(path)) for taken, path in zip(seconds, bundles, strict=True))
    return Trials(serving=(new, old))


def _num_bytes(bundle: Path) -> int:
    return sum(file.stat().st_size for file in bundle.iterdir())


def _load_failure(work_plan: WorkPlan, scores: Contest) -> str:
    """Why the bundle cannot be served, in words; '' if it can."""
    from heads import bundle as bundles
    from heads.errors import BundleError

    folder = scores.bundle
    rows: dict[str, list[Scored]] = {}
    for row in scores.table.rows:
        rows.setdefault(row.digest, []).append(row)
    samples = holdout_samples(work_plan.version, rows)
    try:
        if bundles.digest(folder) != scores.table.bundle_digest:
            return "it was changed since it was scored"
        bundles.verify(folder)
        answers = run(ANSWER, list(samples.values()), work_plan.version.modality, bundle=str(folder))
    except (BundleError, ProcessFailed) as error:
        return str(error)
    compared = ((row, answer[row.target]) for digest, answer in zip(samples, answers, strict=False) for row in rows[digest])
    return next((words for row, answer in compared if (words := _difference(row, answer))), "")


def _difference(row: Scored, answer: Mapping[str, Any]) -> str:
    """How an answer differs from the one that was scored, in words; '' if it does not, but for rounding."""
    where = f"{row.target!r} of sample {row.digest[:12]}"
    if "shares" in answer:
        return _mask_difference(row, answer["shares"], answer["num_pixels"], where)
    if "tags" in answer:
        return _tags_difference(row, answer["tags"], where)
    scored = row.probabilities or {row.predicted: row.probability}
    for name, probability in scored.items():
        found = answer["probabilities"].get(name, 0.0)
        if abs(found - probability) > TOLERANCE:
            return f"it answers {where} otherwise than it was scored: {name!r} with {found:.3f}, and not {probability:.3f}"
    return ""


def _tags_difference(row: Scored, tags: Sequence[str], where: str) -> str:
    """As `_difference`; one word in a hundred, and one in any sentence, may be as near to another tag as rounding."""
    scored = read_cell(row.predicted)
    num_other = sum(one != other for one, other in zip(scored, tags, strict=False)) + abs(len(scored) - len(tags))
    if num_other > max(1.0, TOLERANCE * len(scored)):
        return f"it answers {where} otherwise than it was scored: {num_other} of {len(scored)} words have another tag"
    return ""


def _mask_difference(row: Scored, shares: Mapping[str, float], num_pixels: int, where: str) -> str:
    """As `_difference`; of the pixels that were not counted in the scores it is not known what was answered."""
    counted = sum(count for _, _, count in row.pixels)
    slack = TOLERANCE * num_pixels
    for name, share in shares.items():
        scored = sum(count for _, predicted, count in row.pixels if predicted == name)
        if not scored - slack <= share * num_pixels <= scored + (num_pixels - counted) + slack:
            return f"it answers {where} otherwise than it was scored: {share:.3f} of the pixels are {name!r}"
    return ""
