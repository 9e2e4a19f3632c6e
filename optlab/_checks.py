"""Checks of a factory's settings: those with a value are checked; traced values and schedules pass."""

import math
from typing import Any

import jax
import numpy as np


def is_number(value: Any) -> bool:
    """Returns whether a value is a plain number, Python's or NumPy's; a bool isn't."""
    return isinstance(value, (int, float, np.integer, np.floating)) and not isinstance(value, bool)


def check_decay(name: str, value: Any) -> None:
    """Checks a decay rate of a running average: with 1 the average would never change."""
    known = _known(name, value)
    if known is not None and not 0 <= known < 1:
        raise ValueError(f"{name} must lie in [0, 1), got {value}")


def check_positive(name: str, value: Any) -> None:
    """Checks a divisor or a length."""
    known = _known(name, value)
    if known is not None and not 0 < known < math.inf:
        raise ValueError(f"{name} must be positive{_and_finite(known)}, got {value}")


def check_not_negative(name: str, value: Any, *, schedule: bool = False) -> None:
    """Checks a learning rate, a decay or an epsilon; with `schedule` a function of the step passes, too."""
    if schedule and callable(value):
        return
    known = _known(name, value, " or a schedule" if schedule else "")
    if known is not None and not 0 <= known < math.inf:
        raise ValueError(f"{name} must not be negative{_and_finite(known)}, got {value}")


def check_fraction(name: str, value: Any, what: str = "", *, positive: bool = False) -> None:
    """Checks a fraction in [0, 1]; with `positive` in (0, 1]. `what` continues its name in the message."""
    known = _known(name, value)
    if known is not None and not (0 < known <= 1 or (known == 0 and not positive)):
        raise ValueError(f"{name}{what} must lie in {'(' if positive else '['}0, 1], got {value}")


def check_key(key: Any) -> None:
    """Checks a JAX random key, typed or of the old kind; a batch of them passes, as under vmap."""
    dtype = getattr(key, "dtype", None)
    if dtype is None or not (dtype == np.uint32 or jax.dtypes.issubdtype(dtype, jax.dtypes.prng_key)):
        raise TypeError(f"key must be a JAX random key, such as jax.random.key(0), got {key!r}")


def check_choice(name: str, value: Any, choices: tuple[str, ...]) -> None:
    """Checks one of a few names."""
    if value not in choices:
        raise ValueError(f"{name} must be one of {', '.join(map(repr, choices))}, got {value!r}")


def known(name: str, value: Any) -> float:
    """Returns a setting as a Python number, where it shapes a state or a compiled program.

    Raises:
        ValueError: as `_known`, and for a traced value.
    """
    found = _known(name, value)
    if found is None:
        raise ValueError(
            f"{name} must be known when the transform is made, got a traced value: to optax.inject_hyperparams give "
            f"static_args=({name!r},)"
        )
    return found


def _known(name: str, value: Any, alternative: str = "") -> float | None:
    """Returns a value as a Python number, or None for a traced or abstract scalar.

    Raises:
        ValueError: if it isn't a real number: for a bool, a string, None, a complex number, an array with axes.
    """
    if is_number(value):
        return float(value)
    if not _is_real(getattr(value, "dtype", None)) or getattr(value, "shape", None) != ():
        is_array = isinstance(value, jax.Array) and jax.numpy.iscomplexobj(value)
        hint = ": to optax.inject_hyperparams give hyperparam_dtype=jnp.float32" if is_array else ""
        raise ValueError(f"{name} must be a number{alternative}, got {value!r}{hint}")
    if isinstance(value, (np.ndarray, np.generic)):  # generic: a bfloat16 scalar isn't one of NumPy's floats
        return float(value)
    # An array whose parts lie in other processes can't be read here, and a traced one can't be read at all.
    is_readable = isinstance(value, jax.Array) and not isinstance(value, jax.core.Tracer)
    if not is_readable or not value.is_fully_addressable:
        return None
    return float(jax.device_get(value))


def _is_real(dtype: Any) -> bool:
    """Returns whether a dtype is of integers or floats. NumPy doesn't know other libraries' dtypes."""
    try:
        return dtype is not None and any(jax.numpy.issubdtype(dtype, kind) for kind in (np.integer, np.floating))
    except TypeError:
        return False


def _and_finite(known: float) -> str:
    return "" if -math.inf < known <= 0 else " and must be finite"
