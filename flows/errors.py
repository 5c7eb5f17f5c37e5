"""The error family of the pipeline: what the command turns into an exit status and one clear message."""

from heads.errors import HeadsError


class HeadstartError(Exception):
    """Something failed that no change of the request would mend: exit status 1."""


class AskedWrongly(HeadstartError, ValueError):
    """The request was wrong (a plan, a source, an address, a name): exit status 2, nothing changed."""


class Unreachable(AskedWrongly):
    """An address that does not answer."""


class Busy(AskedWrongly):
    """Another retraining of the same model name, or another writer of the workspace, is at work."""


ASKED_WRONGLY: tuple[type[Exception], ...] = (AskedWrongly, HeadsError)
