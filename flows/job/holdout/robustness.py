"""A job that measures how well bundles read corrupted and attacked images of the holdout."""

from __future__ import annotations

import hashlib
from dataclasses import asdict

import torch

from flows.cluster import workers
from flows.job.holdout.trials import robustness_file
from flows.job.job import Job, read_job
from flows.job.job_folder import JobFolder
from flows.job.outcome import JobOutcome
from flows.sample_files import locate, prefetch
from heads import bundle as bundles
from heads.bundle import robustness
from heads.bundle.robustness import Picture, Readings

# An attack takes about as long as 60 predictions, all corruptions as 24, an unbounded attack as 60.
MAX_SAMPLES, MAX_ATTACKED, MAX_UNBOUNDED = 500, 200, 50


def measure(job: Job) -> JobOutcome:
    """Measure each bundle that has no file yet, on the same samples. Runs in the job's driver; with GPUs, a worker reads."""
    pictures = choose(job)
    job.folder.write_to_store(len(pictures) * len(job.bundles))
    for number, name in enumerate(job.bundles):
        file = robustness_file(job.storage, bundles.digest(job.fetch_bundle(name)), job.version.digest, job.target)
        if file.exists():
            continue
        place = job.workers.gpus_per_worker > 0, workers.cores_of(job.workers)
        asked = job.folder.address, name, number * len(pictures)
        readings = workers.run_alone(read_pictures, *asked, *place, workers=job.workers)
        file.write_json(asdict(readings))
    return JobOutcome(scores={})


def read_pictures(folder: str, bundle: str, num_before: int, uses_gpu: bool, num_threads: int) -> Readings:
    """One bundle's readings; notes in the job's folder how many are done. Runs in a worker, or in the driver."""
    torch.set_num_threads(num_threads)
    job = read_job(JobFolder.at(folder))
    return robustness.measure(
        bundles.load(job.fetch_bundle(bundle), "cuda" if uses_gpu else "cpu"),
        job.target,
        choose(job),
        num_attacked=MAX_ATTACKED,
        num_unbounded=MAX_UNBOUNDED,
        on_done=lambda done: job.folder.write_stored(num_before + done, 0.0),
    )


def choose(job: Job) -> list[Picture]:
    """At most MAX_SAMPLES distinct labelled test images, by a hash of their digests: the same ones for every model."""
    labelled = {sample.digest: sample for sample in job.version.samples if sample.labels[job.target] is not None}
    chosen = sorted(labelled, key=lambda digest: hashlib.sha256(f"robustness {digest}".encode()).digest())[:MAX_SAMPLES]
    prefetch(job.version, [(labelled[digest].file, digest) for digest in chosen])
    return [Picture(locate(job.version, labelled[d]), d, labelled[d].labels[job.target] or "") for d in chosen]
