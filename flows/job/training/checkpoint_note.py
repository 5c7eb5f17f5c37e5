"""The note in a checkpoint of the whole worker group, which is a folder that Ray keeps: its files, and their content."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path

from flows.files import read_json, write_json

CHECKPOINT_STATE, CHECKPOINT_NOTE = "state.pt", "work.json"


@dataclass(frozen=True)
class CheckpointNote:
    """The note in a checkpoint of the whole group: the work it is of, that work's last epoch, and when it was made."""

    work_key: str
    # Missing in checkpoints of earlier versions.
    epoch: int | None = None
    at: float | None = None


def read_note(file: Path) -> CheckpointNote | None:
    """The note of a checkpoint from its file, None if there is no such file."""
    content = read_json(file)
    return content and CheckpointNote(**content)


def write_note(folder: Path, note: CheckpointNote) -> None:
    """Write the note of a checkpoint into its folder."""
    write_json(folder / CHECKPOINT_NOTE, asdict(note))
