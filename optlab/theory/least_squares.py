"""Linear regression, L(w) = ‖Xw − y‖²: where it ends, how gradient descent gets there, and what noise leaves of it.

X has shape (N, d), y (N,), w (d,). L is the sum over the examples; of their mean the Hessian 2XᵀX/N and the learning
pass X/√N and y/√N for its rates. A bias is a column of ones (`with_bias`). The eigenvalues of XᵀX are λ = σ², σ
the singular values of X; those below rounding count as 0, so that everything holds where XᵀX is singular, too.

Stochastic gradients (`sgd_risk`, `noise_floor`, `interpolation`) are those of the mean of squared errors over a batch.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from optlab._checks import check_not_negative
from optlab.theory._arrays import (
    as_curved,
    as_design,
    as_matrix,
    as_numbers,
    as_vector,
    check_all_not_negative,
    check_count,
    check_length,
    check_step,
    check_whole,
)
from optlab.theory._heavy_ball import HeavyBall, ball_with_friction, frequency_response, heavy_ball
from optlab.theory._stochastic import (
    Interpolation,
    convex_rate,
    interpolation,
    noise_floor,
    sgd_risk,
    strongly_convex_rate,
)

__all__ = [
    "GradientDescent",
    "HeavyBall",
    "Interpolation",
    "ball_with_friction",
    "best_learning_rate",
    "closed_form",
    "convex_rate",
    "costs",
    "early_stopping",
    "early_stopping_filter",
    "frequency_response",
    "gradient_descent",
    "gradient_descent_path",
    "heavy_ball",
    "hessian",
    "interpolation",
    "loss",
    "newton_step",
    "noise_floor",
    "ridge",
    "ridge_filter",
    "sgd_risk",
    "stability_bound",
    "strongly_convex_rate",
    "with_bias",
]


def with_bias(X: Any) -> jax.Array:
    """X with a column of ones behind it, (N, d + 1): the last weight is then the bias."""
    X = as_matrix("X", X)
    return jnp.concatenate([X, jnp.ones((X.shape[0], 1), X.dtype)], axis=1)


def loss(X: Any, y: Any, w: Any) -> jax.Array:
    """‖Xw − y‖², a scalar.

    Args:
        X: (N, d).
        y: (N,).
        w: (d,).
    """
    X, y = as_design(X, y)
    return jnp.sum((X @ as_vector("w", w, X.shape[1]) - y) ** 2)


def hessian(X: Any) -> jax.Array:
    """2XᵀX, (d, d): positive semi-definite, and definite if and only if the columns of X are independent."""
    X = as_matrix("X", X)
    return 2 * X.T @ X


# Where it ends.


def closed_form(X: Any, y: Any) -> jax.Array:
    """(XᵀX)⁻¹Xᵀy, (d,); where XᵀX is singular, of all solutions the one of least norm, X⁺y.

    The normal equations have no unique solution there, and solving them in floating point gives infinities, NaN or
    whatever the rounding makes. The singular value decomposition leaves out the directions that X doesn't see.
    Source: Golub and Van Loan, Matrix Computations, 4th edition 2013, section 5.5.

    Args:
        X: (N, d).
        y: (N,).
    """
    X, y = as_design(X, y)
    return _filtered(X, y, lambda sigma: jnp.ones_like(sigma))


def ridge(X: Any, y: Any, penalty: Any) -> jax.Array:
    """Σ σᵢ/(σᵢ² + λ)·(uᵢᵀy)vᵢ, (d,): the minimum of ‖Xw − y‖² + λ‖w‖².

    Under `optlab.sgd(weight_decay=2λ)`, whose penalty is ½·weight_decay·‖w‖², gradient descent ends there.
    Source: Hoerl and Kennard 1970; Hastie, Tibshirani and Friedman 2009, eq. 3.47.

    Args:
        X: (N, d).
        y: (N,).
        penalty: λ, not negative; 0 is `closed_form`.
    """
    check_not_negative("penalty", penalty)
    X, y = as_design(X, y)
    return _filtered(X, y, lambda sigma: ridge_filter(sigma, penalty))


def early_stopping(X: Any, y: Any, *, learning_rate: Any, steps: Any) -> jax.Array:
    """Σ (1/σᵢ)(1 − (1 − 2ησᵢ²)ᵗ)(uᵢᵀy)vᵢ, (d,): gradient descent from 0, stopped after t steps.

    Source: see `early_stopping_filter`.

    Args:
        X: (N, d).
        y: (N,).
        learning_rate: η.
        steps: t.
    """
    check_not_negative("learning_rate", learning_rate)
    check_step("steps", steps)
    X, y = as_design(X, y)
    return _filtered(X, y, lambda sigma: early_stopping_filter(sigma, learning_rate=learning_rate, steps=steps))


def ridge_filter(sigma: Any, penalty: Any) -> jax.Array:
    """σ²/(σ² + λ): what ridge regression leaves of the least-squares solution along each singular vector.

    0 where σ is, whatever λ. Source: Hastie, Tibshirani and Friedman 2009, eq. 3.47.

    Args:
        sigma: σ, singular values, any shape.
        penalty: λ, not negative, of a shape that broadcasts with it.
    """
    check_all_not_negative("sigma", sigma)
    check_all_not_negative("penalty", penalty)
    sigma, penalty = as_numbers(sigma=sigma, penalty=penalty)
    return jnp.where(sigma == 0, 0, sigma**2 / jnp.where(sigma == 0, 1, sigma**2 + penalty))


def early_stopping_filter(sigma: Any, *, learning_rate: Any, steps: Any) -> jax.Array:
    """1 − (1 − 2ησ²)ᵗ: what t steps of gradient descent from 0 have found of it; about ridge's with λ = 1/(2ηt).

    Beyond the bound of stability, ησ² > 1, it grows without end. Source: Friedman and Popescu 2004; Ali, Kolter and
    Tibshirani 2019 (arXiv 1810.10082).

    Args:
        sigma: σ, singular values, any shape.
        learning_rate: η,
        steps: and t, whole numbers, of shapes that broadcast with it.
    """
    check_all_not_negative("sigma", sigma)
    check_all_not_negative("learning_rate", learning_rate)
    check_whole("steps", steps)
    sigma, rate, t = as_numbers(sigma=sigma, learning_rate=learning_rate, steps=steps)
    return 1 - (1 - 2 * rate * sigma**2) ** t


def newton_step(X: Any, y: Any, w: Any) -> jax.Array:
    """w − H⁺∇L(w), (d,): the solution, from anywhere and in one step.

    Where XᵀX is singular it is the solution nearest to w. Source: Nocedal and Wright 2006, section 3.3.

    Args:
        X: (N, d).
        y: (N,).
        w: where the step starts, (d,).
    """
    X, y = as_design(X, y)
    w = as_vector("w", w, X.shape[1])
    return w - closed_form(X, X @ w - y)


def costs(examples: int, features: int, batch_size: int) -> dict[str, int]:
    """The order of a step's multiply-adds, by the method's name: Newton's needs one step, the others many.

    Source: Golub and Van Loan 2013, section 5.3 (normal equations); Bottou, Curtis and Nocedal 2018
    (arXiv 1606.04838), section 4.4, for the other two.

    Args:
        examples: N.
        features: d.
        batch_size: B, at most N.

    Returns:
        "newton_hessian" Nd² (forming XᵀX), "newton_solve" d³, "gradient_descent" Nd, "sgd" Bd.
    """
    check_count("examples", examples)
    check_count("features", features)
    check_count("batch_size", batch_size)
    if batch_size > examples:
        raise ValueError(f"batch_size must be at most the {examples} examples, got {batch_size}")
    n, d = int(examples), int(features)
    return {"newton_hessian": n * d**2, "newton_solve": d**3, "gradient_descent": n * d, "sgd": int(batch_size) * d}


# How gradient descent gets there.


class GradientDescent(NamedTuple):
    """A prediction of gradient descent with one learning rate; see `gradient_descent`."""

    rate: jax.Array  # by this factor the error shrinks at every step, asymptotically; above 1 it grows
    diverges: jax.Array  # whether the learning rate is beyond the bound
    bound: jax.Array  # 1/λmax
    best: jax.Array  # 1/(λmin + λmax)
    best_rate: jax.Array  # (κ − 1)/(κ + 1)
    condition: jax.Array  # κ = λmax/λmin


def gradient_descent(X: Any, *, learning_rate: Any) -> GradientDescent:
    """Predicts gradient descent w ← w − 2ηXᵀ(Xw − y), whose error is e ← (I − 2ηXᵀX)e.

    It converges if and only if η < 1/λmax, by the factor max|1 − 2ηλ| a step. That is least at 1/(λmin + λmax), where
    it is (κ − 1)/(κ + 1). λ are the eigenvalues of XᵀX that aren't 0: along the others nothing moves.

    Source: Polyak 1987, section 1.4, for the Hessian 2XᵀX.

    Args:
        X: (N, d), not 0.
        learning_rate: η.
    """
    check_not_negative("learning_rate", learning_rate)
    values = _eigenvalues(X)
    is_seen = values > 0
    high, low = values[0], jnp.min(jnp.where(is_seen, values, jnp.inf))
    rate = jnp.max(jnp.where(is_seen, jnp.abs(1 - 2 * learning_rate * values), 0))
    condition = high / low
    best_rate = (condition - 1) / (condition + 1)
    return GradientDescent(rate, learning_rate * high >= 1, 1 / high, 1 / (low + high), best_rate, condition)


def stability_bound(X: Any) -> jax.Array:
    """1/λmax: gradient descent on ‖Xw − y‖² converges if and only if its learning rate is below.

    Source: see `gradient_descent`.

    Args:
        X: (N, d), not 0.
    """
    return 1 / _eigenvalues(X)[0]


def best_learning_rate(X: Any) -> jax.Array:
    """1/(λmin + λmax), λmin > 0: the learning rate of the fastest gradient descent on ‖Xw − y‖².

    Source: see `gradient_descent`.

    Args:
        X: (N, d), not 0.
    """
    return gradient_descent(X, learning_rate=0.0).best


def gradient_descent_path(X: Any, y: Any, w0: Any, *, learning_rate: Any, steps: int) -> jax.Array:
    """Every iterate of gradient descent, (steps + 1, d), in closed form: w_t = w⁺ + V(1 − 2ησ²)ᵗVᵀ(w₀ − w⁺).

    What of w₀ is orthogonal to the rows of X stays as it is: from 0 the path ends at the solution of least norm.

    Args:
        X: (N, d).
        y: (N,).
        w0: the start, (d,).
        learning_rate: η.
        steps: how many.
    """
    check_not_negative("learning_rate", learning_rate)
    check_length("steps", steps)
    X, y = as_design(X, y)
    w0 = as_vector("w0", w0, X.shape[1])
    _, sigma, Vt = _svd(X)
    factors = (1 - 2 * learning_rate * sigma**2)[None] ** jnp.arange(steps + 1)[:, None]
    seen = jnp.where(sigma > 0, Vt @ (w0 - closed_form(X, y)), 0)
    return w0[None] + ((factors - 1) * seen[None]) @ Vt


# The singular value decomposition that all of it is read from.


def _svd(X: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
    """U (N, r), σ (r,), Vᵀ (r, d), r = min(N, d); the singular values below rounding are 0."""
    U, sigma, Vt = jnp.linalg.svd(X, full_matrices=False)
    rounding = max(X.shape) * jnp.finfo(X.dtype).eps * jnp.max(sigma, initial=0)
    return U, jnp.where(sigma > rounding, sigma, 0), Vt


def _eigenvalues(X: Any) -> jax.Array:
    """Those of XᵀX, falling, without the zeros that d > N adds."""
    return _svd(as_curved(X))[1] ** 2


def _filtered(X: jax.Array, y: jax.Array, factors: Any) -> jax.Array:
    """Σ φ(σᵢ)/σᵢ·(uᵢᵀy)vᵢ over the singular values that aren't 0."""
    U, sigma, Vt = _svd(X)
    inverse = jnp.where(sigma > 0, factors(sigma) / jnp.where(sigma > 0, sigma, 1), 0)
    return (inverse * (U.T @ y)) @ Vt
