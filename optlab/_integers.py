"""Checks of whole numbers and seeds, without JAX."""

import numbers
from typing import Any


def is_integer(value: Any) -> bool:
    """Returns whether a value is a whole number, Python's or NumPy's; a bool isn't."""
    return isinstance(value, numbers.Integral) and not isinstance(value, bool)


def is_count(value: Any) -> bool:
    """Returns whether a value is a whole number of at least 1, Python's or NumPy's; a bool isn't."""
    return is_integer(value) and int(value) >= 1


def check_seed(seed: Any) -> None:
    """Refuses what is no seed. Of a longer number JAX would take the last 32 bits, so that two seeds were one.

    Raises:
        TypeError: for anything but a whole number.
        ValueError: for one outside of [0, 2**32).
    """
    if not is_integer(seed):
        raise TypeError(f"seed must be a whole number, got {seed!r}")
    if not 0 <= seed < 2**32:
        raise ValueError(f"seed must lie in [0, 2**32), got {seed}")
