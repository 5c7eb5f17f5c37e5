"""A check of a cron expression, before Prefect, which parses it later and has the last word."""

from __future__ import annotations

import re

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
