"""`minimize`: applies an optax transformation to a plain function in one compiled loop."""

import functools
import inspect
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import lax
from jax.flatten_util import ravel_pytree

from optlab._checks import check_key, check_not_negative
from optlab._extras import need
from optlab._trees import norm

if TYPE_CHECKING:
    from matplotlib.axes import Axes


@functools.partial(
    jax.tree_util.register_dataclass,
    data_fields=["x", "values", "gradient_norms", "steps", "final"],
    meta_fields=["f"],
)
@dataclass(frozen=True)
class Path:
    """Path of a minimization. Under vmap every array has the mapped axes in front.

    After a stop by tolerance the entries behind the last update repeat it, so that index -1 is always the end.

    Attributes:
        x: the iterates x₀ … x_T, a tree with one more axis of length T + 1 in front; or the values of `record`.
        values: f(x₀) … f(x_T), shape (T + 1,).
        gradient_norms: ‖∇f(x₀)‖ … ‖∇f(x_T)‖, shape (T + 1,).
        steps: number of updates, shape (), int32.
        final: the last iterate, a tree like x₀.
        f: the minimized function.
    """

    x: Any
    values: jax.Array
    gradient_norms: jax.Array
    steps: jax.Array
    final: Any
    f: Callable[..., Any] = field(repr=False)

    def plot(self, f: Callable[[Any], Any] | None = None, *, ax: "Axes | None" = None) -> "Axes":
        """Draws the iterates on the graph of f in one dimension, on its level lines in two.

        Paths from a vmap are drawn into one picture. Of a path that diverges the picture shows where f is finite.

        Args:
            f: the function of the graph or the level lines; by default the minimized one, if it isn't noisy.
            ax: axes to draw into; by default those of a new figure.

        Returns:
            the axes; `.figure.savefig(path)` saves the picture.

        Raises:
            ValueError: for other dimensions, a path that isn't recorded, a noisy function, or a path without a point at
                which f is finite.
        """
        return _plot(self, f, ax)


def minimize(
    f: Callable[..., Any],
    tx: optax.GradientTransformation,
    x0: Any,
    *,
    steps: int,
    tolerance: float | None = None,
    key: jax.Array | None = None,
    record: Callable[[Any], Any] | None = lambda x: x,
) -> Path:
    """Applies an optax transformation to the gradients of f until ‖∇f(x)‖ ≤ tolerance or `steps` updates are made.

    No update follows a point whose gradient is small enough, so the last iterate is the one that was tested. `tx` also
    gets `value`, `grad` and `value_fn`, so that L-BFGS, Polyak and line searches work. Everything is computed in the
    dtype of x0. It vmaps over starts, keys and hyperparameters:
    `jax.vmap(lambda lr: optlab.minimize(f, optlab.sgd(lr), x0, steps=100).final)(rates)`.

    Args:
        f: x -> scalar; with a `key` (x, key) -> scalar, a noisy function. It must be differentiable by JAX.
        tx: any optax transformation that ends in the learning rate.
        x0: the start, any tree of floating-point (or complex) numbers.
        steps: largest number of updates (T).
        tolerance: gradient norm at which it stops; for a noisy f that of the sampled gradient. None never stops early,
            and allows reverse-mode differentiation through the whole path.
        key: a JAX random key; evaluation t of f, counted from 0, gets fold_in(key, t).
        record: function of x whose values become `Path.x`; None keeps nothing.

    Returns:
        the path.

    Raises:
        ValueError: for a start that isn't of floating-point numbers, or a function that isn't scalar.
        TypeError: for a `tx` that is no optax transformation, or a `key` that is no JAX random key; if f takes a key
            and none is given, or the other way round.
    """
    if isinstance(steps, bool) or not isinstance(steps, int | np.integer) or steps < 0:
        raise ValueError(f"steps must be a whole number of at least 0, got {steps!r}")
    if tolerance is not None:
        check_not_negative("tolerance", tolerance)
    if not isinstance(tx, optax.GradientTransformation):
        raise TypeError(f"tx must be an optax transformation, such as optlab.sgd(0.1), got {tx!r}")
    x0 = jax.tree.map(jnp.asarray, x0)
    _check(f, x0, key)
    run = _looped(f, optax.with_extra_args_support(tx), int(steps), tolerance, record)
    x, values, norms, made, final = jax.jit(run)(x0, key)
    return Path(x, values, norms, made, final, f)


def _looped(
    f: Callable[..., Any],
    tx: optax.GradientTransformationExtraArgs,
    steps: int,
    tolerance: float | None,
    record: Callable[[Any], Any] | None,
) -> Callable[..., Any]:
    """Returns (x0, key) -> the fields of a `Path`."""

    def evaluated(x: Any, t: jax.Array, key: jax.Array | None) -> tuple[jax.Array, Any, jax.Array]:
        value, grad = jax.value_and_grad(_at(f, t, key))(x)
        grad = jax.tree.map(jnp.conj, grad)  # the direction of steepest ascent, of complex numbers too
        return value, grad, norm(grad)

    def kept(x: Any, value: jax.Array, length: jax.Array) -> Any:
        return (record(x) if record is not None else None), value, length

    def run(x0: Any, key: jax.Array | None) -> Any:
        def advance(t: jax.Array, point: Any) -> Any:
            x, state, value, grad, _ = point
            fn = _at(f, t, key)
            updates, state = tx.update(grad, state, x, value=value, grad=grad, value_fn=fn)
            x = optax.apply_updates(x, updates)
            return x, state, *evaluated(x, t + 1, key)

        def of(point: Any) -> Any:
            x, _, value, _, length = point
            return kept(x, value, length)

        first = (x0, tx.init(x0), *evaluated(x0, jnp.int32(0), key))
        if tolerance is None:

            def body(point: Any, t: jax.Array) -> Any:
                point = advance(t, point)
                return point, of(point)

            last, rest = lax.scan(body, first, jnp.arange(steps, dtype=jnp.int32))
            path = jax.tree.map(lambda a, b: jnp.concatenate([jnp.asarray(a)[None], b]), of(first), rest)
            return *path, jnp.int32(steps), last[0]

        def is_moving(carry: Any) -> jax.Array:
            t, point, _ = carry
            return (t < steps) & ~(point[4] <= tolerance)

        def move(carry: Any) -> Any:
            t, point, path = carry
            point = advance(t, point)
            return t + 1, point, jax.tree.map(lambda p, new: p.at[t + 1].set(new), path, of(point))

        path = jax.tree.map(lambda a: jnp.broadcast_to(a, (steps + 1, *jnp.shape(a))), of(first))
        t, last, path = lax.while_loop(is_moving, move, (jnp.int32(0), first, path))
        still = jnp.minimum(jnp.arange(steps + 1), t)
        return *jax.tree.map(lambda p: p[still], path), t, last[0]

    return run


def _at(f: Callable[..., Any], t: jax.Array, key: jax.Array | None) -> Callable[[Any], Any]:
    """Returns f with the randomness of evaluation t."""
    return f if key is None else lambda x: f(x, jax.random.fold_in(key, t))


def _check(f: Callable[..., Any], x0: Any, key: jax.Array | None) -> None:
    if key is not None:
        check_key(key)
    for path, x in jax.tree_util.tree_leaves_with_path(x0):
        if not jnp.issubdtype(x.dtype, jnp.inexact):
            where = jax.tree_util.keystr(path)
            raise ValueError(f"x0{where} must be floating-point numbers, got {x.dtype}: write 1.0 for 1")
    arguments = (x0,) if key is None else (x0, key)
    try:
        inspect.signature(f).bind(*arguments)
    except TypeError as error:
        how = "minimize(…, key=jax.random.key(0)) calls f(x, key), without a key f(x)"
        raise TypeError(f"f doesn't take {'(x)' if key is None else '(x, key)'}: {error}; {how}") from error
    except ValueError:  # no signature to read, as of some built-in functions
        pass
    value = jax.eval_shape(f, *arguments)
    if getattr(value, "shape", None) != () or not jnp.issubdtype(value.dtype, jnp.floating):
        got = jax.tree.map(lambda x: f"{x.dtype}{list(x.shape)}", value)
        raise ValueError(f"f must return one real number, got {got}")


# The picture.

_MARGIN = 0.15  # of the path's extent, on each side
_GRID = 121


def _plot(path: Path, f: Callable[[Any], Any] | None, ax: "Axes | None") -> "Axes":
    need("Path.plot", "matplotlib")
    import matplotlib.pyplot as plt

    points, one = _points(path)
    if points.shape[-1] not in (1, 2):
        raise ValueError(f"plot draws one or two dimensions, and x has {points.shape[-1]}")
    unravel = ravel_pytree(one)[1]
    f = path.f if f is None else f
    try:
        inspect.signature(f).bind(one)
    except TypeError as error:
        raise ValueError("the function is noisy: give plot(f=…) what its level lines are to be of, f(x)") from error
    at = jax.jit(jax.vmap(lambda x: f(unravel(x))))
    lines = [line[_is_finite(line, at(jnp.asarray(line)))] for line in points]
    seen = np.concatenate(lines).astype(float)  # in float32 the width of a path that diverged overflows
    if not len(seen):
        raise ValueError("the path has no point at which f is finite: there is nothing to draw")
    ax = plt.subplots()[1] if ax is None else ax
    low, high = seen.min(axis=0), seen.max(axis=0)
    margin = _MARGIN * np.where(high > low, high - low, 1)
    sides = [np.linspace(a, b, _GRID) for a, b in zip(low - margin, high + margin, strict=True)]
    if points.shape[-1] == 1:
        ax.plot(sides[0], at(jnp.asarray(sides[0][:, None], points.dtype)), color="0.6")
        for line in lines:
            ax.plot(line[:, 0], at(jnp.asarray(line)), ".-")
        ax.set(xlabel="x", ylabel="f(x)")
        return ax
    grid = np.stack(np.meshgrid(*sides, indexing="ij"), axis=-1).reshape(-1, 2)
    heights = np.asarray(at(jnp.asarray(grid, points.dtype))).reshape(_GRID, _GRID)
    finite = heights[np.isfinite(heights)]
    if finite.size:  # else the path's points are narrow places in which f is finite
        # Quantiles, not equal steps: the floor of a ravine is far below its walls.
        levels = np.unique(np.quantile(finite, np.linspace(0, 1, 24) ** 1.5))
        ax.contour(*sides, heights.T, levels=levels, colors="0.75", linewidths=0.8)
    for line in lines:
        ax.plot(line[:, 0], line[:, 1], ".-", markersize=3)
    ax.set(xlabel="x₁", ylabel="x₂")
    return ax


def _is_finite(line: np.ndarray, heights: Any) -> np.ndarray:
    return np.isfinite(line).all(axis=-1) & np.isfinite(heights)


def _points(path: Path) -> tuple[np.ndarray, Any]:
    """Returns the iterates, of shape (paths, T + 1, d), and one iterate as a tree."""
    mapped = path.values.ndim - 1
    one = jax.tree.map(lambda x: x[(0,) * mapped], path.final)
    last = jax.tree.map(lambda x: np.asarray(x).take(-1, axis=mapped), path.x)
    if str(jax.tree.map(np.shape, last)) != str(jax.tree.map(np.shape, path.final)) or not all(
        np.array_equal(x, y, equal_nan=True) for x, y in _pairs(last, path.final)
    ):
        raise ValueError("plot needs the iterates themselves: minimize without record=")
    length = path.values.shape[-1]
    flat = [np.asarray(x).reshape(-1, length, int(np.prod(jnp.shape(y)))) for x, y in _pairs(path.x, one)]
    return np.concatenate(flat, axis=-1), one


def _pairs(tree: Any, like: Any) -> list[tuple[Any, Any]]:
    return list(zip(jax.tree.leaves(tree), jax.tree.leaves(like), strict=True))
