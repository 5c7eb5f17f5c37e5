"""The `headstart` command: each verb calls one room or one flow and shows what came back."""

from __future__ import annotations

import sys


def main() -> None:
    """Run the command; a wrong request ends with status 2, a failure with 1, each with one message."""
    from flows.cli.verbs import app
    from flows.errors import ASKED_WRONGLY, HeadstartError

    try:
        app(prog_name="headstart")
    except ASKED_WRONGLY as error:
        sys.exit(_say(error, 2))
    except HeadstartError as error:
        sys.exit(_say(error, 1))
    except KeyboardInterrupt:
        sys.exit(_say("stopped; the same command goes on where this one was", 130))


def _say(error: object, status: int) -> int:
    sys.stderr.write(f"headstart: {error}\n")
    return status
