"""Arrays that a prediction is asked about: converted, and their values and shapes checked by name.

Values are checked where they are known; under jit and vmap a traced one passes, and its shape alone is checked.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from optlab._checks import check_not_negative
from optlab._integers import is_count, is_integer

# Arrays.


def as_floats(name: str, x: Any) -> jax.Array:
    """The real array; whole numbers and booleans become floating-point numbers."""
    try:
        with np.errstate(over="ignore"):  # in float32 10²⁰⁰ is infinite
            array = jnp.asarray(float(x) if is_integer(x) else _without_large_integers(x))
    except (TypeError, ValueError) as error:
        raise ValueError(f"{name} must be a number or an array of numbers, got {_short(x)}") from error
    if not any(jnp.issubdtype(array.dtype, kind) for kind in (jnp.floating, jnp.integer, jnp.bool_)):
        raise ValueError(f"{name} must be of real numbers, got {array.dtype}")
    return array if jnp.issubdtype(array.dtype, jnp.floating) else array.astype(float)


def _without_large_integers(x: Any) -> Any:
    """Whole numbers outside JAX as floating-point ones: 10¹⁰ isn't one of its int32, and an array of NumPy's wraps."""
    if any(isinstance(leaf, jax.Array) for leaf in jax.tree.leaves(x)):
        return x
    array = np.asarray(x)
    is_whole = array.dtype.kind in "iu" or (array.dtype.kind == "O" and all(is_integer(value) for value in array.flat))
    return array.astype(np.float64) if is_whole else x


def as_finite(name: str, x: Any) -> jax.Array:
    """A real array without NaN and infinity, not empty."""
    array = as_floats(name, x)
    if not array.size:
        raise ValueError(f"{name} must not be empty, got the shape {array.shape}")
    check_all_finite(name, x)
    return array


def as_decomposable(name: str, x: Any) -> jax.Array:
    """A matrix of finite numbers; half precision, in which nothing is decomposed, becomes single."""
    array = as_matrix(name, x)
    return array.astype(jnp.promote_types(array.dtype, jnp.float32))


def as_matrix(name: str, x: Any) -> jax.Array:
    """A matrix of finite numbers, not empty."""
    array = as_floats(name, x)
    if array.ndim != 2:
        raise ValueError(f"{name} must be a matrix, got the shape {array.shape}")
    return as_finite(name, x)


def as_curved(X: Any) -> jax.Array:
    """A matrix X (N, d) that isn't 0: with XᵀX = 0 nothing moves, and there is no rate to predict."""
    array = as_decomposable("X", X)
    values = known("X", X)
    if values is not None and not np.any(np.square(values)):
        raise ValueError(f"X must have an entry whose square isn't 0 in {array.dtype}: with XᵀX = 0 nothing moves")
    return array


def as_design(X: Any, y: Any) -> tuple[jax.Array, jax.Array]:
    """X (N, d) and y (N,)."""
    X = as_decomposable("X", X)
    if jnp.shape(as_floats("y", y)) != X.shape[:1]:
        raise ValueError(f"y must have one entry for each of the {X.shape[0]} rows of X, got the shape {jnp.shape(y)}")
    y = as_finite("y", y)
    dtype = jnp.promote_types(X.dtype, y.dtype)
    return X.astype(dtype), y.astype(dtype)


def as_vector(name: str, w: Any, size: int | None = None) -> jax.Array:
    """A vector of finite numbers, of that many entries where the size is given."""
    shape = as_floats(name, w).shape
    if size is None and len(shape) != 1:
        raise ValueError(f"{name} must be a vector, got the shape {shape}")
    if size is not None and shape != (size,):
        raise ValueError(f"{name} must have the shape ({size},), got {shape}")
    return as_finite(name, w)


def as_numbers(**values: Any) -> list[jax.Array]:
    """Real arrays of the one shape that the given ones broadcast to."""
    arrays = [as_floats(name, x) for name, x in values.items()]
    try:
        return jnp.broadcast_arrays(*arrays)
    except ValueError as error:
        shapes = ", ".join(f"{name} {x.shape}" for name, x in zip(values, arrays, strict=True))
        raise ValueError(f"these must be numbers or have shapes that broadcast, got {shapes}") from error


def as_rates(learning_rate: Any, steps: int) -> jax.Array:
    """The learning rate of every step, shape (steps,), from a number, an array or a schedule."""
    check_length("steps", steps)
    if callable(learning_rate):
        return as_rates(jax.vmap(learning_rate)(jnp.arange(steps)), steps)
    check_all_not_negative("learning_rate", learning_rate)
    rates = as_floats("learning_rate", learning_rate)
    if rates.ndim and rates.shape != (steps,):
        raise ValueError(f"learning_rate must be a number, a schedule or {steps} numbers, got the shape {rates.shape}")
    return jnp.broadcast_to(rates, (steps,))


def check_symmetric(name: str, matrix: Any) -> jax.Array:
    """A symmetric matrix; one whose values are traced passes.

    Raises:
        ValueError: naming the largest difference between an entry and its mirror image.
    """
    array = as_decomposable(name, matrix)
    if array.shape[0] != array.shape[1]:
        raise ValueError(f"{name} must be symmetric, got the shape {array.shape}")
    values = known(name, matrix)
    if values is not None:
        values = values.astype(np.float64)
        gap, size = np.max(np.abs(values - values.T)), np.max(np.abs(values))
        if not gap <= 100 * float(jnp.finfo(array.dtype).eps) * size:
            raise ValueError(
                f"{name} must be symmetric, but differs from its transpose by up to {gap:.3g}: give (A + A.T) / 2, if "
                "that is what is meant"
            )
    return array


def count_numbers(name: str, tree: Any) -> int:
    """How many numbers a tree of floating-point arrays holds; one at least."""
    for path, x in jax.tree_util.tree_leaves_with_path(tree):
        if not jnp.issubdtype(getattr(x, "dtype", type(x)), jnp.inexact):
            raise ValueError(
                f"{name}{jax.tree_util.keystr(path)} must be an array of floating-point numbers, got {_short(x)}"
            )
    size = sum(jnp.size(x) for x in jax.tree.leaves(tree))
    if not size:
        raise ValueError(f"{name} must hold an array that isn't empty, got {_short(tree)}")
    return size


# Settings.


def check_count(name: str, value: Any, least: int = 1) -> None:
    """A static whole number of at least 1, or of at least `least`."""
    if not is_count(value) or value < least:
        raise ValueError(f"{name} must be a whole number of at least {least}, got {_short(value)}")


def check_length(name: str, value: Any) -> None:
    """The static length of a path: a whole number of at least 0."""
    if not is_integer(value) or value < 0:
        raise ValueError(f"{name} must be a whole number of at least 0, got {_short(value)}")


def check_number(name: str, value: Any) -> None:
    """One finite number."""
    if jnp.shape(as_floats(name, value)):
        raise ValueError(f"{name} must be one number, got the shape {jnp.shape(value)}")
    check_all_finite(name, value)


def check_functions(**values: Any) -> None:
    """Functions, each by its name."""
    for name, value in values.items():
        if not callable(value):
            raise TypeError(f"{name} must be a function, got {_short(value)}")


def check_scalar_function(f: Callable[[Any], Any], *arguments: Any) -> None:
    """A function of the arguments that returns one real number."""
    check_functions(f=f)
    value = jax.eval_shape(f, *arguments)
    if getattr(value, "shape", None) != () or not jnp.issubdtype(value.dtype, jnp.floating):
        got = jax.tree.map(lambda x: f"{x.dtype}{list(x.shape)}", value)
        raise ValueError(f"f must return one real number, got {got}")


def check_step(name: str, value: Any) -> None:
    """One whole number of at least 0, which may be traced."""
    check_whole(name, value)
    check_not_negative(name, value)


def check_whole(name: str, values: Any, least: int = 0) -> None:
    """Whole numbers of at least 0, or of at least `least`, of any shape."""
    _check(name, values, lambda x: (x >= least) & (x % 1 == 0), f"be a whole number of at least {least}")


def check_all_finite(name: str, values: Any) -> None:
    """Finite numbers, of any shape."""
    _check(name, values, np.isfinite, "be finite")


def check_all_positive(name: str, values: Any) -> None:
    """Finite numbers above 0, of any shape."""
    check_all_finite(name, values)
    _check(name, values, lambda x: x > 0, "be positive")


def check_all_not_negative(name: str, values: Any) -> None:
    """Finite numbers of at least 0, of any shape."""
    check_all_finite(name, values)
    _check(name, values, lambda x: x >= 0, "not be negative")


def check_ordered(*, or_equal: bool = False, **values: Any) -> None:
    """The second of two named values is above the first, or equal to it, in all places."""
    low_name, high_name = values
    low, high = (known(name, x) for name, x in values.items())
    if low is None or high is None or np.all(low <= high if or_equal else low < high):
        return
    what = "at least" if or_equal else "above"
    raise ValueError(
        f"{high_name} must be {what} {low_name} ({_short(values[low_name])}), got {_short(values[high_name])}"
    )


def check_ascending(name: str, values: Any) -> None:
    """A vector each of whose entries is above the one before."""
    entries = known(name, values)
    if entries is not None and not np.all(np.diff(entries) > 0):
        raise ValueError(f"{name} must ascend, got {_short(entries.tolist())}")


def check_all_decays(name: str, values: Any) -> None:
    """Decays, in [0, 1), of any shape."""
    _check(name, values, lambda x: (x >= 0) & (x < 1), "lie in [0, 1)")


def _check(name: str, values: Any, is_right: Callable[[np.ndarray], Any], what: str) -> None:
    entries = known(name, values)
    if entries is None:
        return
    with np.errstate(invalid="ignore"):  # inf % 1
        right = np.broadcast_to(is_right(entries), entries.shape)
    if not right.all():
        among = f" among {entries.size} numbers" if entries.ndim else ""
        raise ValueError(f"{name} must {what}, got {entries[~right].flat[0]}{among}")


def known(name: str, values: Any) -> np.ndarray | None:
    """The values in NumPy, which can be looked at under jit, too; None for what is traced or another process's.

    They are rounded as JAX has them: in float32 0.99999999 is 1.
    """
    if not all(_is_readable(x) for x in jax.tree.leaves(values)):
        return None
    dtype = as_floats(name, values).dtype
    with np.errstate(over="ignore"):
        return np.asarray(values).astype(dtype)


def _is_readable(x: Any) -> bool:
    return not isinstance(x, jax.core.Tracer) and (not isinstance(x, jax.Array) or x.is_fully_addressable)


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
