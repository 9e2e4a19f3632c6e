"""Checks of settings when a factory is called: whatever has a value is checked; traced values and schedules pass."""

import math
import numbers
from typing import Any

import jax
import numpy as np


def is_number(value: Any) -> bool:
    """Whether `value` is a plain number, Python's or NumPy's (a bool is none)."""
    return isinstance(value, (int, float, np.integer, np.floating)) and not isinstance(value, bool)


def is_count(value: Any) -> bool:
    """Whether `value` is a whole number of at least 1, NumPy's too (a bool is none)."""
    return isinstance(value, numbers.Integral) and not isinstance(value, bool) and int(value) >= 1


def check_decay(name: str, value: Any) -> None:
    """A decay rate of a running average: 1 would never forget, and never learn."""
    known = _known(name, value)
    if known is not None and not 0 <= known < 1:
        raise ValueError(f"{name} must lie in [0, 1), got {value}")


def check_positive(name: str, value: Any) -> None:
    """A number that something is divided by, or a length."""
    known = _known(name, value)
    if known is not None and not 0 < known < math.inf:
        raise ValueError(f"{name} must be positive{_and_finite(known)}, got {value}")


def check_not_negative(name: str, value: Any, *, schedule: bool = False) -> None:
    """A learning rate, a decay, an epsilon; where `schedule`, a function of the step passes, too."""
    if schedule and callable(value):
        return
    known = _known(name, value, " or a schedule" if schedule else "")
    if known is not None and not 0 <= known < math.inf:
        raise ValueError(f"{name} must not be negative{_and_finite(known)}, got {value}")


def check_fraction(name: str, value: Any, what: str = "", *, positive: bool = False) -> None:
    """A share, in [0, 1]; where `positive`, in (0, 1]. `what` says of what, for the message."""
    known = _known(name, value)
    if known is not None and not (0 < known <= 1 or (known == 0 and not positive)):
        raise ValueError(f"{name}{what} must lie in {'(' if positive else '['}0, 1], got {value}")


def check_choice(name: str, value: Any, choices: tuple[str, ...]) -> None:
    """One of a few names."""
    if value not in choices:
        raise ValueError(f"{name} must be one of {', '.join(map(repr, choices))}, got {value!r}")


def known(name: str, value: Any) -> float:
    """The value as Python's number, of what belongs to a state's structure or to a compiled program.

    Raises:
        ValueError: as `_known`, and for what has no value yet.
    """
    found = _known(name, value)
    if found is None:
        raise ValueError(
            f"{name} must be known when the transform is made, got a traced value: to optax.inject_hyperparams give "
            f"static_args=({name!r},)"
        )
    return found


def _known(name: str, value: Any, alternative: str = "") -> float | None:
    """The value as Python's number; None where only a traced or abstract scalar stands for it.

    Raises:
        ValueError: for what is no real number: a bool, a string, None, a complex number, an array with axes.
    """
    if is_number(value):
        return float(value)
    if not _is_real(getattr(value, "dtype", None)) or getattr(value, "shape", None) != ():
        is_array = isinstance(value, jax.Array) and jax.numpy.iscomplexobj(value)
        hint = ": to optax.inject_hyperparams give hyperparam_dtype=jnp.float32" if is_array else ""
        raise ValueError(f"{name} must be a number{alternative}, got {value!r}{hint}")
    if isinstance(value, (np.ndarray, np.generic)):  # generic: a scalar of bfloat16, which is none of NumPy's floats
        return float(value)
    # An array that other processes hold a part of can't be read here, and nothing traced can be read at all.
    is_readable = isinstance(value, jax.Array) and not isinstance(value, jax.core.Tracer)
    if not is_readable or not value.is_fully_addressable:
        return None
    return float(jax.device_get(value))


def _is_real(dtype: Any) -> bool:
    """Whether it is a dtype of whole or floating-point numbers; another library's is unknown to NumPy."""
    try:
        return dtype is not None and any(jax.numpy.issubdtype(dtype, kind) for kind in (np.integer, np.floating))
    except TypeError:
        return False


def _and_finite(known: float) -> str:
    return "" if -math.inf < known <= 0 else " and must be finite"
