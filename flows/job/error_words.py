"""What an error of a job says to people: in words first, then the end of its traceback."""

from __future__ import annotations

import traceback

from flows.errors import ASKED_WRONGLY, HeadstartError
from flows.words import end_of, start_of

MAX_LINE_CHARS, MAX_TRACEBACK_CHARS = 500, 4000
TRACEBACK = "Traceback (most recent call last)"


def words_of(error: Exception, kept_at: str) -> str:
    """The message of an error whose whole traceback is kept in a file at `kept_at`; an error of ours says all in words."""
    if isinstance(error, ASKED_WRONGLY):
        return str(error)
    if isinstance(error, HeadstartError):
        return f"{error}\nIts traceback: {kept_at}"
    return f"{_own_line(error)}\n{end_of(traceback_of(error), MAX_TRACEBACK_CHARS)}\nThe whole of it: {kept_at}"


def traceback_of(error: Exception) -> str:
    """The whole traceback of an error, with what led to it."""
    return "".join(traceback.format_exception(error)).rstrip()


def _own_line(error: Exception) -> str:
    """The line that says what went wrong; of an error of another process, whose message is a traceback, the last of that."""
    said = "".join(traceback.format_exception_only(error)).strip()
    first, *more = said.splitlines()
    at_margin = [line for line in more if line.strip() and not line[0].isspace()]
    return start_of(at_margin[-1] if TRACEBACK in said and at_margin else first, MAX_LINE_CHARS)
