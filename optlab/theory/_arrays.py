"""Arrays that a prediction is asked about: converted, and their shapes checked by name."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from optlab._integers import is_integer


def as_floats(x: Any) -> jax.Array:
    """The array; whole numbers become floating-point ones."""
    x = jnp.asarray(x)
    return x if jnp.issubdtype(x.dtype, jnp.inexact) else x.astype(float)


def as_matrix(name: str, x: Any) -> jax.Array:
    """A matrix of floating-point numbers."""
    x = as_floats(x)
    if x.ndim != 2:
        raise ValueError(f"{name} must be a matrix, got the shape {x.shape}")
    return x


def as_design(X: Any, y: Any) -> tuple[jax.Array, jax.Array]:
    """X (N, d) and y (N,)."""
    X, y = as_matrix("X", X), as_floats(y)
    if y.shape != X.shape[:1]:
        raise ValueError(f"y must have one entry for each of the {X.shape[0]} rows of X, got the shape {y.shape}")
    return X, y


def as_vector(name: str, w: Any, size: int) -> jax.Array:
    """A vector of that many entries."""
    w = as_floats(w)
    if w.shape != (size,):
        raise ValueError(f"{name} must have the shape ({size},), got {w.shape}")
    return w


def as_rates(learning_rate: Any, steps: int) -> jax.Array:
    """The learning rate of every step, shape (steps,), from a number, an array or a schedule."""
    check_length("steps", steps)
    check_rate("learning_rate", learning_rate)
    if callable(learning_rate):
        return jax.vmap(learning_rate)(jnp.arange(steps)).astype(float)
    rates = as_floats(learning_rate)
    if rates.ndim and rates.shape != (steps,):
        raise ValueError(f"learning_rate must be a number, a schedule or {steps} numbers, got the shape {rates.shape}")
    return jnp.broadcast_to(rates, (steps,))


def check_symmetric(name: str, matrix: Any) -> jax.Array:
    """A symmetric matrix; one whose values are traced passes.

    Raises:
        ValueError: naming the largest difference between an entry and its mirror image.
    """
    matrix = as_matrix(name, matrix)
    if matrix.shape[0] != matrix.shape[1]:
        raise ValueError(f"{name} must be symmetric, got the shape {matrix.shape}")
    if not isinstance(matrix, jax.core.Tracer):
        gap, size = float(jnp.max(jnp.abs(matrix - matrix.T))), float(jnp.max(jnp.abs(matrix)))
        if not gap <= 100 * float(jnp.finfo(matrix.dtype).eps) * size:
            raise ValueError(
                f"{name} must be symmetric, but differs from its transpose by up to {gap:.3g}: give (A + A.T) / 2, if "
                "that is what is meant"
            )
    return matrix


def check_rate(name: str, values: Any) -> None:
    """Learning rates, not negative, of any shape; traced values and schedules pass."""
    if not callable(values):
        check_all_not_negative(name, values)


def check_length(name: str, value: Any) -> None:
    """The static length of a path: a whole number of at least 0."""
    if not is_integer(value) or value < 0:
        raise ValueError(f"{name} must be a whole number of at least 0, got {value!r}")


def check_whole(name: str, values: Any) -> None:
    """Whole numbers of at least 0, of any shape; what is traced passes."""
    _check(name, values, lambda x: (x >= 0) & (x % 1 == 0), "be a whole number of at least 0")


def check_all_positive(name: str, values: Any) -> None:
    """Numbers above 0, of any shape; what is traced passes."""
    _check(name, values, lambda x: x > 0, "be positive")


def check_all_not_negative(name: str, values: Any) -> None:
    """Numbers of at least 0, of any shape; what is traced passes."""
    _check(name, values, lambda x: x >= 0, "not be negative")


def check_all_decays(name: str, values: Any) -> None:
    """Decays, in [0, 1), of any shape; what is traced passes."""
    _check(name, values, lambda x: (x >= 0) & (x < 1), "lie in [0, 1)")


def _check(name: str, values: Any, is_right: Callable[[np.ndarray], Any], what: str) -> None:
    if isinstance(values, jax.core.Tracer):
        return
    values = np.asarray(values)
    if not jnp.issubdtype(values.dtype, jnp.number):
        raise ValueError(f"{name} must be a number, got {values.tolist()!r}")
    if not np.all(is_right(values)):
        raise ValueError(f"{name} must {what}, got {values.tolist()}")
