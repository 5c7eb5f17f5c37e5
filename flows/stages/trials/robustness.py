"""The readings of corrupted and attacked holdout images by the candidate and the champion, in a Ray job."""

from __future__ import annotations

import hashlib
from dataclasses import replace
from typing import TYPE_CHECKING

from flows import job
from flows.files import read_value
from flows.gate.trials import Robustness, Trials
from flows.places import StoredFile
from flows.stages.background.watching import watching
from flows.stages.jobs import new_job
from heads.catalogue import TASK_FACTS

if TYPE_CHECKING:
    from flows.stages.session import RetrainingSession
    from flows.stages.values import Contest, WorkPlan

SAY_EVERY_SECONDS = 30.0


def measure_robustness(session: RetrainingSession, work_plan: WorkPlan, scores: Contest) -> Trials:
    """Both models' readings; nothing of masks, of which an attack has no single loss."""
    from flows.stages.scoring import bundle_of
    from heads.bundle import digest

    target = work_plan.target
    if work_plan.version.modality != "image":
        session.say(f"Robustness is not measured: it is defined for images, and the data set holds {work_plan.version.modality}s")
        return Trials()
    if TASK_FACTS[scores.table.tasks[target]].tells == "pixels":
        session.say(f"Robustness is not measured: {target!r} is a target of masks, and it is defined for classes and label sets")
        return Trials()
    root, version = session.settings.root, work_plan.version.digest
    bundles = [scores.stored, *([bundle_of(session, scores.champion)] if scores.champion else [])]
    files = [job.robustness_file(root, digest(bundle.path), version, target) for bundle in bundles]
    missing = {file: bundle.name for bundle, file in zip(bundles, files, strict=True) if not file.exists()}
    if missing:
        _run(session, work_plan, target, list(missing.values()), list(missing))
    found = [read_value(Robustness, file.read_json()) for file in files]
    return Trials(robustness=(found[0], found[1] if scores.champion else None))


def _run(session: RetrainingSession, work_plan: WorkPlan, target: str, bundles: list[str], files: list[StoredFile]) -> None:
    key = hashlib.sha256("".join(file.name for file in files).encode()).hexdigest()[:16]
    made = new_job(session, work_plan, "robustness", key)
    asked = replace(made, bundles=tuple(bundles), target=target)
    session.say("Reading corrupted and attacked images of the holdout")

    def watch() -> None:
        done, total = asked.folder.num_stored()
        session.say(f"{done} of {total} images are read, corrupted and attacked")

    with watching(watch, SAY_EVERY_SECONDS):
        session.run_job(asked)
