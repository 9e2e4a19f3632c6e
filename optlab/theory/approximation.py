"""Functions that ReLU networks are exactly: piecewise-linear ones, the hat, sawtooths; and limits of other networks.

A network here is a list of layers (W, b), h ← Wh + b with a ReLU between two layers: plain arrays, a pytree that
`optlab.minimize` trains. One hidden layer is [(w, b), (a, c)]: Σaᵢ relu(wᵢᵀx + bᵢ) + c.

In one dimension one hidden layer represents every continuous piecewise-linear function (`piecewise_linear`). In more it
does not, whatever its width, although some courses argue so: a hidden unit bends the function along a whole
hyperplane, and by the same amount everywhere on it (`bend`), so that max(0, x₁, x₂), which bends along rays, and
everything of bounded support, as a pyramid, are out of reach. With ⌈log₂(d + 1)⌉ hidden layers all of them can be had
(Arora et al. 2018, arXiv 1611.01491, Theorem 2.1): `largest` has two in two dimensions. In the limit of infinite width
one hidden layer still approximates every continuous function on a bounded set (Leshno et al. 1993), if its activation
isn't a polynomial.
"""

from collections.abc import Callable
from typing import Any, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np

from optlab._checks import check_positive
from optlab.theory._arrays import (
    as_finite,
    as_floats,
    as_matrix,
    as_numbers,
    as_vector,
    check_all_finite,
    check_all_not_negative,
    check_ascending,
    check_count,
    check_functions,
    check_number,
    check_ordered,
    check_scalar_function,
    check_whole,
)
from optlab.theory.least_squares import closed_form

__all__ = [
    "bend",
    "best_error",
    "count_pieces",
    "hat",
    "interpolant",
    "interpolation_error",
    "largest",
    "network",
    "piecewise_linear",
    "sawtooth",
    "widths_of_sawtooth",
]

Layers: TypeAlias = list[tuple[jax.Array, jax.Array]]


def network(layers: Layers, x: Any, activation: Callable[[jax.Array], jax.Array] = jax.nn.relu) -> jax.Array:
    """The value at x (d,) or at a number, a scalar; `jax.vmap` has many.

    Args:
        layers: [(W, b), …], W (outputs, inputs), b (outputs,).
        x: one point.
        activation: what stands between two layers.
    """
    check_functions(activation=activation)
    h = jnp.atleast_1d(as_floats("x", x))
    inputs = _inputs(layers)
    if h.shape != (inputs,):
        raise ValueError(f"x must have the shape ({inputs},), as the first layer's inputs, got {h.shape}")
    for W, b in layers[:-1]:
        h = activation(W @ h + b)
    W, b = layers[-1]
    return (W @ h + b)[0]


def _inputs(layers: Layers) -> int:
    """The number of the first layer's inputs.

    Raises:
        ValueError: if the layers don't fit one another, or the last one hasn't one output.
    """
    if not isinstance(layers, (list, tuple)) or not all(isinstance(layer, (list, tuple)) for layer in layers):
        raise ValueError(f"layers must be a list of pairs (W, b), got {layers!r}")
    shapes = [tuple(jnp.shape(x) for x in layer) for layer in layers]
    if not shapes:
        raise ValueError("layers must have at least one pair (W, b), got none")
    widths = [s[0][-1] if s and s[0] else 0 for s in shapes] + [1]
    for i, (shape, inputs, outputs) in enumerate(zip(shapes, widths, widths[1:], strict=False)):
        if shape != ((outputs, inputs), (outputs,)):
            raise ValueError(
                f"layer {i} must be a pair (W, b) of shapes ({outputs}, inputs) and ({outputs},): as many outputs as "
                f"the next one has inputs and one at the end, got {shape}"
            )
    return widths[0]


def piecewise_linear(kinks: Any, values: Any, *, left: Any = 0.0, right: Any = 0.0) -> Layers:
    """The network of one hidden layer that is a given continuous piecewise-linear function of one variable.

    f(x) = f(k₁) + s₀(x − k₁) + Σ(sᵢ − sᵢ₋₁)relu(x − kᵢ), sᵢ the slopes; the line is relu(x − k₁) − relu(k₁ − x). It has
    as many units as kinks, and one more for the slope on the left.

    Args:
        kinks: where it bends, (n,), ascending.
        values: f there, (n,).
        left: the slope before the first,
        right: and behind the last.
    """
    check_number("left", left)
    check_number("right", right)
    at = as_vector("kinks", kinks)
    check_ascending("kinks", kinks)
    kinks, values = at, as_vector("values", values, len(at))
    ends = [jnp.asarray(s, kinks.dtype)[None] for s in (left, right)]
    slopes = jnp.concatenate([ends[0], jnp.diff(values) / jnp.diff(kinks), ends[1]])
    bends = jnp.diff(slopes).at[0].add(slopes[0])  # the first unit on the right carries the line on
    directions = jnp.ones(len(kinks) + 1, kinks.dtype).at[-1].set(-1)
    offsets = jnp.append(-kinks, kinks[0])
    return [(directions[:, None], offsets), (jnp.append(bends, -slopes[0])[None], values[:1])]


def hat(left: Any, top: Any, right: Any) -> Layers:
    """0 outside (left, right) and 1 at the top, linear between: three ReLUs, exactly.

    relu(x − l)/(t − l) − (1/(t − l) + 1/(r − t))relu(x − t) + relu(x − r)/(r − t): the basis function of linear finite
    elements. Source: He, Li, Xu and Zheng 2020 (arXiv 1807.03973), section 3.

    Args:
        left: l, where it begins to rise,
        top: t,
        right: and r, where it is 0 again; l < t < r.
    """
    for name, value in (("left", left), ("top", top), ("right", right)):
        check_number(name, value)
    check_ordered(left=left, top=top)
    check_ordered(top=top, right=right)
    kinks = jnp.stack([jnp.asarray(x, float) for x in (left, top, right)])
    up, down = 1 / (kinks[1] - kinks[0]), 1 / (kinks[2] - kinks[1])
    return [(jnp.ones((3, 1)), -kinks), (jnp.stack([up, -up - down, down])[None], jnp.zeros(1))]


def interpolant(f: Callable[[jax.Array], jax.Array], width: int, low: float, high: float) -> Layers:
    """The piecewise-linear interpolant of f at `width` equidistant kinks, as a network of one hidden layer.

    Args:
        f: x -> scalar, x a number.
        width: how many kinks, two at least.
        low: the interval's lower end.
        high: and its upper end.
    """
    check_count("width", width, least=2)
    _check_interval(low, high)
    check_scalar_function(f, jnp.zeros((), float))
    kinks = jnp.linspace(low, high, width, dtype=float)
    return piecewise_linear(kinks, jax.vmap(f)(kinks))


def interpolation_error(curvature: Any, width: Any, low: Any, high: Any) -> jax.Array:
    """max|f″|·h²/8, h = (high − low)/(width − 1): by so much at most the `interpolant` misses f, ∝ 1/width².

    Args:
        curvature: max|f″| over the interval.
        width: how many kinks, two at least.
        low: the interval's lower end.
        high: and its upper end.
    """
    check_all_not_negative("curvature", curvature)
    check_whole("width", width, least=2)
    check_all_finite("low", low)
    check_all_finite("high", high)
    check_ordered(low=low, high=high)
    M, n, low, high = as_numbers(curvature=curvature, width=width, low=low, high=high)
    return M * ((high - low) / (n - 1)) ** 2 / 8


def best_error(features: Callable[[jax.Array], Any], f: Callable[[jax.Array], jax.Array], x: Any) -> jax.Array:
    """√mean((f − Σaᵢφᵢ)²) over the points x at the best a: no training on these features gets below it.

    A network whose activation is a polynomial of degree p is itself one of degree p in x, however wide:
    `best_error(lambda x: x ** jnp.arange(p + 1), f, x)` is as far as it gets (Leshno et al. 1993). A ReLU network
    without biases is positively homogeneous, f(cx) = cf(x) for c ≥ 0, in one dimension two slopes that meet in 0:
    `best_error(lambda x: jnp.stack([jax.nn.relu(x), jax.nn.relu(-x)]), f, x)`.

    Args:
        features: x -> (k,).
        f: what is to be approximated, x -> scalar.
        x: the points, (n,) or (n, d).
    """
    check_functions(features=features, f=f)
    x = as_finite("x", x)
    if not x.ndim:
        raise ValueError("x must be points, (n,) or (n, d), got the shape ()")
    matrix, values = as_matrix("features(x)", jax.vmap(features)(x)), as_vector("f(x)", jax.vmap(f)(x), len(x))
    return jnp.sqrt(jnp.mean((matrix @ closed_form(matrix, values) - values) ** 2))


def largest() -> Layers:
    """max(0, x₁, x₂), exactly, by two hidden layers: relu(x₂ + relu(x₁ − x₂)), x₂ = relu(x₂) − relu(−x₂)."""
    first = jnp.array([[1.0, -1.0], [0.0, 1.0], [0.0, -1.0]])
    return [(first, jnp.zeros(3)), (jnp.array([[1.0, 1.0, -1.0]]), jnp.zeros(1)), (jnp.ones((1, 1)), jnp.zeros(1))]


def bend(f: Callable[[jax.Array], jax.Array], point: Any, normal: Any, *, step: float = 1e-3) -> jax.Array:
    """(f(p + hn) + f(p − hn) − 2f(p))/h: how much a piecewise-linear f bends at p across the direction n.

    Of a network of one hidden layer it is Σ|wᵢᵀn|aᵢ over the units whose hyperplane goes through p, and the same at all
    points of it that no other unit's goes through (closer than h).

    Args:
        f: x (d,) -> scalar.
        point: p, (d,).
        normal: n, (d,).
        step: h, positive.
    """
    check_positive("step", step)
    p = as_vector("point", point)
    n = as_vector("normal", normal, len(p))
    check_scalar_function(f, p)
    return (f(p + step * n) + f(p - step * n) - 2 * f(p)) / step


# Depth against width.


def sawtooth(depth: int) -> Layers:
    """2^(depth − 1) teeth on [0, 1], that is 2^depth linear pieces, by `depth` hidden layers of two units each.

    The tooth 2relu(x) − 4relu(x − ½) is put into itself; beyond [0, 1] the function goes down. One hidden layer needs
    2^depth units for as many pieces. Source: Telgarsky 2015 (arXiv 1509.08101).
    """
    check_count("depth", depth)
    offsets = jnp.array([0.0, -0.5])
    tooth = jnp.array([[2.0, -4.0]])
    inner = [(jnp.ones((2, 1)) @ tooth, offsets)] * (depth - 1)
    return [(jnp.ones((2, 1)), offsets), *inner, (tooth, jnp.zeros(1))]


def widths_of_sawtooth(depth: int) -> dict[str, int]:
    """The units that 2^depth pieces take: {"deep": 2·depth, "shallow": 2^depth}, the latter one for each bend and 0.

    Source: see `sawtooth`.

    Args:
        depth: hidden layers of the deep one.
    """
    check_count("depth", depth)
    return {"deep": 2 * depth, "shallow": 2**depth}


def count_pieces(f: Callable[[jax.Array], jax.Array], low: float, high: float, *, cells: int) -> int:
    """Linear pieces of a piecewise-linear function of one variable whose bends lie on a grid.

    Args:
        f: x -> scalar.
        low: the interval's lower end.
        high: and its upper end.
        cells: of the grid; every bend must lie at an end of one.
    """
    check_count("cells", cells)
    _check_interval(low, high)
    check_scalar_function(f, jnp.zeros((), float))
    middles = low + (high - low) * (jnp.arange(cells) + 0.5) / cells
    slopes = np.asarray(jax.vmap(jax.grad(f))(middles.astype(float)))
    scale = np.max(np.abs(slopes)) * 1e-6
    return 1 + int(np.sum(np.abs(np.diff(slopes)) > scale))


def _check_interval(low: Any, high: Any) -> None:
    check_number("low", low)
    check_number("high", high)
    check_ordered(low=low, high=high)
