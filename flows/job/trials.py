"""The results of trials: their files, and their content as values."""

from __future__ import annotations

import hashlib
from dataclasses import asdict
from pathlib import Path

from flows.files import read_json, write_json
from flows.records import Leak, Leaks

# Incremented when another search would find other pairs.
LEAKS_FORMAT = 1
# Incremented when corruptions or attacks change.
ROBUSTNESS_FORMAT = 1


def leaks_file(storage: Path, work_key: str) -> Path:
    """The file of what a search on a work's stored features found; the work's key names the data version too."""
    return storage / "leaks" / f"{work_key}-{LEAKS_FORMAT}.json"


def robustness_file(storage: Path, bundle_digest: str, data_version: str, target: str) -> Path:
    """The file of a bundle's readings of a target's corrupted and attacked images: `Readings` of `heads.bundle.robustness`."""
    named = hashlib.sha256(target.encode()).hexdigest()[:8]
    return storage / "robustness" / f"{bundle_digest[:16]}-{data_version}-{named}-{ROBUSTNESS_FORMAT}.json"


def read_leaks(file: Path) -> Leaks | None:
    """What a search found, None if there was none."""
    content = read_json(file)
    return content and Leaks(content["num_samples"], content["num_small"], tuple(Leak(**leak) for leak in content["found"]))


def write_leaks(file: Path, leaks: Leaks) -> None:
    """Write what a search found."""
    write_json(file, asdict(leaks))
