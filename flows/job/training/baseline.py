"""The probe of a training job: a logistic regression on the stored features of the works' first frozen trunk."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from time import monotonic

import torch
from torch import Tensor

from flows.baselines import BUNDLE, Baseline, BaselineFolder, probe_of
from flows.job.trunks import JobFeatures
from flows.records import Work
from heads import bundle
from heads.data.labels import has_label
from heads.data.modalities import preprocess_of
from heads.errors import HeadsError, TrainingDiverged
from heads.features import Key
from heads.features.keys import MAX_VIEWS
from heads.model.model import Model, build_model, count_parameters
from heads.spec import Variant
from heads.training.probe import Block, FittedProbe, fit_probe
from heads.trunks.trunk import inputs_of, is_by_token, stored_taps, trunk_of

LOG = logging.getLogger(__name__)
# So many training samples tell what features hold; more would cost a worker's time and memory.
MAX_SAMPLES = 10_000
# How much of the stored features is read at once.
BLOCK_BYTES = 64 * 2**20


def fit_baseline(features: JobFeatures, work: Work) -> None:
    """Fit the probe of a job on the features that a work stores of its trunk; write its bundle, and then itself, or why there is
    none.

    The work has the baseline's key. Runs in one process, and forwards no sample.
    """
    job, since = features.job, monotonic()
    folder = BaselineFolder.of(job.storage, work.key)
    variant = probe_of(work.variant, job.target, is_random=work.weights.path is None)
    sets = (features.splits.read(split, variant, work.weights.path, cache_bytes=0) for split in ("train", "val"))
    train, val = (one.labels[job.target] for one in sets)
    places = choose(features.splits.digests("train"), train), has_label(val).nonzero()[:, 0]
    model = build_model(variant, job.classes, work.weights.path, backbone=features.backbone(work))
    model.heads.to(features.device)
    try:
        read = zip(("train", "val"), (train, val), places, strict=True)
        probe = fit_probe(model, *(_blocks(features, work, *split) for split in read))
    except TrainingDiverged as error:
        folder.write_failure(str(error))
        return
    except HeadsError as error:
        # The works need no baseline; the next training tries again.
        LOG.warning("no baseline was fitted: %s", error)
        return
    _save(folder, features, work, variant, model, probe)
    folder.write(
        Baseline(
            kind="probe",
            label=f"logistic probe on {variant.backbone}",
            metrics=probe.metrics,
            num_parameters=count_parameters(model.heads)[0],
            num_samples=probe.num_samples,
            penalty=probe.penalty,
            seconds=round(monotonic() - since, 3),
            note=describe_share(probe.num_samples, train),
        )
    )


def describe_share(num_samples: int, labels: Tensor) -> str:
    """Of how many labelled samples a baseline is, in words, where it is not of all."""
    num_labelled = int(has_label(labels).sum())
    some = f"fitted on {num_samples:,} of {num_labelled:,} labelled training samples"
    return some if num_samples < num_labelled else ""


def choose(digests: Sequence[str], labels: Tensor) -> Tensor:
    """The places of the labelled samples, in order; of too many those of the smallest digests, so that most stay as data grow."""
    places = has_label(labels).nonzero()[:, 0]
    if len(places) <= MAX_SAMPLES:
        return places
    return torch.tensor(sorted(sorted(places.tolist(), key=digests.__getitem__)[:MAX_SAMPLES]))


def _blocks(features: JobFeatures, work: Work, split: str, labels: Tensor, places: Tensor) -> Iterator[Block]:
    """The stored features of a split's samples at these places, plain, with their labels, some at a time."""
    if not len(places):
        return
    taps = next(taps for phase, taps in stored_taps(work.variant).items() if phase.num_frozen_stages == work.variant.num_stages)
    trunk, digests = trunk_of(work.variant, work.weights.digest, features.device), features.splits.digests(split)
    by_token = is_by_token(work.variant.backbone, taps)
    # Beside tags a text is stored token by token: the mean of all, the first, and so on.
    token = MAX_VIEWS if by_token and work.variant.fit.pooling == "class" else 0
    keys = [Key(digests[place], token) for place in places.tolist()]
    stored = features.store.trunk(trunk.id).open(keys, [taps[-1].name])
    for part in torch.split(torch.arange(len(places)), max(1, BLOCK_BYTES * len(stored) // stored.num_bytes)):
        rows = {tap: tensor.to(features.device) for tap, tensor in inputs_of(stored[part], taps[-1:]).items()}
        if by_token:
            rows = {tap: tensor[:, None] for tap, tensor in rows.items()}
        yield Block(rows, labels[places[part]])


def _save(folder: BaselineFolder, features: JobFeatures, work: Work, variant: Variant, model: Model, probe: FittedProbe) -> None:
    """Write the probe's bundle, by which the holdout is read as by any other model."""
    job = features.job
    facts = {
        "name": job.name,
        "baseline": work.key,
        "weights": work.weights.digest,
        "data_version": job.version.digest,
        "data_revision": job.version.revision,
        "metrics": probe.metrics,
    }
    with folder.filling() as local:
        bundle.save(
            local / BUNDLE,
            model=model,
            variant=variant,
            classes={job.target: list(job.classes[job.target])},
            # As the trunk saw samples: whole, where the plan has masks besides.
            preprocess=preprocess_of(work.variant),
            facts=facts,
            thresholds=probe.thresholds,
            temperatures=probe.temperatures,
            vocabulary=features.splits.vocabulary(work.variant, work.weights.path),
            shared=features.shared_backbone(work),
        )
