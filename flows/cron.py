"""Checks of a cron expression, before Prefect, which has the last word, and of the time zone that it counts in."""

from __future__ import annotations

import os
import re
import time
from datetime import datetime, timedelta
from zoneinfo import ZoneInfo

from tzlocal import get_localzone_name

from flows.errors import AskedWrongly

# Minute, hour, day, month, weekday.
RANGES = ((0, 59), (0, 23), (1, 31), (1, 12), (0, 7))


def check_cron(cron: str) -> None:
    """Raise AskedWrongly on a text that is clearly no cron."""
    fields = cron.split()
    numbers = [[int(number) for number in re.findall(r"\d+", field.partition("/")[0])] for field in fields]
    within = all(low <= n <= high for found, (low, high) in zip(numbers, RANGES, strict=False) for n in found)
    if len(fields) != len(RANGES) or not within or not re.fullmatch(r"[\w*/,#\- ]+", " ".join(fields)):
        raise AskedWrongly(
            f"--cron {cron!r} is no cron: five fields are expected (minute, hour, day, month, weekday), such as '0 2 * * *'"
        )


def local_timezone() -> str:
    """The name of this machine's time zone. Raises AskedWrongly if its clock has none, or goes by another one's rule."""
    try:
        name = get_localzone_name() or "Etc/UTC"
    except LookupError:  # files that contradict each other
        name = "Etc/UTC"
    # Summer and winter: London's is Etc/UTC for half a year.
    for days in (0, 182):
        moment = time.time() + days * 86400
        ours = timedelta(seconds=time.localtime(moment).tm_gmtoff)
        theirs = datetime.fromtimestamp(moment, ZoneInfo(name)).utcoffset()
        if ours != theirs:
            rule = f"TZ={os.environ['TZ']!r}" if os.environ.get("TZ") else "/etc/localtime"
            raise AskedWrongly(
                f"{rule} gives this machine's time zone no name that Prefect could count a cron in (the best guess, {name}, is "
                f"{_offset(theirs)} from UTC where this machine's clock is {_offset(ours)}): name it, such as TZ=Europe/Berlin, "
                "before the command"
            )
    return name


def _offset(offset: timedelta | None) -> str:
    minutes = round((offset or timedelta()).total_seconds() / 60)
    return f"{'-' if minutes < 0 else '+'}{abs(minutes) // 60:02}:{abs(minutes) % 60:02}"
