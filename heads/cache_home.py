"""Where this machine keeps copies of what it can get again, for one person."""

from __future__ import annotations

import os
from pathlib import Path


def cache_home(kind: str) -> Path:
    """The folder of this person's copies of a kind: `headstart/<kind>` in XDG_CACHE_HOME, else in `~/.cache`.

    Raises RuntimeError if there is no home folder.
    """
    home = os.environ.get("XDG_CACHE_HOME")
    return (Path(home) if home else Path.home() / ".cache") / "headstart" / kind
