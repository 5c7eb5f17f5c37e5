"""The results of trials: their files, and their content as values."""

from __future__ import annotations

import hashlib
from dataclasses import asdict

from flows.leak_records import Leak, Leaks
from flows.places import Root, StoredFile, open_place

# Incremented when another search would find other pairs.
LEAKS_FORMAT = 3
# Incremented when corruptions or attacks change.
ROBUSTNESS_FORMAT = 1


def leaks_file(storage: Root, work_key: str) -> StoredFile:
    """The file of what a search on a work's stored features found; the work's key names the data version too."""
    return StoredFile(open_place(storage).within("leaks"), f"{work_key}-{LEAKS_FORMAT}.json")


def robustness_file(storage: Root, bundle_digest: str, data_version: str, target: str) -> StoredFile:
    """The file of a bundle's readings of a target's corrupted and attacked images: `Readings` of `heads.bundle.robustness`."""
    named = hashlib.sha256(target.encode()).hexdigest()[:8]
    name = f"{bundle_digest[:16]}-{data_version}-{named}-{ROBUSTNESS_FORMAT}.json"
    return StoredFile(open_place(storage).within("robustness"), name)


def read_leaks(file: StoredFile) -> Leaks | None:
    """What a search found, None if there was none."""
    content = file.read_json()
    return content and Leaks(content["num_samples"], content["num_small"], tuple(Leak(**leak) for leak in content["found"]))


def write_leaks(file: StoredFile, leaks: Leaks) -> None:
    """Write what a search found."""
    file.write_json(asdict(leaks))
