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


ASKED_WRONGLY: tuple[type[Exception], ...] = (AskedWrongly, HeadsError)
