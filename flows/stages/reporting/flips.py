"""The images of a verdict's negative flips, for its MLflow run."""

from __future__ import annotations

from flows.errors import HeadstartError
from flows.records import Verdict
from flows.stages.values import Contest, WorkPlan

MAX_IMAGES = 8
MAX_PX = 256


def flip_pictures(work_plan: WorkPlan, scores: Contest, verdict: Verdict) -> dict[str, bytes]:
    """A picture of the negative flips that the candidate is surest of; none where the verdict does not tell of any, or of texts.

    Images that cannot be read any more are left out.
    """
    from flows import gate
    from flows.pictures import sample_images
    from flows.sample_files import locate
    from heads.data.decoding import decode
    from heads.errors import ImageError

    if work_plan.version.modality != "image" or not any(
        finding.guard == "negative_flips" and finding.figures["num_flips"] for finding in verdict.findings
    ):
        return {}
    case = gate.Case(scores.table, scores.champion_table, gate.Policy(work_plan.metric))
    by_digest = {sample.digest: sample for sample in work_plan.version.samples if sample.split == "test"}
    shown = []
    for key in gate.flipped(case)[:MAX_IMAGES]:
        row = case.after[key]
        try:
            image = decode(locate(work_plan.version, by_digest[row.digest]))
        except (HeadstartError, ImageError, OSError):
            continue
        image.thumbnail((MAX_PX, MAX_PX))
        shown.append((f"{row.truth or 'nothing'} as {row.predicted or 'nothing'}, {row.probability:.2f}", image))
    title = f"Read rightly by the champion, wrongly by the candidate: {case.target}"
    return {"negative_flips.png": sample_images(shown, title)} if shown else {}
