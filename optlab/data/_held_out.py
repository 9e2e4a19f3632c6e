"""The choice of held-out examples, which no run's seed can change."""

import numbers

import numpy as np

from optlab._integers import is_integer
from optlab.data._random import HOLD_OUT, permutation
from optlab.data._types import DataError


def held_out_size(name: str, fraction: float, size: int) -> int:
    """Converts a fraction of `size` examples to a number of them: none for 0, at least one otherwise."""
    if isinstance(fraction, bool) or not isinstance(fraction, numbers.Real) or not 0 <= fraction < 1:
        raise DataError(f"{name} must be a fraction in [0, 1), got {fraction!r}")
    return max(1, round(float(fraction) * size)) if fraction else 0


def hold_out(size: int, validation: int, test: int = 0) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Splits range(size) at random into train, validation and test rows, each in ascending order.

    The choice depends on the sizes alone, so that every run is judged on the same examples, whatever its seed.
    """
    for name, count in (("validation", validation), ("test", test)):
        if not is_integer(count) or count < 0:
            raise DataError(f"{name} must be a number of examples, 0 or more, got {count!r}")
    if validation + test >= size:
        raise DataError(f"holding out {validation} + {test} of {size} examples leaves none to train on")
    train, chosen, final = np.split(permutation(size, HOLD_OUT), [size - validation - test, size - test])
    return np.sort(train), np.sort(chosen), np.sort(final)
