"""Whether a first model is worse than the plain baseline of its plan: a probe of frozen features, or what counts words."""

from __future__ import annotations

from dataclasses import replace

from flows.gate.case import Case
from flows.gate.evidence import describe_p
from flows.records import Finding
from heads.catalogue import TASK_FACTS


def baseline(case: Case) -> Finding | None:
    """A first model's comparison with the baseline on the holdout; None beside a champion, or where none was fitted.

    It must not be proven worse, by the test that compares it with a constant answer and at the same level. Proven better it
    need not be: where a plan trains a linear head on the very trunk that the probe reads, the two are practically one model, and
    no holdout could ever tell them apart. Better than the constant answer it has to be proven all the same, by `paired_test`.
    """
    if case.champion or case.baseline is None:
        return None
    name, alpha = case.baseline_name, case.policy.alpha
    evidence = replace(case, champion=case.baseline, champion_name=name, baseline=None).evidence
    if isinstance(evidence, str):
        return Finding("baseline", True, evidence)
    found, measure = evidence.figures, "accuracy" if TASK_FACTS[case.task].tells == "class" else "metric"
    new, old, gain = found[measure], found[f"champion_{measure}"], found["gain"]
    p_worse = 1 - found["p_value"] if gain < 0 else 1.0
    passed = p_worse >= alpha
    figures = {"value": new, "baseline": old, "p_worse": p_worse, "alpha": alpha}
    figures |= {name: found[name] for name in ("num_samples", "gain", "gain_low", "gain_high")}
    told = "not proven worse" if passed else f"proven worse ({describe_p(p_worse)}, below alpha {alpha:g})"
    words = (
        f"holdout {'accuracy' if measure == 'accuracy' else case.policy.metric} {new:.3f} against {old:.3f} of {name}: "
        f"{gain:+.3f} ({found['gain_low']:+.3f} to {found['gain_high']:+.3f}), {told}"
    )
    if case.is_frozen:
        remedy = "more epochs, or another learning_rate"
    elif case.is_pretrained:
        remedy = "freeze: all, or a lower learning_rate"
    else:
        remedy = "more epochs, or a backbone with pretrained weights"
    advice = f"{case.baseline_reads} alone tell more than the training made of them: try {remedy}"
    return Finding("baseline", passed, words, figures, () if passed else (advice,))
