"""Servers' logs, followed for errors that nobody would see otherwise: the first is shown, later ones are counted."""

from __future__ import annotations

import re
from pathlib import Path

from flows.words import Say, start_of

TRACEBACK = "Traceback (most recent call last)"
# How servers write the level of a line: `| ERROR |` (Prefect), `ERROR:` (uvicorn), ` ERROR mlflow.server: ` (MLflow).
ERROR = re.compile(r"(^|[\s|\[])(ERROR|CRITICAL)([\s|:\]]|$)")
# The characters at the left of a traceback that is drawn as a box.
FRAME = "│╭╰┃+|"
LONGEST_LINE = 300


class Log:
    """A server's log from its present end on: `look` shows its first error, and then their number each time it is tenfold."""

    def __init__(self, name: str, file: Path, say: Say) -> None:
        self._name, self._file, self._say = name, file, say
        self._read_to = file.stat().st_size if file.exists() else 0
        self._rest, self._in_traceback = "", False
        self.num_errors, self._told_at = 0, 1

    def look(self) -> None:
        """Read the lines added since the last look, and report errors in them."""
        try:
            with self._file.open("rb") as stream:
                stream.seek(self._read_to)
                added = stream.read()
        except OSError:
            return
        self._read_to += len(added)
        *lines, self._rest = (self._rest + added.decode(errors="replace")).split("\n")
        for line in lines:
            if error := self._error(line):
                self._note(error)

    def _error(self, line: str) -> str:
        """The line if it says what went wrong, else ''; of a traceback that is its last line, the next one at the margin."""
        if TRACEBACK in line:
            self._in_traceback = True
            return ""
        if self._in_traceback and line and not line[0].isspace() and line[0] not in FRAME:
            self._in_traceback = False
            return line
        return line if not self._in_traceback and ERROR.search(line) else ""

    def _note(self, line: str) -> None:
        self.num_errors += 1
        if self.num_errors == 1:
            self._say(f"Warning: {self._name} met an error; see its log, {self._file}: {start_of(line.strip(), LONGEST_LINE)}")
        if self.num_errors == self._told_at and self.num_errors > 1:
            self._say(f"Warning: {self._name} met {self.num_errors} errors by now; see {self._file}")
        if self.num_errors >= self._told_at:
            self._told_at *= 10
