"""The variants that a plan would train, which of them are done, and what the others cost."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from flows.plan import Plan, VariantRow, describe_variants
from flows.records import Severity
from flows.settings import Settings
from flows.stages.driver_training import trains_in_driver
from flows.stages.failures import why_failed
from flows.stages.planning import make_work_plan
from flows.stages.preview.compile_forecast import CompileForecast, forecast
from flows.stages.preview.cost_estimate import estimate_costs
from flows.stages.preview.costs import Estimate, SamplePhase, TrunkUse
from flows.stages.preview.foreseen import foresee_verdict
from flows.stages.preview.text_lengths import CutTexts, count_cut_texts


@dataclass(frozen=True)
class PlannedVariant(VariantRow):
    """A variant of a plan, and whether it is done; `failed` is why it failed for good, None if it did not."""

    epochs: int
    done: bool
    failed: str | None


@dataclass(frozen=True)
class Preview:
    """A plan on a data version: its variants, how many are left to train, what that costs, and what guards may do.

    `in_driver` says that the job's driver trains them by itself, without workers; `compiling` is of variants that ask for it.
    `cut_texts` say how much of the texts is read, if samples may be looked at. `warnings` say so if no model could be promoted on
    the test split.
    """

    name: str
    data_version: str
    samples: int
    metric: str
    guards: Mapping[str, Severity]
    variants: tuple[PlannedVariant, ...]
    left: int
    trunks: tuple[TrunkUse, ...]
    images: tuple[SamplePhase, ...]
    estimate: Estimate
    in_driver: bool
    compiling: tuple[CompileForecast, ...]
    cut_texts: tuple[CutTexts, ...]
    warnings: tuple[str, ...]


def preview(settings: Settings, plan: Plan, *, calibrate: bool = True) -> Preview:
    """The variants of a plan on the workspace's data version, which are done, and what the others cost; touches nothing.

    `calibrate` looks at samples: it times this machine for about two seconds, so that the estimate is in seconds of this machine,
    and counts the tokens of some texts.
    """
    from flows import dataset

    version = dataset.read_version(settings.workspace)
    work_plan = make_work_plan(plan, version, settings)
    rows = zip(work_plan.works, describe_variants([work.variant for work in work_plan.works]), strict=True)
    variants = tuple(
        PlannedVariant(
            **vars(row),
            epochs=work.variant.fit.epochs,
            done=work_plan.is_done(settings, work),
            failed=why_failed(settings, work),
        )
        for work, row in rows
    )
    left = [work for work, variant in zip(work_plan.works, variants, strict=True) if not variant.done]
    costs = estimate_costs(settings, work_plan, calibrate=calibrate)
    return Preview(
        name=plan.name,
        data_version=version.digest,
        samples=len(version.samples),
        metric=work_plan.metric,
        guards=plan.promotion.guards.severities,
        variants=variants,
        left=len(left),
        trunks=costs.trunks,
        images=costs.images,
        estimate=costs.estimate,
        in_driver=trains_in_driver(settings, work_plan, left),
        compiling=forecast(work_plan, left, device=costs.estimate.device, is_here=not costs.estimate.elsewhere),
        cut_texts=count_cut_texts(work_plan) if calibrate else (),
        warnings=tuple(filter(None, [foresee_verdict(work_plan)])),
    )
