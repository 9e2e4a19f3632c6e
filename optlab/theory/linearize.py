"""A network's tangent: f(θ₀) + J(θ − θ₀), its kernel, what training on it does, and how close a wide network stays.

A network here is any f(params, x) -> outputs (N, k), x holding N examples.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import lax
from scipy import stats

from optlab._checks import check_not_negative, check_positive
from optlab._minimization import minimize
from optlab.theory._arrays import (
    as_finite,
    as_floats,
    as_matrix,
    check_all_positive,
    check_count,
    check_functions,
    check_length,
    check_number,
    check_step,
    check_symmetric,
    count_numbers,
    known,
)

__all__ = [
    "Laziness",
    "Slope",
    "kernel_descent",
    "kernel_regression",
    "laziness",
    "linear_probe",
    "linearize",
    "ntk",
    "shallow",
    "slope_with_width",
]

Network = Callable[[Any, Any], jax.Array]
BATCH = 32  # tangents of the parameters that are held at a time


def linearize(f: Network, params: Any) -> Network:
    """The network's tangent at θ₀: (θ, x) -> f(θ₀, x) + J(x)(θ − θ₀), linear in θ, by one jvp.

    Source: Lee et al. 2019 (arXiv 1902.06720), eq. 5.

    Args:
        f: (params, x) -> outputs.
        params: θ₀.
    """
    check_functions(f=f)
    count_numbers("params", params)

    def tangent(theta: Any, x: Any) -> jax.Array:
        change = jax.tree.map(jnp.subtract, theta, params)
        value, slope = jax.jvp(lambda p: f(p, x), (params,), (change,))
        return value + slope

    return tangent


def ntk(f: Network, params: Any, x1: Any, x2: Any | None = None) -> jax.Array:
    """The empirical neural tangent kernel J(x₁)J(x₂)ᵀ, (N₁, k, N₂, k), by a vjp and a jvp for each output of x₂.

    The Jacobian itself, with as many columns as parameters, is never there: 32 rows of it at a time are.
    Source: Jacot, Gabriel and Hongler 2018 (arXiv 1806.07572), section 4.

    Args:
        f: (params, x) -> outputs (N, k).
        params: where.
        x1: N₁ examples.
        x2: N₂ examples; None is x1.
    """
    check_functions(f=f)
    count_numbers("params", params)
    x2 = x1 if x2 is None else x2
    outputs, pullback = jax.vjp(lambda p: f(p, x2), params)
    if outputs.ndim != 2 or not outputs.size:
        raise ValueError(f"f must return outputs of the shape (examples, outputs), got {outputs.shape}")

    def column(cotangent: jax.Array) -> jax.Array:
        return jax.jvp(lambda p: f(p, x1), (params,), pullback(cotangent))[1]

    each = jnp.eye(outputs.size, dtype=outputs.dtype).reshape(-1, *outputs.shape)
    columns = lax.map(column, each, batch_size=min(BATCH, len(each)))  # (N₂k, N₁, k)
    return jnp.moveaxis(columns.reshape(*outputs.shape, *columns.shape[1:]), (0, 1), (2, 3))


def kernel_regression(
    kernel: Any,
    y: Any,
    kernel_test: Any | None = None,
    *,
    f0: Any | None = None,
    f0_test: Any | None = None,
    penalty: Any = 0.0,
) -> jax.Array:
    """f₀(x*) + K(x*, X)(K + λI)⁻¹(y − f₀(X)), (N*, k): where training the tangent on squared errors ends.

    With λ = 0 it is the limit of gradient descent from θ₀; with λ > 0 the minimum of ‖f − y‖² + λ‖θ − θ₀‖².
    Where K is singular and λ = 0 it is the limit too (the pseudo-inverse). Source: Lee et al. 2019, eq. 14 (t → ∞).

    Args:
        kernel: of the training examples, (N, k, N, k) as `ntk` gives it, or (N, N).
        y: targets, (N, k) or (N,).
        kernel_test: K(x*, X), (N*, k, N, k) or (N*, N); None is the training examples'.
        f0: the network's outputs at θ₀ on the training examples, of y's shape; None is a kernel machine without one.
        f0_test: and on the test examples, (N*, k) or (N*,); None is f0 where kernel_test is None.
        penalty: λ.

    Raises:
        ValueError: for a kernel that isn't symmetric or has a negative eigenvalue, for shapes that don't fit, and for
            one of f0 and f0_test without the other.
    """
    check_not_negative("penalty", penalty)
    K, y, shape = _square(kernel, y)
    rows = K if kernel_test is None else _rows(kernel_test, len(K))
    f0_test = f0 if f0_test is None and kernel_test is None else f0_test
    if (f0 is None) != (f0_test is None):
        missing, given = ("f0", "f0_test") if f0 is None else ("f0_test", "f0")
        raise ValueError(f"{missing} must be given with {given}: both are outputs of the one network at θ₀")
    f0 = _like("f0", 0.0 if f0 is None else f0, shape)
    f0_test = _like("f0_test", 0.0 if f0_test is None else f0_test, (len(rows) // int(np.prod(shape[1:])), *shape[1:]))
    residual = (y - f0).reshape(-1)
    values, vectors = _spectrum(K)
    values = jnp.where(values > len(K) * jnp.finfo(K.dtype).eps * values[-1], values, 0) + penalty
    inverse = jnp.where(values > 0, 1 / jnp.where(values > 0, values, 1), 0)
    return (rows @ (vectors @ (inverse * (vectors.T @ residual)))).reshape(-1, *shape[1:]) + f0_test


def kernel_descent(kernel: Any, y: Any, *, learning_rate: Any, steps: Any, f0: Any = 0.0) -> jax.Array:
    """y − (I − 2ηK)ᵗ(y − f₀), of y's shape: the tangent's outputs after t steps of gradient descent on ‖f − y‖².

    It converges for η < 1/λmax(K). Source: Lee et al. 2019, eq. 8, in discrete time.

    Args:
        kernel: of the training examples, (N, k, N, k) or (N, N).
        y: targets, (N, k) or (N,).
        learning_rate: η.
        steps: t.
        f0: the outputs at θ₀.
    """
    check_not_negative("learning_rate", learning_rate)
    check_step("steps", steps)
    K, y, shape = _square(kernel, y)
    f0 = _like("f0", f0, shape)
    values, vectors = _spectrum(K)
    left = (1 - 2 * learning_rate * values) ** steps * (vectors.T @ (y - f0).reshape(-1))
    return y - (vectors @ left).reshape(shape)


def shallow(
    width: int, inputs: int, *, activation: Callable[[jax.Array], jax.Array] = jnp.tanh
) -> tuple[Callable[[jax.Array], Any], Network]:
    """(init, f) of a network of one hidden layer in the tangent kernel's scaling: aᵀσ(Wx/√d)/√m, all weights normal.

    It is where "the wider, the lazier" is a theorem: the kernel has a limit, each weight moves by O(1/√m).

    Args:
        width: m.
        inputs: d.
        activation: σ.
    """
    check_functions(activation=activation)
    check_count("width", width)
    check_count("inputs", inputs)

    def init(key: jax.Array) -> dict[str, jax.Array]:
        for_w, for_a = jax.random.split(key)
        return {"W": jax.random.normal(for_w, (width, inputs), float), "a": jax.random.normal(for_a, (width, 1), float)}

    def f(params: dict[str, jax.Array], x: jax.Array) -> jax.Array:
        x = as_floats("x", x)
        if x.ndim != 2 or x.shape[1] != inputs:
            raise ValueError(f"x must have the shape (examples, {inputs}), got {x.shape}")
        return activation(x @ params["W"].T / inputs**0.5) @ params["a"] / width**0.5

    return init, f


class Laziness(NamedTuple):
    """The gap between a network and its tangent when both are trained; see `laziness`."""

    gap: jax.Array  # root mean square of f(θ_T) − f_lin(θ'_T) on the test examples
    moved: jax.Array  # ‖θ_T − θ₀‖
    relative: jax.Array  # ‖θ_T − θ₀‖/‖θ₀‖
    loss: jax.Array  # the network's mean squared error at the end


def laziness(
    f: Network, params: Any, x: Any, y: Any, x_test: Any, *, tx: optax.GradientTransformation, steps: int
) -> Laziness:
    """Trains a network and its tangent alike on mean squared errors, and measures by what they part.

    In the tangent kernel's scaling (`shallow`) ‖θ − θ₀‖ has a limit while ‖θ₀‖ grows, so that ‖θ − θ₀‖/‖θ₀‖ falls like
    width^(−½), and the gap at least like that (Lee et al. 2019, Theorem 2.1; Chizat, Oyallon and Bach 2019, arXiv
    1812.07956). Measured over widths from 64 to 1,024 the gap's exponent is about −½ for ReLU and about −1 for tanh,
    as is argued for smooth activations by Dyer and Gur-Ari 2020 (arXiv 1909.11304). It vmaps over seeds.

    Args:
        f: (params, x) -> outputs (N, k).
        params: θ₀.
        x: training examples.
        y: targets, of the outputs' shape.
        x_test: where the two are compared.
        tx: any optax transformation.
        steps: how many.
    """
    check_functions(f=f)
    count_numbers("params", params)
    y, outputs = as_finite("y", y), jax.eval_shape(f, params, x)
    if y.shape != outputs.shape:
        raise ValueError(f"y must have the outputs' shape {outputs.shape}, got {y.shape}")
    tangent = linearize(f, params)

    def trained(g: Network) -> Any:
        loss = lambda theta: jnp.mean((g(theta, x) - y) ** 2)
        path = minimize(loss, tx, params, steps=steps, record=None)
        return path.final, path.values[-1]

    (theta, loss), (linear, _) = trained(f), trained(tangent)
    gap = jnp.sqrt(jnp.mean((f(theta, x_test) - tangent(linear, x_test)) ** 2))
    moved = optax.tree.norm(jax.tree.map(jnp.subtract, theta, params))
    return Laziness(gap, moved, moved / optax.tree.norm(params), loss)


class Slope(NamedTuple):
    """A power law's exponent with its interval; see `slope_with_width`."""

    slope: float
    low: float
    high: float


def slope_with_width(widths: Sequence[int], values: Any, *, confidence: float = 0.95) -> Slope:
    """The exponent p of values ∝ widthᵖ, by least squares on logarithms, with Student's interval over the repetitions.

    A slope is fitted to each repetition; they are independent, as the widths of one aren't.

    Args:
        widths: (k,).
        values: positive, (repetitions, k), at least two repetitions.
        confidence: of the interval.
    """
    check_all_positive("widths", widths)
    check_all_positive("values", values)
    check_number("confidence", confidence)
    at, values = np.asarray(widths, np.float64), np.asarray(values, np.float64)
    if at.ndim != 1 or len(set(at.tolist())) < 2:
        raise ValueError(f"widths must be a vector of two different numbers at least, got {at.tolist()}")
    if values.ndim != 2 or values.shape[1] != len(at) or len(values) < 2:
        raise ValueError(
            f"values must have the shape (repetitions, {len(at)}) with two repetitions or more, got {values.shape}"
        )
    if not 0 < confidence < 1:
        raise ValueError(f"confidence must lie in (0, 1), got {confidence}")
    slopes = np.polyfit(np.log(at), np.log(values).T, 1)[0]
    half = stats.t.ppf((1 + confidence) / 2, len(slopes) - 1) * slopes.std(ddof=1) / len(slopes) ** 0.5
    return Slope(float(slopes.mean()), float(slopes.mean() - half), float(slopes.mean() + half))


def linear_probe(
    features: Any, labels: Any, *, classes: int, penalty: float = 1e-3, steps: int = 500
) -> dict[str, jax.Array]:
    """The softmax head on frozen features, {"W": (d, classes), "b": (classes,)}: a convex problem with one answer.

    The mean cross-entropy plus ½λ‖(W, b)‖² is minimized by L-BFGS until the gradient is 0 to rounding: strictly convex,
    so that start and optimizer don't matter, only the features do. Alain and Bengio 2016 (arXiv 1610.01644).

    Args:
        features: (N, d), such as a trained network's last hidden layer.
        labels: whole numbers, (N,).
        classes: how many.
        penalty: λ, positive, or separable classes have no minimum.
        steps: at most.
    """
    check_count("classes", classes)
    check_length("steps", steps)
    check_positive("penalty", penalty)
    as_floats("labels", labels)
    features, labels = as_matrix("features", features), jnp.asarray(labels)
    if labels.shape != features.shape[:1]:
        raise ValueError(
            f"features (N, d) and labels (N,) must fit, got the shapes {features.shape} and {labels.shape}"
        )
    values = known("labels", labels)
    if not jnp.issubdtype(labels.dtype, jnp.integer) or (
        values is not None and not np.all((values >= 0) & (values < classes))
    ):
        raise ValueError(f"labels must be whole numbers from 0 to {classes - 1}, got {np.unique(labels).tolist()}")

    def loss(head: dict[str, jax.Array]) -> jax.Array:
        logits = features @ head["W"] + head["b"][None]
        fit = jnp.mean(optax.softmax_cross_entropy_with_integer_labels(logits, labels))
        return fit + penalty / 2 * optax.tree.norm(head, squared=True)

    zero = {"W": jnp.zeros((features.shape[1], classes), features.dtype), "b": jnp.zeros(classes, features.dtype)}
    small = 100 * float(jnp.finfo(features.dtype).eps)
    return minimize(loss, optax.lbfgs(), zero, steps=steps, tolerance=small, record=None).final


def _like(name: str, value: Any, shape: tuple[int, ...]) -> jax.Array:
    """Outputs of that shape, or a number."""
    if as_floats(name, value).shape not in ((), shape):
        raise ValueError(f"{name} must have the shape {shape} or be a number, got the shape {jnp.shape(value)}")
    return as_finite(name, value)


def _spectrum(K: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Eigenvalues, rising, and vectors of a kernel; where they are known, none is negative beyond rounding."""
    values, vectors = jnp.linalg.eigh(K)
    found = known("kernel", values)
    if found is not None and found[0] < -100 * len(K) * float(jnp.finfo(K.dtype).eps) * max(found[-1], -found[0]):
        raise ValueError(f"kernel must be positive semi-definite, but its least eigenvalue is {found[0]:.3g}")
    return values, vectors


def _rows(kernel_test: Any, size: int) -> jax.Array:
    """K(x*, X) as a matrix (N*k, Nk)."""
    rows = as_finite("kernel_test", kernel_test)
    if rows.ndim not in (2, 4) or int(np.prod(rows.shape[rows.ndim // 2 :])) != size:
        raise ValueError(
            f"kernel_test must have the shape (N*, N) or (N*, k, N, k), {size} columns in all, got {rows.shape}"
        )
    return rows.reshape(-1, size)


def _square(kernel: Any, y: Any) -> tuple[jax.Array, jax.Array, tuple[int, ...]]:
    """The kernel as a matrix (Nk, Nk), y, and its shape."""
    K, y = as_finite("kernel", kernel), as_finite("y", y)
    size = int(np.prod(K.shape[: K.ndim // 2]))
    if K.ndim not in (2, 4) or K.size != size**2:
        raise ValueError(f"kernel must have the shape (N, N) or (N, k, N, k), got {K.shape}")
    if y.size != size or y.shape[0] != K.shape[0]:
        raise ValueError(
            f"y must have {size} entries, one a row of the kernel, and {K.shape[0]} rows, got the shape {y.shape}"
        )
    return check_symmetric("kernel", K.reshape(size, size)), y, y.shape
