"""Calls of DVC: kept off standard output and out of other repositories, with its errors in our words."""

from __future__ import annotations

import errno
import io
import logging
import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stdout
from pathlib import Path
from typing import TYPE_CHECKING, Any

from flows.dataset.revisions import local_variables
from flows.errors import Busy, HeadstartError

if TYPE_CHECKING:
    from dvc.repo import Repo


@contextmanager
def opened(workspace: Path) -> Iterator[Repo]:
    """The workspace's DVC repository, for the block. Raises as `in_our_words` does."""
    with in_our_words(workspace):
        from dvc.repo import Repo

        with Repo(str(workspace)) as repo:
            yield repo


@contextmanager
def _own_repository() -> Iterator[None]:
    """Hide git's variables about another repository from DVC for the block (`local_variables`)."""
    hidden = {name: os.environ.pop(name) for name in local_variables() if name in os.environ}
    try:
        yield
    finally:
        os.environ.update(hidden)


@contextmanager
def in_our_words(workspace: Path) -> Iterator[Any]:
    """Keep DVC off standard output for the block, and turn its errors into ours, but for OSError on a disk that is read-only."""
    from dvc.lock import LockError

    for name in ("dvc", "dvc_data", "dvc_objects"):
        logging.getLogger(name).setLevel(logging.CRITICAL)
    try:
        with _own_repository(), redirect_stdout(io.StringIO()), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    except LockError as error:
        raise Busy(f"another DVC command is at work in {workspace}; wait until it ends, then run this again") from error
    except HeadstartError:
        raise
    # Beside errors of its own, DVC lets through those of the disk, the network and the S3 client.
    except Exception as error:
        if isinstance(error, OSError) and error.errno == errno.EROFS:  # running it again never helps
            raise
        cause = f" ({error.__cause__})" if error.__cause__ else ""
        raise HeadstartError(f"DVC failed in {workspace}: {error}{cause}. `data.dvc` is as it was; run this again") from error
