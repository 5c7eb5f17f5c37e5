"""A storage folder that moved: the embedded MLflow keeps absolute paths of its artifacts, which are rewritten here."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from urllib.parse import unquote, urlsplit

from flows.mlflow_connection import check, database_file

# The columns of MLflow's tables with paths of artifacts.
COLUMNS = (
    ("experiments", "artifact_location"),
    ("runs", "artifact_uri"),
    ("logged_models", "artifact_location"),
    ("model_versions", "storage_location"),
    ("model_versions", "source"),
)
LOCK_SECONDS = 30.0


def reach(address: str, artifacts: Path) -> None:
    """Check that MLflow can be reached, and let it look for its artifacts where they lie now: under the folder `artifacts`.

    Raises Unreachable and AskedWrongly as `check` does.
    """
    check(address)
    follow_move(address, artifacts)


def follow_move(address: str, artifacts: Path) -> int:
    """Rewrite the paths of an embedded database if its artifacts moved to the folder `artifacts`; how many were rewritten.

    Artifacts count as moved if two of three hold: the recorded folder is gone, a folder of its name is under `artifacts`, the
    database lies beside `artifacts`, as in a storage of ours. So a copied workspace uses its own artifacts, and a database
    that lies elsewhere keeps pointing to a storage that is merely not the present one.
    """
    file = database_file(address)
    if file is None or not file.is_file():
        return 0
    with closing(sqlite3.connect(file, timeout=LOCK_SECONDS, isolation_level=None)) as database:
        present = {name for (name,) in database.execute("select name from sqlite_master where type = 'table'")}
        if "experiments" not in present:
            return 0
        beside = file.absolute().parent == artifacts.parent
        gone = {old for old in _recorded(database, artifacts) if _has_moved(*old, artifacts, beside=beside)}
        if not gone:
            return 0
        database.execute("begin immediate")
        changed = sum(
            _rewrite(database, table, column, root, artifacts)
            for root in {root for root, _ in gone}
            for table, column in COLUMNS
            if table in present
        )
        database.execute("commit")
    return changed


def _recorded(database: sqlite3.Connection, artifacts: Path) -> Iterator[tuple[Path, str]]:
    """Root and folder name of each experiment of ours whose artifacts are recorded elsewhere than under `artifacts`."""
    for number, name, location in database.execute("select experiment_id, name, artifact_location from experiments"):
        folder = local_path(location or "")
        if folder is None or folder.name not in (name, str(number)):
            continue
        if folder.parent != artifacts and folder.parent.name == artifacts.name:
            yield folder.parent, folder.name


def _has_moved(root: Path, folder: str, artifacts: Path, *, beside: bool) -> bool:
    return sum((not root.exists(), (artifacts / folder).is_dir(), beside)) >= 2


def _rewrite(database: sqlite3.Connection, table: str, column: str, old: Path, new: Path) -> int:
    """Replace `old` by `new` at the start of a column's paths and file addresses; how many were changed."""
    changed = 0
    for before, after in ((str(old), str(new)), (old.as_uri(), new.as_uri()), (f"file:{old}", f"file:{new}")):
        parameters = (after, len(before) + 1, len(before) + 1, f"{before}/")
        changed += database.execute(
            f"update {table} set {column} = ? || substr({column}, ?) where substr({column}, 1, ?) = ?", parameters
        ).rowcount
    return changed


def local_path(location: str) -> Path | None:
    """The path on this machine of a location as MLflow writes it, or None for one that is elsewhere."""
    parts = urlsplit(location)
    if parts.scheme == "file":
        return Path(unquote(parts.path))
    return Path(location) if location.startswith("/") else None
