"""The errors that `heads` raises for people; anything else that escapes is a defect."""


class HeadsError(ValueError):
    """A wrong input: the message says what was wrong, the value given, what is allowed and what to do."""


class WeightsError(HeadsError):
    """A weights file that is missing, of another architecture, or holds pickled code."""


class TrainingDiverged(HeadsError):
    """A training whose loss is no longer finite: repeated, it would end the same way."""


class CheckpointError(HeadsError):
    """A checkpoint that a training cannot go on from: missing, damaged, or of another variant."""


class ImageError(HeadsError):
    """An image that does not decode."""


class TextError(HeadsError):
    """A text that cannot be read: no UTF-8, empty, or much too long."""


class BundleError(HeadsError):
    """A bundle that is incomplete, damaged or of an unknown format."""
