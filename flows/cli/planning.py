"""`headstart plan` on a terminal: the variants, the trunks that they share, and the cost of what is left."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import get_args

from flows.cli import screen
from flows.records import Severity
from flows.stages.preview.compile_forecast import CompileForecast
from flows.stages.preview.costs import SAMPLE_UNITS, Estimate, SamplePhase, TrunkUse
from flows.stages.preview.plan_preview import Preview
from flows.stages.preview.text_lengths import CutTexts
from flows.words import counted, short
from heads.bert_size import modality_of
from heads.catalogue import Modality

TRUNK_COLUMNS = ["view", "variants", "samples", "stored", "to forward", "features", "GFLOPs", "time"]
# More than so many reasons nobody reads.
NUM_REASONS = 5


def show(preview: Preview, plan_file: object) -> None:
    """Print the preview of a plan."""
    _show_variants(preview)
    modality = modality_of(preview.variants[0].backbone)
    if preview.trunks:
        title = "Trunks: each runs once a sample and view, for all the variants that share it"
        columns = ["trunk", SAMPLE_UNITS[modality], *TRUNK_COLUMNS]
        screen.show_table(title, columns, [_trunk_row(trunk) for trunk in preview.trunks])
    _show_phases(preview.images, modality)
    for line in describe_compiling(preview.compiling):
        screen.out.print(line, markup=False, soft_wrap=True)
    for cut in preview.cut_texts:
        if cut.texts_cut:
            screen.out.print(describe_cut(cut), markup=False, soft_wrap=True)
    screen.out.print(describe_guards(preview.guards), markup=False, soft_wrap=True)
    for warning in preview.warnings:
        screen.warn(warning)
    left, total = preview.left, len(preview.variants)
    if left:
        screen.out.print(describe_estimate(preview.estimate, left, in_driver=preview.in_driver), markup=False, soft_wrap=True)
    verb = "is" if left == 1 else "are"
    screen.note(f"{left} of {counted(total, 'variant')} {verb} left to train. Next: headstart retrain {plan_file}")


def describe_compiling(forecasts: Sequence[CompileForecast]) -> list[str]:
    """Which phases would run compiled and why, a line for each that differs."""
    lines = list(dict.fromkeys(_describe_compiling(one) for one in forecasts))
    more = len(lines) - NUM_REASONS
    return [*lines[:NUM_REASONS], *([f"  and {counted(more, 'line')} more; --json has them all"] if more > 0 else [])]


def _describe_compiling(forecast: CompileForecast) -> str:
    phase = f"compile: {forecast.backbone}, {counted(forecast.num_frozen_stages, 'stage')} frozen"
    steps = counted(forecast.num_steps, "step")
    if forecast.saved is None or forecast.compile_seconds is None:
        least = screen.duration(forecast.least_seconds)
        return f"{phase}: nothing is measured yet where it trains: it is compiled if its {steps} take more than {least}"
    if forecast.steps_to_pay_back is None:
        return f"{phase}: steps were no shorter compiled on this machine: it is not compiled"
    pays = f"pays back after about {counted(forecast.steps_to_pay_back, 'step')}, and this plan has {forecast.num_steps}"
    verdict = "it is compiled" if forecast.is_compiled else "it is not compiled"
    measured = f"{screen.duration(forecast.compile_seconds)} to compile, {forecast.saved:.0%} saved of a step"
    return f"{phase}: {pays}: {verdict} (measured on this machine: {measured})"


def describe_cut(cut: CutTexts) -> str:
    """How many texts are longer than a backbone reads, in a line."""
    are_all = cut.texts_counted == cut.texts
    texts = (
        f"{cut.texts_cut} of {counted(cut.texts, 'text')}"
        if are_all
        else f"About {cut.texts_cut / cut.texts_counted:.0%} of texts"
    )
    longer = f"{texts} have more than the {cut.max_tokens} tokens that {cut.backbone} reads (max_tokens)"
    # Where a text is cut, not all is read: never 100.0 %.
    by = "" if are_all else f" (estimated from {cut.texts_counted:,} of {counted(cut.texts, 'text')})"
    return f"{longer}; {min(cut.tokens_read_share, 0.999):.1%} of all tokens are read{by}"


def describe_guards(guards: Mapping[str, Severity]) -> str:
    """Which guards of a promotion block, which only warn, and which are off, in a line."""
    named = {severity: ", ".join(name for name, given in guards.items() if given == severity) for severity in get_args(Severity)}
    return "Guards of a promotion: " + "; ".join(f"{severity}: {names}" for severity, names in named.items() if names)


def _show_variants(preview: Preview) -> None:
    rows = [
        [
            v.variant_id,
            v.backbone,
            " + ".join(f"{target} {design}" for target, design in v.heads.items()),
            v.freeze,
            ", ".join(f"{name} {value}" for name, value in v.fit.items()) or "as in the plan",
            "failed before" if v.failed else "done" if v.done else f"{counted(v.epochs, 'epoch')} to train",
        ]
        for v in preview.variants
    ]
    title = f"{preview.name} on data {short(preview.data_version)}: {counted(preview.samples, 'sample')}"
    screen.show_table(title, ["variant", "backbone", "heads", "freeze", "fit", "state"], rows)


def _trunk_row(trunk: TrunkUse) -> list[object]:
    views = trunk.views
    return [
        f"{trunk.backbone} through {trunk.through}",
        trunk.image_size_px or trunk.max_tokens,
        "plain" if views == (0,) else f"{len(views)} varied" if 0 not in views else f"plain, {len(views) - 1} varied",
        len(trunk.variants),
        trunk.samples,
        trunk.samples_stored,
        trunk.samples_to_forward,
        screen.size(trunk.bytes),
        f"{trunk.flops / 1e9:,.1f}",
        screen.duration(trunk.seconds) if trunk.samples_to_forward else "-",
    ]


def _show_phases(phases: Sequence[SamplePhase], modality: Modality) -> None:
    """Print which phases read samples themselves, and why, a line a reason."""
    reasons: dict[str, list[SamplePhase]] = {}
    for phase in phases:
        reasons.setdefault(phase.reason, []).append(phase)
    if reasons:
        screen.out.print(f"From {modality}s, not from stored features:", markup=False)
    for reason, alike in list(reasons.items())[:NUM_REASONS]:
        variants = len({phase.variant_id for phase in alike})
        epochs = sum(phase.epochs for phase in alike)
        screened = " (at most: only the best of their screening)" if any(phase.is_screened for phase in alike) else ""
        line = f"  {counted(epochs, 'epoch')} of {counted(variants, 'variant')}{screened}: {reason}"
        screen.out.print(line, markup=False, soft_wrap=True)
    if len(reasons) > NUM_REASONS:
        screen.out.print(f"  and {counted(len(reasons) - NUM_REASONS, 'reason')} more; --json has them all", markup=False)


def describe_estimate(estimate: Estimate, num_left: int, *, in_driver: bool = False) -> str:
    """The cost of what is left, in words, compared with one job a variant; `in_driver` says that no workers are started."""
    asked, alone = estimate.flops / 1e9, estimate.flops_alone / 1e9
    lines = [
        f"About {screen.duration(estimate.seconds)} of training, {asked:,.1f} GFLOPs. A job a variant "
        f"({counted(num_left, 'job')} without stored features): {screen.duration(estimate.seconds_alone)}, {alone:,.1f} GFLOPs."
    ]
    if estimate.flops_factor:
        lines.append(f"Saved: {estimate.flops_factor:,.1f} x the arithmetic, about {estimate.seconds_factor:,.1f} x the time.")
    else:
        lines.append("Saved: all of the backbones' arithmetic, the features are stored already.")
    device = {"cpu": "this machine's CPU", "cuda": "this machine's GPU"}[estimate.device]
    by = f"Timed on {device}{estimate.elsewhere}" if estimate.calibrated else "By stated rates of a CPU core, not timed here"
    without = "the job's driver trains alone, done before workers would have started"
    lines.append(f"{by}; {without if in_driver else 'the start of the workers comes on top'}.")
    return "\n".join(lines)
