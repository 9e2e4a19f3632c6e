"""The errors of a run's folder."""


class PlaceError(ValueError):
    """A run can't have its folder there. The message says why."""


class CheckpointError(RuntimeError):
    """A checkpoint can't be made or used. The message names the folder and the way out."""


class DamagedError(CheckpointError):
    """A checkpoint isn't what was saved any more."""
