"""The error of the range tests."""


class RangeError(ValueError):
    """A range test that can't be made. The message names the argument, its value and the way out."""
