"""The comparison's error."""


class StudyError(ValueError):
    """A study that can't be made, or can't go on in its folder. The message names the argument and the way out."""
