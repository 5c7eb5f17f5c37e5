"""The readings of corrupted and attacked holdout images by the candidate and the champion, in a Ray job."""

from __future__ import annotations

import contextlib
import hashlib
import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from flows import job
from flows.files import read_json, read_value
from flows.gate.trials import Robustness, Trials
from heads.catalogue import TASK_FACTS

if TYPE_CHECKING:
    from flows.stages.session import RetrainingSession
    from flows.stages.values import Scores, WorkPlan

SAY_EVERY_SECONDS = 30.0


def measure_robustness(session: RetrainingSession, work_plan: WorkPlan, scores: Scores, trials: Trials) -> Trials:
    """The trials with both models' readings; without them of masks, of which an attack has no single loss."""
    from flows.stages.scoring import bundle_of
    from heads.bundle import digest

    target = work_plan.metric.rpartition("/")[0]
    if TASK_FACTS[scores.table.tasks[target]].tells == "pixels":
        session.say(f"Robustness is not measured: {target!r} is a target of masks, and it is defined for classes and label sets")
        return trials
    storage, version = session.settings.storage, work_plan.version.digest
    bundles = [scores.candidate.bundle, *([bundle_of(session, scores.champion)] if scores.champion else [])]
    files = {bundle: job.robustness_file(storage, digest(bundle), version, target) for bundle in bundles}
    missing = [bundle for bundle in bundles if not files[bundle].exists()]
    if missing:
        _run(session, work_plan, target, missing, [files[bundle] for bundle in missing])
    found = [read_value(Robustness, read_json(files[bundle])) for bundle in bundles]
    return replace(trials, robustness=(found[0], found[1] if scores.champion else None))


def _run(session: RetrainingSession, work_plan: WorkPlan, target: str, bundles: list[Path], files: list[Path]) -> None:
    asked = job.Job(
        kind="robustness",
        key=hashlib.sha256("".join(file.name for file in files).encode()).hexdigest()[:16],
        name=session.plan.name,
        storage=session.settings.storage,
        version=work_plan.version,
        classes=work_plan.classes,
        workers=session.plan.workers.group(),
        bundles=tuple(bundles),
        target=target,
    )
    session.say("Reading corrupted and attacked images of the holdout")
    with _saying_progress(session, asked):
        session.run_job(asked)


@contextlib.contextmanager
def _saying_progress(session: RetrainingSession, asked: job.Job) -> Iterator[None]:
    """Say in the block, from a thread, how many images are read, as long as that takes."""
    stop = threading.Event()

    def watch() -> None:
        while not stop.wait(SAY_EVERY_SECONDS):
            with contextlib.suppress(OSError, ValueError):
                done, total = asked.folder.num_stored()
                session.say(f"{done} of {total} images are read, corrupted and attacked")

    thread = threading.Thread(target=watch, name="robustness", daemon=True)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join(5)
