"""The search for the holdout's pictures among those of train and val, in a Ray job, on features that a variant stores."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from flows import job
from flows.errors import HeadstartError
from flows.gate.trials import Trials
from flows.leak_records import Leaks
from flows.records import Work
from flows.sample_files import locate
from flows.stages.jobs import new_job
from heads.errors import HeadsError

if TYPE_CHECKING:
    from flows.stages.session import RetrainingSession
    from flows.stages.values import Contest, WorkPlan


def find_leaks(session: RetrainingSession, work_plan: WorkPlan, scores: Contest) -> Trials:
    """The leaks of the holdout; nothing if no variant of the plan stores features.

    A search that fails is told and left out, since a warning is worth no night; where leaks block, its error is raised.
    """
    from heads.data.near_duplicates.likeness import is_comparable
    from heads.trunks.trunk import stored_taps

    if work_plan.version.modality != "image":
        session.say(
            f"Near-duplicates of the holdout are looked for among images alone, and these are {work_plan.version.modality}s"
        )
        return Trials()
    candidates = sorted(work_plan.works, key=lambda work: work.key != scores.key)
    storing = next((work for work in candidates if stored_taps(work.variant)), None)
    if storing is None:
        session.say("Near-duplicates of the holdout are not looked for: no variant of the plan stores features")
        return Trials()
    tested = [sample for sample in work_plan.version.samples if sample.split == "test"]
    try:
        if not any(is_comparable(locate(work_plan.version, sample)) for sample in tested):
            return Trials(leaks=Leaks(len(tested), len(tested), ()))
        return Trials(leaks=_search(session, work_plan, storing))
    except (HeadstartError, HeadsError) as error:
        if session.plan.promotion.guards.leaks == "block":
            raise
        session.say(f"Near-duplicates of the holdout were not found, for the search failed: {error}")
        return Trials()


def _search(session: RetrainingSession, work_plan: WorkPlan, work: Work) -> Leaks | None:
    file = job.leaks_file(session.settings.root, work.key)
    if not file.exists():
        session.say("Looking for near-duplicates of the holdout in train and val")
        session.run_job(replace(new_job(session, work_plan, "leaks", work.key), works=(work,)))
    return job.read_leaks(file)
