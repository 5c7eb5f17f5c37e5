"""A scoring job: bundles read the holdout, sample by sample."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from flows.cluster import workers
from flows.job.order import Job, scores_file, write_json
from flows.workspace import locate
from heads import bundle as bundles
from heads import measures

# Below it a second process takes longer to start than the first to finish.
MIN_SHARD_IMAGES = 1000
LEAST_PROBABILITY = 1e-12

# (digest, file, truth by target)
Item = tuple[str, str, Mapping[str, str | None]]
# (digest, target, truth, predicted, probability, every class's probability)
Row = tuple[str, str, str, str, float, Mapping[str, float]]


def score(job: Job) -> dict[str, Any]:
    """The outcome of a scoring job: the file of each bundle's score table, by bundle path. Runs in the job's driver.

    A table has no rows where the holdout has no label of what the bundle predicts. Raises BundleError on a damaged bundle.
    """
    files = {}
    for path in job.bundles:
        digest = bundles.digest(path)
        file = scores_file(job.storage, digest, job.version.digest)
        if not file.exists():
            rows = _read_holdout(job, path)
            table = {
                "bundle_digest": digest,
                "data_version": job.version.digest,
                "rows": [row[:5] for row in rows],
                "metrics": _measure(rows),
            }
            write_json(file, table)
        files[str(path)] = str(file)
    return {"scores": files}


def score_shard(path: str, items: Sequence[Item], uses_gpu: bool, num_threads: int) -> list[Row]:
    """What the bundle reads in these images: a row for each label they have. Runs in a worker, or in the driver."""
    torch.set_num_threads(num_threads)
    bundle = bundles.load(Path(path), "cuda" if uses_gpu else "cpu")
    rows: list[Row] = []
    for (digest, _, truths), predictions in zip(items, bundle.predict([Path(item[1]) for item in items]), strict=True):
        for target, prediction in predictions.items():
            truth = truths.get(target)
            if truth is not None:
                rows.append((digest, target, truth, prediction.label, prediction.probability, prediction.probabilities))
    return rows


def _read_holdout(job: Job, path: Path) -> list[Row]:
    items: list[Item] = [(s.digest, str(locate(job.version, s)), dict(s.labels)) for s in job.version.samples]
    uses_gpu, num_threads = job.workers.gpus_per_worker > 0, max(1, int(job.workers.cpus_per_worker))
    num_shards = max(1, min(job.workers.count, len(items) // MIN_SHARD_IMAGES))
    if num_shards == 1 and not uses_gpu:
        rows = score_shard(str(path), items, uses_gpu, num_threads)
    else:
        workers.join(job.workers)
        shards = [(str(path), items[i::num_shards], uses_gpu, num_threads) for i in range(num_shards)]
        rows = [row for shard in workers.map_shards(score_shard, shards, workers=job.workers) for row in shard]
    return sorted(rows, key=lambda row: row[:5])


def _measure(rows: Sequence[Row]) -> dict[str, float]:
    """`<target>/<measure>`, those of validation; a class that the bundle does not know is one that it never predicts."""
    metrics: dict[str, float] = {}
    for target in dict.fromkeys(row[1] for row in rows):
        mine = [row for row in rows if row[1] == target]
        names = sorted({name for row in mine for name in (row[2], *row[5])})
        number = {name: index for index, name in enumerate(names)}
        probabilities = torch.tensor([[row[5].get(name, 0.0) for name in names] for row in mine], dtype=torch.float64)
        truths, guesses = torch.tensor([[number[row[2]], number[row[3]]] for row in mine]).unbind(dim=1)
        confusion = torch.bincount(truths * len(names) + guesses, minlength=len(names) ** 2).reshape(len(names), len(names))
        loss_sum = -probabilities.gather(1, truths[:, None]).clamp(min=LEAST_PROBABILITY).log().sum().item()
        found = measures.from_counts(confusion, loss_sum, len(mine)) | measures.from_scores(probabilities, truths)
        metrics |= {f"{target}/{name}": value for name, value in found.items()}
    return metrics
