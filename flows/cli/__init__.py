"""The `headstart` command: each verb calls one room or one flow and shows what came back."""

from __future__ import annotations

import errno
import io
import signal
import sys

INTERRUPTED = 130
STOPPED = "stopped; the same command goes on where this one was"
WRONG_PLACE = (PermissionError, FileExistsError, NotADirectoryError, IsADirectoryError)


def main() -> None:
    """Run the command; a wrong request ends with status 2, a failure with 1, each with one message."""
    _write_any_letter()
    try:
        from flows.cli.verbs import app
    except ModuleNotFoundError as error:
        if error.name in ("flows", "heads"):
            raise
        sys.exit(_say(f"this installation is a consumer's and lacks {error.name}; install 'headstart[flows]' for the command", 2))
    from flows.errors import ASKED_WRONGLY, HeadstartError

    # On SIGTERM (from a service manager, `timeout`, a container's end) the command stops what it started, as after Ctrl-C.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        app(prog_name="headstart")
    except ASKED_WRONGLY as error:
        sys.exit(_say(error, 2))
    except HeadstartError as error:
        sys.exit(_say(error, 1))
    except OSError as error:
        sys.exit(_say(*_of_the_disk(error)))
    except SystemExit as end:  # Typer ends so; after Ctrl-C without a word
        sys.exit(_say(STOPPED, INTERRUPTED) if end.code == INTERRUPTED else end.code)
    except KeyboardInterrupt:
        sys.exit(_say(STOPPED, INTERRUPTED))


def _write_any_letter() -> None:
    """Let both streams escape letters that their encoding lacks, as in a terminal of another language, instead of failing."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


def _of_the_disk(error: OSError) -> tuple[str, int]:
    """The message and the exit status for a file error: 2 if another path or permission would mend it, else 1."""
    where = f"{error.filename}: " if error.filename else ""
    advice = "name a place that can be read and written (--workspace, HEADSTART_STORAGE_ROOT), or mend its permissions"
    if isinstance(error, WRONG_PLACE) or error.errno in (errno.EROFS, errno.ENAMETOOLONG):
        return f"{where}{error.strerror}; {advice}", 2
    return f"{where}{error.strerror or error}; the same command goes on where this one was once that is mended", 1


def _say(error: object, status: int) -> int:
    sys.stderr.write(f"headstart: {error}\n")
    return status
