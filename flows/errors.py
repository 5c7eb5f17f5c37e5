"""The errors of the pipeline that the command turns into an exit status and one message."""

from heads.errors import HeadsError


class HeadstartError(Exception):
    """Something failed that no change of the request would mend: exit status 1."""


class AskedWrongly(HeadstartError, ValueError):
    """A user error: the request was wrong (a plan, a source, an address, a name). Exit status 2, nothing changed."""


class Unreachable(AskedWrongly):
    """An address that does not answer."""


class Busy(AskedWrongly):
    """Another process holds a lock: a retraining of the same model name, or a writer of the workspace."""


class Overtaken(HeadstartError):
    """A version that was proven better than a champion that another promotion, rollback or hand replaced meanwhile."""

    def __init__(self, name: str, version: str, over: str | None, champion: str | None) -> None:
        compared = f"champion {over}" if over else "no champion"
        now = f"version {champion}" if champion else "nobody"
        super().__init__(
            f"version {version} of {name} lost: it was compared with {compared}, and meanwhile {now} became champion; "
            "the next retraining compares with the champion of then"
        )


ASKED_WRONGLY: tuple[type[Exception], ...] = (AskedWrongly, HeadsError)
