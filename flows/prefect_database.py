"""The database of a Prefect server of our own, from a template: one that Prefect has made on this machine, with nothing in it.

A new database takes half of the server's start, since Prefect makes it by all the migrations that it ever had.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
import sqlite3
from collections.abc import Iterator
from pathlib import Path

from flows import prefect_private
from flows.errors import ASKED_WRONGLY
from flows.files import write_whole
from flows.local_copies import copies_root
from flows.prefect_private import CATALOGUE, DATABASE, MEMO, OF_ONE_INSTALLATION

# A template only saves time: whatever goes wrong with it, the server makes its database by itself.
_ONLY_TIME: tuple[type[Exception], ...] = (OSError, sqlite3.Error, *ASKED_WRONGLY)


@contextlib.contextmanager
def from_template(home: Path | None) -> Iterator[None]:
    """For a block that ends once a server answers: a PREFECT_HOME without a database gets the template's, or becomes it."""
    is_new = home is not None and not _is_there(home) and not _is_elsewhere()
    if home and is_new:
        is_new = not lay(home)
    yield
    if home and is_new:
        # All that a template needs is in it now, and nothing of a flow yet.
        keep(home)


def lay(home: Path) -> bool:
    """Copy the template into a PREFECT_HOME that has no database yet; whether that was done.

    A template that is damaged, or not of the installed Prefect's revision, is removed instead.
    """
    with contextlib.suppress(*_ONLY_TIME):
        template, memo = _template()
        if template.is_file() and not _is_there(home):
            return _lay(home, template, memo)
    return False


def keep(home: Path) -> bool:
    """Keep the database that a server has just made in a PREFECT_HOME as the template, if there is none; whether that was done.

    One in which there is more than a new one holds stays where it is.
    """
    with contextlib.suppress(*_ONLY_TIME):
        template, memo = _template()
        if not template.exists() and (home / MEMO).is_file():
            with _alone(template) as partial:
                return _keep(home, partial, template, memo)
    return False


def _is_there(home: Path) -> bool:
    """Whether a PREFECT_HOME has a database, or the log of one that is gone, which belongs to no other."""
    return any(home.glob(f"{DATABASE}*"))


def _is_elsewhere() -> bool:
    """Whether the environment names a database for Prefect."""
    return any(name.startswith("PREFECT_") and "DATABASE" in name for name in os.environ)


def _template() -> tuple[Path, Path]:
    """The files of the installed Prefect's template on this machine: its database, and its note on blocks."""
    stem = copies_root("prefect") / prefect_private.version()
    return stem.with_name(f"{stem.name}.db"), stem.with_name(f"{stem.name}.toml")


def _lay(home: Path, template: Path, memo: Path) -> bool:
    home.mkdir(parents=True, exist_ok=True)
    partial = home / f".{DATABASE}.{os.getpid()}.new"
    try:
        shutil.copyfile(template, partial)
        if not _is_new(partial):
            template.unlink(missing_ok=True)
            return False
        _sync(partial)
        # Unlike a rename, a link never takes the place of a database that a server has made meanwhile.
        os.link(partial, home / DATABASE)
    finally:
        partial.unlink(missing_ok=True)
    # Without this, or with another, the server adds the blocks again.
    if memo.is_file() and not (home / MEMO).exists():
        write_whole(home / MEMO, memo.read_bytes(), mode=0o600)
    return True


def _keep(home: Path, partial: Path, template: Path, memo: Path) -> bool:
    with contextlib.closing(sqlite3.connect(f"{(home / DATABASE).absolute().as_uri()}?mode=ro", uri=True)) as database:
        database.execute("VACUUM INTO ?", (str(partial),))
    with contextlib.closing(sqlite3.connect(partial)) as database:
        database.execute(f"DELETE FROM {OF_ONE_INSTALLATION}")
        database.commit()
        # Else what was deleted stays readable in the file.
        database.execute("VACUUM")
    if not _is_new(partial):
        return False
    _sync(partial)
    write_whole(memo, (home / MEMO).read_bytes())
    partial.replace(template)
    return True


def _is_new(file: Path) -> bool:
    """Whether it is a whole database of the installed Prefect's revision, with nothing in it but the catalogue of blocks."""
    try:
        with contextlib.closing(sqlite3.connect(f"{file.absolute().as_uri()}?mode=ro", uri=True)) as database:
            whole = database.execute("PRAGMA quick_check").fetchall() == [("ok",)]
            return whole and _revision(database) == prefect_private.head() and not _filled(database) - CATALOGUE
    except sqlite3.Error:
        return False


def _revision(database: sqlite3.Connection) -> str | None:
    revisions = [revision for (revision,) in database.execute("SELECT version_num FROM alembic_version")]
    return str(revisions[0]) if len(revisions) == 1 else None


def _filled(database: sqlite3.Connection) -> set[str]:
    names = [name for (name,) in database.execute("SELECT name FROM sqlite_master WHERE type = 'table'")]
    return {name for name in names if database.execute(f'SELECT EXISTS (SELECT 1 FROM "{name}")').fetchone()[0]}


def _sync(file: Path) -> None:
    with file.open("rb") as stream:
        os.fsync(stream.fileno())


@contextlib.contextmanager
def _alone(template: Path) -> Iterator[Path]:
    """A path beside the template for one that is made, for one process at a time. Raises BlockingIOError if another makes it."""
    lock = os.open(template.parent, os.O_RDONLY | os.O_DIRECTORY)
    partial = template.with_name(f".{template.name}.new")
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        # What a kill left, with its journal.
        for left in template.parent.glob(f"{partial.name}*"):
            left.unlink(missing_ok=True)
        yield partial
    finally:
        partial.unlink(missing_ok=True)
        os.close(lock)
