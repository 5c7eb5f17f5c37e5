"""What killed the processes of a job, in words, read from what Ray and torch say of it."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager

from flows.errors import ASKED_WRONGLY, HeadstartError
from flows.words import start_of

ADVICE = (
    "lower batch_size, image_size_px (of texts max_tokens) or workers.count, or free memory there; the same command goes on, "
    "and what was trained is kept"
)
# Ray's own kill; it has no public name for the text, which every error carries that such a kill leads to.
KILLED_FOR_MEMORY = "running low on memory"
USED = re.compile(r"Memory on the node \(IP: ([^,)\s]+)[^)]*\) was ([\d.]+)GB used / ([\d.]+)GB limit")
# A process that asked in vain: of a GPU (torch.OutOfMemoryError), of the machine (MemoryError, or torch's own words).
NO_MEMORY = re.compile(r"^.*(?:MemoryError\b|can't allocate memory).*$", re.MULTILINE)
# A death without a word, as the kernel's kill is; another signal looks the same.
ENDED_AT_ONCE = ("worker process has died", "worker died unexpectedly", "SIGKILL", "exit code -9")
MAX_QUOTED_CHARS = 300


def cause_of_death(said: str, what: str) -> str | None:
    """What killed `what`, and what to do, from the words of an error; None if they tell of no kill."""
    if KILLED_FOR_MEMORY in said:
        found = USED.search(said)
        used = f": {found[2]} of {found[3]} GB were in use on the node {found[1]}" if found else ""
        return f"Ray killed {what} for memory{used}; {ADVICE}"
    if found := NO_MEMORY.search(said):
        return f"there was no memory left for {what} ({start_of(found[0].strip(), MAX_QUOTED_CHARS)}); {ADVICE}"
    if any(mark in said for mark in ENDED_AT_ONCE):
        return f"a process of {what} was killed, most often for want of memory; {ADVICE}"
    return None


@contextmanager
def telling_deaths(what: str) -> Iterator[None]:
    """Let an error in the block that tells of killed processes of `what` be a HeadstartError that says so, and what to do."""
    try:
        yield
    except ASKED_WRONGLY:
        raise
    except Exception as error:
        if words := cause_of_death(f"{type(error).__name__}: {error}", what):
            raise HeadstartError(words) from error
        raise
