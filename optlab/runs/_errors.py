"""The errors of a run's folder."""


class CheckpointError(RuntimeError):
    """A checkpoint can't be made or used. The message names the folder and the way out."""


class DamagedError(CheckpointError):
    """A checkpoint isn't what was saved any more."""
