"""Functions to descend, with known minima; convexity checked on samples; critical points by dimension; saddles."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from optlab._checks import check_key, check_positive
from optlab.theory._arrays import (
    as_floats,
    as_matrix,
    as_numbers,
    as_vector,
    check_all_not_negative,
    check_all_positive,
    check_count,
    check_length,
    check_ordered,
    check_scalar_function,
    check_symmetric,
    known,
)

__all__ = [
    "Convexity",
    "CriticalPoints",
    "Landscape",
    "beale",
    "check_convexity",
    "critical_points",
    "escape_steps",
    "himmelblau",
    "plateau",
    "quadratic",
    "random_function",
    "ravine",
    "rosenbrock",
    "saddle",
    "several_minima",
]

Function = Callable[[jax.Array], jax.Array]


@dataclass(frozen=True)
class Landscape:
    """A function x (d,) -> scalar. It is called like one: `optlab.minimize(rosenbrock(), tx, rosenbrock().start, …)`.

    Attributes:
        f: the function.
        minima: its global minima, (k, d) as nested tuples; () where it has none.
        value: f there.
        start: where it is usual to begin.
        low: the corner of the box that is worth a picture,
        high: and the opposite one.
    """

    f: Function
    minima: tuple[tuple[float, ...], ...]
    value: float
    start: tuple[float, ...]
    low: tuple[float, ...]
    high: tuple[float, ...]

    def __call__(self, x: Any) -> jax.Array:
        x = as_floats("x", x)
        if x.shape != (len(self.start),):
            raise ValueError(f"x must have the shape ({len(self.start)},), got {x.shape}: jax.vmap has many points")
        return self.f(x)


def quadratic(A: Any, minimum: Any | None = None) -> Landscape:
    """½(x − x*)ᵀA(x − x*), the second-order picture of every minimum.

    Args:
        A: its Hessian, (d, d), symmetric and positive definite.
        minimum: x*, (d,); None is 0.

    Raises:
        ValueError: if A isn't symmetric or has an eigenvalue that isn't positive.
    """
    values = known("A", A)
    A = check_symmetric("A", A)
    at = np.zeros(len(A)) if minimum is None else minimum
    if values is not None and (least := float(np.linalg.eigvalsh(values.astype(np.float64))[0])) <= 0:
        raise ValueError(f"A must be positive definite, but its least eigenvalue is {least:.3g}: there is no minimum")
    center = as_vector("minimum", at, len(A)).astype(A.dtype)
    place = known("minimum", at)
    around = lambda offset: tuple(center + offset if place is None else (place + offset).tolist())
    f = lambda x: 0.5 * (x - center) @ A @ (x - center)
    return Landscape(f, (around(0.0),), 0.0, around(1.0), around(-1.5), around(1.5))


def ravine(condition: float = 25.0) -> Landscape:
    """½(x₁² + κx₂²): gradient descent zigzags across and creeps along; κ is the condition number.

    Args:
        condition: κ, positive.
    """
    check_positive("condition", condition)
    f = lambda x: 0.5 * (x[0] ** 2 + condition * x[1] ** 2)
    return Landscape(f, ((0.0, 0.0),), 0.0, (-2.0, 0.5), (-2.5, -1.0), (1.0, 1.0))


def saddle() -> Landscape:
    """½(x₁² − x₂²) + ¼x₂⁴: a saddle at 0 between the minima (0, ±1), where f = −¼.

    Gradient descent from x₂ = 0 ends on the saddle; any noise drives it off (see `escape_steps`).
    """
    f = lambda x: 0.5 * (x[0] ** 2 - x[1] ** 2) + 0.25 * x[1] ** 4
    return Landscape(f, ((0.0, 1.0), (0.0, -1.0)), -0.25, (1.0, 0.0), (-1.5, -1.5), (1.5, 1.5))


def several_minima() -> Landscape:
    """x⁴ − 2x² + 0.3x in one dimension, x (1,): a global minimum near −1.036 and a local one near 0.960."""
    f = lambda x: x[0] ** 4 - 2 * x[0] ** 2 + 0.3 * x[0]
    at = -1.0355787140888537
    return Landscape(f, ((at,),), at**4 - 2 * at**2 + 0.3 * at, (1.8,), (-1.8,), (1.8,))


def plateau() -> Landscape:
    """1 − e^(−‖x‖²/2): flat far from its minimum at 0, where gradients say nothing."""
    f = lambda x: 1 - jnp.exp(-jnp.sum(x**2) / 2)
    return Landscape(f, ((0.0, 0.0),), 0.0, (3.5, 2.5), (-4.0, -4.0), (4.0, 4.0))


def rosenbrock() -> Landscape:
    """(1 − x₁)² + 100(x₂ − x₁²)²: a bent ravine with its minimum at (1, 1). Rosenbrock 1960."""
    f = lambda x: (1 - x[0]) ** 2 + 100 * (x[1] - x[0] ** 2) ** 2
    return Landscape(f, ((1.0, 1.0),), 0.0, (-1.2, 1.0), (-2.0, -1.0), (2.0, 3.0))


def beale() -> Landscape:
    """Σ (cᵢ − x₁(1 − x₂ⁱ))², c = (1.5, 2.25, 2.625): plateaus, a saddle, its minimum at (3, ½). Beale 1958."""
    f = lambda x: sum((c - x[0] * (1 - x[1] ** i)) ** 2 for i, c in ((1, 1.5), (2, 2.25), (3, 2.625)))
    return Landscape(f, ((3.0, 0.5),), 0.0, (1.0, 1.0), (-4.5, -4.5), (4.5, 4.5))


def himmelblau() -> Landscape:
    """(x₁² + x₂ − 11)² + (x₁ + x₂² − 7)²: four minima, all of them global. Himmelblau 1972."""
    f = lambda x: (x[0] ** 2 + x[1] - 11) ** 2 + (x[0] + x[1] ** 2 - 7) ** 2
    minima = (
        (3.0, 2.0),
        (-2.805118086952745, 3.131312518250573),
        (-3.779310253377747, -3.283185991286169),
        (3.584428340330492, -1.848126526964404),
    )
    return Landscape(f, minima, 0.0, (0.0, 0.0), (-5.0, -5.0), (5.0, 5.0))


# Convexity.


class Convexity(NamedTuple):
    """Evidence from samples on a function's convexity; see `check_convexity`."""

    holds: jax.Array  # whether no sample breaks the inequality; a proof of nothing
    strict: jax.Array  # whether it was strict at every sample with x ≠ y
    gap: jax.Array  # the largest f(tx + (1 − t)y) − tf(x) − (1 − t)f(y); positive is a counterexample
    x: jax.Array  # the sample with that gap
    y: jax.Array
    t: jax.Array


def check_convexity(f: Function, low: Any, high: Any, *, key: jax.Array, samples: int = 10_000) -> Convexity:
    """Checks f(tx + (1 − t)y) ≤ tf(x) + (1 − t)f(y) at random x and y in a box and t in (0, 1).

    A counterexample proves that f isn't convex, and is given; that there is none among the samples proves nothing.
    A gap within the rounding of the three values counts as equality. It is bounded by 4ε(|f| + Σ|∂ᵢf||xᵢ|) at each, of
    tx + (1 − t)y with t|x| + (1 − t)|y| for |x|: what f and its argument lose. An f that hides more, as x + 10⁶ − 10⁶
    does, needs float64. Samples that lie so close together that rounding hides their gap make `strict` false.

    Args:
        f: x (d,) -> scalar, differentiable by JAX.
        low: the lowest corner of the box, (d,).
        high: the highest one.
        key: a JAX random key.
        samples: how many.

    Raises:
        ValueError: also where f isn't finite at a sample.
    """
    check_count("samples", samples)
    check_key(key)
    low = as_vector("low", low)
    high = as_vector("high", high, len(low))
    check_ordered(low=low, high=high)
    check_scalar_function(f, low)
    of_x, of_y, of_t = jax.random.split(key, 3)
    shape = (samples, len(low))
    x, y = (low[None] + (high - low)[None] * jax.random.uniform(k, shape, low.dtype) for k in (of_x, of_y))
    t = jax.random.uniform(of_t, (samples,), low.dtype, 0.05, 0.95)

    def rounded(at: jax.Array, size: jax.Array) -> tuple[jax.Array, jax.Array]:
        value, slope = jax.value_and_grad(f)(at)
        slope = jnp.where(jnp.isfinite(slope), jnp.abs(slope), 0)  # NaN of an untaken branch, inf at a kink
        return value, 4 * jnp.finfo(low.dtype).eps * (jnp.abs(value) + slope @ size)

    def inequality(x: jax.Array, y: jax.Array, t: jax.Array) -> tuple[jax.Array, jax.Array]:
        weights = jnp.stack([jnp.ones_like(t), t, 1 - t])
        points = jnp.stack([t * x + (1 - t) * y, x, y])
        sizes = jnp.stack([t * jnp.abs(x) + (1 - t) * jnp.abs(y), jnp.abs(x), jnp.abs(y)])
        values, rounding = jax.vmap(rounded)(points, sizes)
        middle, *ends = weights * values
        return middle - ends[0] - ends[1], weights @ rounding

    gaps, rounding = jax.jit(jax.vmap(inequality))(x, y, t)
    if (values := known("f", gaps)) is not None and not np.isfinite(values).all():
        raise ValueError(
            f"f must be finite between low and high, but isn't between {x[~np.isfinite(values)][0].tolist()} and "
            f"{y[~np.isfinite(values)][0].tolist()}"
        )
    worst = jnp.argmax(gaps - rounding)
    is_strict = jnp.all(gaps < -rounding)
    return Convexity(jnp.all(gaps <= rounding), is_strict, gaps[worst], x[worst], y[worst], t[worst])


# Saddles and critical points.


def escape_steps(curvature: Any, *, learning_rate: Any, noise: Any, distance: Any) -> jax.Array:
    """Steps that noisy gradient descent takes to get that far off a saddle, in root mean square.

    Along a direction of curvature −h the iterate is x ← (1 + ηh)x + ηξ, E[ξ²] = σ²: started on the saddle
    E[x²] = η²σ²((1 + ηh)^(2t) − 1)/((1 + ηh)² − 1). Without noise it never leaves, and the answer is inf. Only
    log(distance/σ) counts. Source: the recursion; Daneshmand et al. 2018 (arXiv 1803.05999) on SGD's own noise.

    Args:
        curvature: h > 0, minus the Hessian's negative eigenvalue.
        learning_rate: η, positive.
        noise: σ, the gradient noise's standard deviation along that direction.
        distance: how far, beyond which the quadratic doesn't hold any more.
    """
    check_all_positive("curvature", curvature)
    check_all_positive("learning_rate", learning_rate)
    check_all_not_negative("noise", noise)
    check_all_positive("distance", distance)
    h, rate, sigma, far = as_numbers(curvature=curvature, learning_rate=learning_rate, noise=noise, distance=distance)
    growth = jnp.log1p(rate * h)
    return jnp.log1p((far / (rate * sigma)) ** 2 * jnp.expm1(2 * growth)) / (2 * growth)


def random_function(key: jax.Array, dimension: int, *, waves: int = 200) -> Function:
    """A smooth random function x (d,) -> scalar: √(2/m)Σcos(kᵢᵀx + φᵢ), kᵢ normal, φᵢ uniform.

    For many waves a Gaussian process with covariance e^(−‖x − y‖²/2) (Rahimi and Recht 2007).

    Args:
        key: a JAX random key.
        dimension: d.
        waves: m.
    """
    check_key(key)
    check_count("dimension", dimension)
    check_count("waves", waves)
    for_waves, for_phases = jax.random.split(key)
    k = jax.random.normal(for_waves, (waves, dimension), float)
    phases = jax.random.uniform(for_phases, (waves,), float, 0, 2 * jnp.pi)
    return lambda x: jnp.sqrt(2 / waves) * jnp.sum(jnp.cos(k @ as_vector("x", x, dimension) + phases))


class CriticalPoints(NamedTuple):
    """Points at which Newton's method ended; see `critical_points`."""

    x: jax.Array  # (starts, d)
    gradient_norms: jax.Array  # (starts,)
    # (starts,), how many eigenvalues of the Hessian are negative: 0 at a minimum, d at a maximum
    index: jax.Array  # type: ignore[assignment]  # a tuple has a method of that name
    found: jax.Array  # (starts,), whether it is a critical point: the gradient is 0 to rounding


def critical_points(f: Function, starts: Any, *, steps: int = 50) -> CriticalPoints:
    """Critical points of f from many starts by Newton's method on ∇f = 0, which minima attract no more than saddles.

    Steps longer than ½ are shortened, so that a point close to the start is found. In a random function of d
    dimensions a Hessian is about a random symmetric matrix, all of whose eigenvalues are positive with a probability
    that falls exponentially: saddles outnumber minima (Bray and Dean 2007; Dauphin et al. 2014, arXiv 1406.2572).

    Args:
        f: x (d,) -> scalar.
        starts: (starts, d).
        steps: of Newton's method.
    """
    check_length("steps", steps)
    starts = as_matrix("starts", starts)
    check_scalar_function(f, starts[0])
    gradient, hessian = jax.grad(f), jax.hessian(f)

    def step(_: Any, x: jax.Array) -> jax.Array:
        move = jnp.linalg.solve(hessian(x), gradient(x))
        return x - move * jnp.minimum(1, 0.5 / jnp.maximum(jnp.linalg.norm(move), 1e-30))

    def one(x: jax.Array) -> CriticalPoints:
        x = lax.fori_loop(0, steps, step, x)
        values, norm = jnp.linalg.eigvalsh(hessian(x)), jnp.linalg.norm(gradient(x))
        is_found = jnp.all(jnp.isfinite(x)) & (norm <= 1e4 * jnp.finfo(x.dtype).eps * jnp.max(jnp.abs(values)))
        return CriticalPoints(x, norm, jnp.sum(values < 0), is_found)

    return jax.jit(jax.vmap(one))(starts)
