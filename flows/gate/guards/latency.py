"""Whether the candidate takes longer to serve than the champion."""

from __future__ import annotations

import numpy as np
import scipy

from flows.gate.case import Case
from flows.gate.evidence import LEVEL
from flows.records import Finding


def latency(case: Case) -> Finding | None:
    """The median of the paired ratios of time, a sample at a time; None until it is measured, or without a champion.

    It passes unless its 95 % interval, from order statistics (the sign test's; Conover, "Practical Nonparametric Statistics",
    1999, section 3.2), is above the policy's `max_slowdown`. The bundles' sizes are said beside it.
    """
    new, old = case.trials.serving or (None, None)
    if new is None or old is None:
        return None
    ratio, low, high = median_ratio(np.asarray(new.seconds) / np.asarray(old.seconds))
    passed = low <= case.policy.max_slowdown
    (new_median, new_most), (old_median, old_most) = (np.quantile(serving.seconds, [0.5, 0.9]) * 1000 for serving in (new, old))
    words = (
        f"a sample takes {new_median:.1f} ms on this machine (90 % within {new_most:.1f}), "
        f"of {case.champion_name} {old_median:.1f} ms ({old_most:.1f}); "
        f"{ratio:.2f} times as long ({low:.2f} to {high:.2f}) in the median of paired calls, "
        f"{'not more' if passed else 'more'} than {case.policy.max_slowdown:g} times; the bundle has "
        f"{new.num_bytes / 1e6:.1f} MB against {old.num_bytes / 1e6:.1f} MB"
    )
    figures = {
        "num_measured": float(len(new.seconds)),
        "median_ms": float(new_median),
        "p90_ms": float(new_most),
        "champion_median_ms": float(old_median),
        "champion_p90_ms": float(old_most),
        "ratio": ratio,
        "low": low,
        "high": high,
        "most": case.policy.max_slowdown,
        "num_bytes": float(new.num_bytes),
        "champion_num_bytes": float(old.num_bytes),
    }
    return Finding("latency", passed, words, figures)


def median_ratio(ratios: np.ndarray[tuple[int], np.dtype[np.float64]]) -> tuple[float, float, float]:
    """The median of independent ratios, and an interval that covers the true one in 95 %; of five or fewer, all of them."""
    ordered = np.sort(ratios)
    outside = max(0, int(scipy.stats.binom.ppf((1 - LEVEL) / 2, len(ordered), 0.5)) - 1)
    return float(np.median(ordered)), float(ordered[outside]), float(ordered[-1 - outside])
