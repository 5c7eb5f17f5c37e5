"""The compile times that trainings have measured on this machine: a small file a case, for later trainings and for plans."""

from __future__ import annotations

import hashlib
import json
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path

from flows.files import read_json, read_value, write_json
from heads.cache_home import cache_home
from heads.training.compile_payback import CompileCase, CompileTimes


class KeptCompileTimes:
    """The compile times of this machine, which its processes share: what was measured last stands.

    They only help to decide: a file that is damaged, or finds no room, is as one that is not there.
    """

    def read(self, case: CompileCase) -> CompileTimes | None:
        """The times last measured of this case, None if there are none; touches nothing."""
        try:
            content = read_json(_file(case))
            return content and read_value(CompileTimes, content["times"])
        except (OSError, ValueError, TypeError, KeyError):
            return None

    def write(self, case: CompileCase, times: CompileTimes) -> None:
        """Keep the times of this case for later trainings."""
        with suppress(OSError):
            write_json(_file(case), {"case": asdict(case), "times": asdict(times)})


def _file(case: CompileCase) -> Path:
    name = hashlib.sha256(json.dumps(asdict(case)).encode()).hexdigest()[:16]
    return cache_home("compile_times") / f"{name}.json"
