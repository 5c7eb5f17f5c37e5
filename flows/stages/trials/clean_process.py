"""Programs that use a bundle as a consumer does: a process of its own, isolated, with the consumer's packages alone."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from flows.errors import AskedWrongly
from flows.records import DataVersion
from flows.sample_files import locate
from flows.words import start_of
from heads.catalogue import Modality

TIMEOUT_SECONDS = 600
NUM_SAMPLES = 8
# What a consumer's installation does not have: packages of the extra `flows`, and what they bring.
NOT_THE_CONSUMERS = (
    *("flows", "boto3", "dvc", "fastapi", "matplotlib", "mlflow", "pandas", "prefect", "psutil", "pyarrow", "pydantic_settings"),
    *("ray", "rich", "s3fs", "scipy", "sklearn", "sqlalchemy", "typer", "tzlocal", "yaml"),
)
START = """
import json, sys
asked = json.load(sys.stdin)
class Consumer:
    def __init__(self, finder):
        self.finder = finder
    def __getattr__(self, name):
        return getattr(self.finder, name)
    def find_spec(self, name, path=None, target=None):
        return None if name.partition(".")[0] in asked["absent"] else self.finder.find_spec(name, path, target)
sys.meta_path[:] = map(Consumer, sys.meta_path)
sys.path.append(asked["root"])
from pathlib import Path
import heads.bundle
from heads.data.image_transforms import decode
from PIL import Image
samples = {samples}
"""
# The samples as a consumer hands them over; one of any kind if none lies here.
SAMPLES: Mapping[Modality, str] = {
    "image": '[decode(Path(file)) for file in asked["samples"]] or [Image.new("RGB", (256, 256), "grey")]',
    "text": '[Path(file) for file in asked["samples"]] or ["A text."]',
}


class ProcessFailed(Exception):
    """A program that did not end well: the message is the last line that it wrote, or how it ended."""


def run(program: str, samples: Sequence[Path], modality: Modality = "image", **asked: object) -> Any:
    """The JSON value that a program prints, run by `python -I` after START, which gives it `asked`, `samples` and `heads.bundle`.

    Raises ProcessFailed if it fails, prints nothing, or takes more than TIMEOUT_SECONDS.
    """
    import heads

    root = Path(str(heads.__file__)).parents[1]
    given = {"absent": NOT_THE_CONSUMERS, "root": str(root), "samples": [str(sample) for sample in samples]} | asked
    command = [sys.executable, "-I", "-W", "ignore", "-c", START.replace("{samples}", SAMPLES[modality]) + program]
    # Without GPUs: it is a CPU's time that is measured, and they may be full.
    env = os.environ | {"CUDA_VISIBLE_DEVICES": ""}
    try:
        done = subprocess.run(
            command,
            input=json.dumps(given | asked),
            env=env,
            capture_output=True,
            text=True,
            timeout=TIMEOUT_SECONDS,
            check=False,
        )
    except subprocess.TimeoutExpired:
        raise ProcessFailed(f"it did not end within {TIMEOUT_SECONDS} s") from None
    if done.returncode or not done.stdout.strip():
        said = done.stderr.strip().splitlines()
        raise ProcessFailed(start_of(said[-1], 500) if said else f"it ended with status {done.returncode} and without a word")
    return json.loads(done.stdout.splitlines()[-1])


def holdout_samples(version: DataVersion, digests: Mapping[str, object]) -> dict[str, Path]:
    """The files of the first few holdout samples that lie on this machine, by digest; only of those in `digests`."""
    found: dict[str, Path] = {}
    for sample in version.samples:
        if sample.split == "test" and sample.digest in digests and sample.digest not in found:
            try:
                file = locate(version, sample)
            except AskedWrongly:  # on a remote alone
                continue
            if isinstance(file, Path):
                found[sample.digest] = file
            if len(found) == NUM_SAMPLES:
                break
    return found
