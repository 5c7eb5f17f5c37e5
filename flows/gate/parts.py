"""Parts of the holdout, such as its classes or groups: in which of them the candidate is worse than the champion. Pure."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from flows.gate.answers import Right
from flows.gate.bootstrap import resample
from flows.gate.classes import Pairs, mcnemar
from flows.gate.evidence import one_sided
from flows.gate.measures import Answers, is_ranked, measure_of, num_differing
from flows.records import Finding
from flows.words import counted
from heads.catalogue import Task

# The chance that equal models are found worse in any part.
ALPHA = 0.05
# So many of the worst parts are named.
MAX_NAMED = 3


@dataclass(frozen=True)
class Part:
    """Some samples of the holdout: the measure of both models on them, the gain with its 95 % interval.

    `p_value` is the chance of a loss as great or greater between equal models.
    """

    name: str
    num_samples: int
    new: float
    old: float
    low: float
    high: float
    p_value: float

    @property
    def gain(self) -> float:
        """The candidate's measure less the champion's."""
        return self.new - self.old

    @property
    def words(self) -> str:
        """The comparison in words."""
        return (
            f"{self.name} {self.new:.3f} against {self.old:.3f}: {self.gain:+.3f} ({self.low:+.3f} to {self.high:+.3f}) on "
            f"{counted(self.num_samples, 'sample')}"
        )


def compare_right(name: str, new: Right, old: Right) -> Part:
    """A part whose samples (N) each model reads rightly or not: exact McNemar, with Tango's interval."""
    pairs = Pairs(new, old)
    p_value = one_sided(mcnemar(pairs.num_fixed, pairs.num_broken), -pairs.gain)
    return Part(name, pairs.num_samples, float(new.mean()), float(old.mean()), *pairs.gain_interval, p_value)


def compare_answers(name: str, task: Task, measure: str, new: Answers, old: Answers, *, seed: int) -> Part | None:
    """A part judged by a measure of its answers, by the paired bootstrap; None if the measure is not defined on it."""
    differing = num_differing(new, old, ranked=is_ranked(task, measure))
    measures = (measure_of(task, measure, answers) for answers in (new, old))
    found = resample(*measures, num_samples=len(new.truths), num_differing=differing, seed=seed)
    if not np.isfinite([found.new.value, found.old]).all():
        return None
    p_value, gain = one_sided(found.p_value, -found.gain.value), found.gain
    return Part(name, len(new.truths), found.new.value, found.old, gain.low, gain.high, p_value)


def least_samples(num_parts: int) -> int:
    """How many samples a part needs to be found worse among so many: on fewer even a loss of all is no proof by Holm's rule."""
    return int(np.floor(np.log2(num_parts / ALPHA))) + 1


def pool_small(parts: Mapping[str, Collection[tuple[str, str]]]) -> dict[str, list[tuple[str, str]]]:
    """The samples of each part, those of parts that are too small by themselves as one last part; parts keep their order."""
    least = least_samples(max(1, len(parts)))
    small = [name for name, keys in parts.items() if len(keys) < least]
    pooled = {name: sorted(keys) for name, keys in parts.items() if name not in small}
    if len(small) == 1:
        return {**pooled, small[0]: sorted(parts[small[0]])}
    if small:
        pooled[f"{len(small)} of fewer than {least} samples each, together,"] = sorted({k for name in small for k in parts[name]})
    return pooled


def holm(p_values: Sequence[float]) -> NDArray[np.float64]:
    """Each p-value as it counts beside the others (Holm 1979, Scand. J. Statist. 6:65-70): if below a level, rejected."""
    values = np.asarray(p_values, dtype=np.float64)
    order, m = np.argsort(values, kind="stable"), len(values)
    adjusted = np.empty(m)
    adjusted[order] = np.maximum.accumulate(values[order] * np.arange(m, 0, -1)).clip(max=1.0)
    return adjusted


def judge_parts(guard: str, kind: str, measure: str, parts: Sequence[Part], opponent: str) -> Finding | None:
    """The finding on parts: it passes unless one is worse than the opponent's, by Holm's rule over all; None without parts."""
    if not parts:
        return None
    adjusted = holm([part.p_value for part in parts])
    ranked = sorted(zip(adjusted.tolist(), parts, strict=True), key=lambda pair: (pair[0], pair[1].p_value, pair[1].gain))
    worse = [part for p_value, part in ranked if p_value < ALPHA]
    p_value, last = ranked[0]
    figures = {
        "num_parts": float(len(parts)),
        "num_worse": float(len(worse)),
        "num_samples": float(last.num_samples),
        "metric": last.new,
        "champion_metric": last.old,
        "gain": last.gain,
        "gain_low": last.low,
        "gain_high": last.high,
        "p_value": p_value,
        "level": ALPHA,
    }
    rule = f"at {ALPHA:.0%}, by Holm's rule over {len(parts)}"
    if not worse:
        words = f"no {kind} has worse {measure} than {opponent} ({rule}); the last: {last.words}, p = {p_value:.3f}"
        return Finding(guard, True, words, figures)
    named = "; ".join(part.words for part in worse[:MAX_NAMED])
    more = f"; and {len(worse) - MAX_NAMED} more" if len(worse) > MAX_NAMED else ""
    on = counted(len(worse), kind, "classes" if kind == "class" else "")
    return Finding(guard, False, f"worse {measure} than {opponent} on {on} ({rule}): {named}{more}", figures)
