"""A job that looks for the holdout's pictures among those that are trained or ranked on: at another size, quality or crop.

Features and thumbnails, both in the feature store, name candidates: the samples of train and val that are nearest to each test
sample. Pixels decide: mere look-alikes are near, too. What is stored of test samples is for this search alone; a training has
no key to ask for it by. A search reads the images that have no thumbnail yet: the first one all, later ones those that are new.
"""

from __future__ import annotations

import warnings
from collections import defaultdict
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache

import torch

from flows.cluster import workers
from flows.job.datasets import Splits
from flows.job.holdout.thumbnails import TAP, open_thumbnails, store_thumbnails
from flows.job.holdout.trials import leaks_file, write_leaks
from flows.job.job import Job, read_job
from flows.job.job_folder import JobFolder
from flows.job.outcome import JobOutcome
from flows.job.trunks import JobFeatures, name_trunk
from flows.leak_records import Leak, Leaks
from flows.records import Sample
from flows.sample_files import locate
from heads.data.decoding import decode
from heads.data.near_duplicates.likeness import SAME_PICTURE, Details, details_of, likeness
from heads.data.near_duplicates.thumbnails import alikeness, windows_in
from heads.features import Key
from heads.features.neighbours import nearest
from heads.trunks.extraction import ExtractionRequest, extract
from heads.trunks.threads import threads
from heads.trunks.trunk import stored_taps, trunk_of

# So many of the nearest samples of a test sample, by features and again by thumbnails, are compared with it pixel by pixel.
# Among thousands of pictures that are all alike, a small or cut copy may have more than these nearer to it in features than its
# original, and thumbnails tell it (tests/benchmarks/near_duplicates.py).
NUM_CANDIDATES = 5
# A picture's details take 0.3 MB.
MAX_KEPT = 512
Pair = tuple[Sample, Sample]


def search(job: Job) -> JobOutcome:
    """Run the search on the features of the job's work; its file holds the leaks. Runs in the job's driver."""
    num_threads = workers.cores_of(job.workers)
    asked = job.folder.address, job.workers.gpus_per_worker > 0, num_threads
    pairs = workers.run_alone(find_candidates, *asked, workers=job.workers)
    write_leaks(leaks_file(job.storage, job.works[0].key), compare(job, pairs, num_threads))
    return JobOutcome(scores={})


def find_candidates(folder: str, uses_gpu: bool, num_threads: int) -> list[Pair]:
    """Each test sample with its nearest samples of train and val, on stored features and thumbnails; what lacks is stored first.

    Runs in a worker, or in the driver.
    """
    torch.set_num_threads(num_threads)
    job = read_job(JobFolder.at(folder))
    (work,), device = job.works, torch.device("cuda" if uses_gpu else "cpu")
    splits = Splits(job)
    features = JobFeatures(job, splits, device)
    trunk, tap = trunk_of(work.variant, work.weights.digest, device), next(iter(stored_taps(work.variant).values()))[-1]
    name_trunk(features.store, trunk)
    extract(
        lambda: features.backbone(work),
        trunk,
        [
            ExtractionRequest(splits.read(split, work.variant, work.weights.path, cache_bytes=0), 0, (tap,))
            for split in ("test", "train", "val")
        ],
        features.store,
        device=device,
        precision=work.variant.fit.precision,
    )
    tested = [sample for sample in job.version.samples if sample.split == "test"]
    known = [sample for sample in job.version.samples if sample.split != "test"]
    store_thumbnails(features.store, job.version, job.version.samples, device)
    stored, store = features.store.trunk(trunk.id), features.store
    asked, others = (stored.open([Key(sample.pixel_digest) for sample in samples], [tap.name]) for samples in (tested, known))
    _, by_features = nearest(asked, others, tap.name, NUM_CANDIDATES)
    asked, others = (open_thumbnails(store, samples) for samples in (tested, known))
    _, by_thumbnails = nearest(asked, others, TAP, NUM_CANDIDATES, windows_in, alikeness)
    near = torch.cat([by_features, by_thumbnails], dim=1).tolist()
    return [(sample, known[place]) for sample, places in zip(tested, near, strict=True) for place in dict.fromkeys(places)]


def compare(job: Job, pairs: Sequence[Pair], num_threads: int) -> Leaks:
    """The pairs that show the same picture by their pixels, the closest first, and for each test image the closest only."""
    by_digest = {sample.pixel_digest: sample for pair in pairs for sample in pair}
    by_sample: dict[str, list[Pair]] = defaultdict(list)
    for pair in pairs:
        by_sample[pair[0].digest].append(pair)

    @lru_cache(MAX_KEPT)
    def read_details(digest: str) -> Details | None:
        return details_of(decode(locate(job.version, by_digest[digest])))

    # Its steps are so small that torch's threads mostly wait for each other: two take three times the processor's time of one.
    # Warnings are ignored for all threads: reading an image sets filters of warnings, which are the process's.
    with threads(1), warnings.catch_warnings(action="ignore"), ThreadPoolExecutor(num_threads, "leaks") as pool:
        found = list(pool.map(lambda own: _closest(own, read_details), by_sample.values()))
    leaks = sorted((leak for leak, _ in found if leak), key=lambda leak: (-leak.likeness, leak.file))
    return Leaks(len(by_sample), sum(is_small for _, is_small in found), tuple(leaks))


def _closest(own: Sequence[Pair], read_details: Callable[[str], Details | None]) -> tuple[Leak | None, bool]:
    """The closest leak of one test sample, by its pairs, None if there is none; and whether it is too small to tell."""
    (sample, _), best = own[0], None
    one = read_details(sample.pixel_digest)
    if one is None:
        return None, True
    for _, other in own:
        two = read_details(other.pixel_digest)
        if two is None or (alike := likeness(one, two)) < SAME_PICTURE:
            continue
        if best is None or round(alike, 4) > best.likeness:
            best = Leak(sample.digest, sample.file, other.file, other.split, round(alike, 4))
    return best, False
