"""Groups of samples that were taken together, and so are misread together: they are drawn, and exchanged, as a whole. Pure."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping

import numpy as np
from numpy.typing import NDArray

from flows.words import counted

# With fewer, the spread between groups is not known well enough to judge by.
MIN_CLUSTERS = 10
FEW_GROUPS = (
    f"the holdout has fewer than {MIN_CLUSTERS} groups, so its samples are judged as if each were taken alone, which says more "
    "than groups of like samples can show; hold out more groups"
)

# The cluster's number of each sample (N), from 0.
Clusters = NDArray[np.int64]


def clusters_of(keys: Iterable[tuple[str, str]], groups: Mapping[str, str]) -> Clusters | None:
    """The clusters of samples, given as (digest, truth), in sorted order: a group is one, and a sample in no group is one.

    `groups` is by digest. None if no two samples share a group.
    """
    names = [(0, groups[digest]) if digest in groups else (1, digest) for digest, _ in sorted(keys)]
    numbers = {name: number for number, name in enumerate(dict.fromkeys(names))}
    return np.array([numbers[name] for name in names]) if len(numbers) < len(names) else None


def num_clusters(clusters: Clusters) -> int:
    """How many clusters there are."""
    return int(clusters.max()) + 1


def sampled_words(num_samples: int, clusters: Clusters | None, num_repeated: int) -> str:
    """How many samples there are, in how many clusters, and how many more repeat one of them and so do not count."""
    grouped = "" if clusters is None else f" in {counted(num_clusters(clusters), 'group')}"
    repeated = f", {counted(num_repeated, 'repeated one')} left out" if num_repeated else ""
    return counted(num_samples, "sample") + grouped + repeated


def group_figures(clusters: Clusters | None) -> dict[str, float]:
    """The number of clusters as a figure of a verdict; nothing without clusters."""
    return {} if clusters is None else {"num_groups": float(num_clusters(clusters))}


def units_of(figures: Mapping[str, float]) -> str:
    """What a test counted, in words, from its figures: so many groups or samples."""
    return f"{figures['num_groups']:.0f} groups" if "num_groups" in figures else f"{figures['num_samples']:.0f} samples"


def count_touched(chosen: NDArray[np.bool_], clusters: Clusters | None) -> int:
    """How many samples are chosen (N), or how many clusters have one that is."""
    return int(np.count_nonzero(chosen)) if clusters is None else len(np.unique(clusters[chosen]))


def totals(values: NDArray[np.float64], clusters: Clusters) -> NDArray[np.float64]:
    """The sum of the values (N) in each cluster."""
    return np.bincount(clusters, weights=values).astype(np.float64)


def error_of_mean(values: NDArray[np.float64], clusters: Clusters | None) -> float:
    """The standard error of the mean of values (N), at least two: from the spread of clusters' totals, if there are clusters.

    Cameron and Miller 2015, "A Practitioner's Guide to Cluster-Robust Inference", Journal of Human Resources 50:317-372.
    """
    if clusters is None:
        return float(values.std(ddof=1)) / math.sqrt(len(values))
    sums, count = totals(values - values.mean(), clusters), num_clusters(clusters)
    return math.sqrt(count / (count - 1) * float(sums @ sums)) / len(values)


def sign_test(nets: NDArray[np.int64]) -> float:
    """The two-sided p-value that each cluster's net of fixed and broken samples is as likely as its reverse.

    Exact (Fisher 1935, "The Design of Experiments"); with clusters of one sample it is McNemar's.
    """
    sums = np.ones(1)
    for net in np.abs(nets[nets != 0]):
        sums = (np.pad(sums, (0, 2 * net)) + np.pad(sums, (2 * net, 0))) / 2
    middle = len(sums) // 2
    return min(1.0, 2 * float(sums[middle + abs(int(nets.sum())) :: 2].sum()))
