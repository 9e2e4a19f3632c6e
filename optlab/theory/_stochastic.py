"""SGD on least squares: its expected risk to the last digit, its floor, interpolation, the rates of the theorems."""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from optlab._checks import check_decay, check_not_negative, check_positive
from optlab.theory._arrays import (
    as_curved,
    as_design,
    as_numbers,
    as_rates,
    as_vector,
    check_all_not_negative,
    check_all_positive,
    check_count,
    check_length,
    check_whole,
)


def sgd_risk(
    X: Any,
    y: Any,
    w0: Any,
    *,
    learning_rate: Any,
    steps: int,
    batch_size: int = 1,
    momentum: Any = 0.0,
    average_from: int | None = None,
) -> jax.Array:
    """E[‖Xw_t − y‖²/N] of SGD, t = 0 … steps, exactly: no bound, no approximation, no sampling.

    Each step draws B examples with replacement and takes the gradient of the mean of their squared errors,
    g = (2/B)Σx_b(x_bᵀw − y_b), v ← βv + g, w ← w − ηv. Mean and second moment of (w − ŵ, v), ŵ the least-squares
    solution, follow a linear recursion: with r = y − Xŵ and H = XᵀX/N
    E[ggᵀ] = (4/B)·(1/N)Σxᵢxᵢᵀ E[(xᵢᵀz − rᵢ)²] + (1 − 1/B)·4H E[zzᵀ] H.

    Source: Bach and Moulines 2013 (arXiv 1306.2119); Défossez and Bach 2015 (arXiv 1412.0156) with averages.

    Args:
        X: (N, d).
        y: (N,).
        w0: the start, (d,).
        learning_rate: η, a number, a schedule or an array (steps,): decaying it is the first cure of the noise.
        steps: T.
        batch_size: B, the second cure.
        momentum: β of the heavy ball. At an equal η/(1 − β) it lowers the floor only by what is of second order in η:
            see `noise_floor`.
        average_from: the iterates from this one on are averaged, as under `optlab.schedules.tail_average`, and the
            risk is the average's: the fourth cure.

    Returns:
        (steps + 1,); beyond the bound of stability it grows without end.
    """
    X, y = as_design(X, y)
    if average_from is not None:
        check_length("average_from", average_from)
    z0 = as_vector("w0", w0, X.shape[1]) - jnp.linalg.pinv(X) @ y
    check_count("batch_size", batch_size)
    check_decay("momentum", momentum)
    return _risk(X, y, z0, as_rates(learning_rate, steps), momentum, batch_size, average_from)


@functools.partial(jax.jit, static_argnames=("batch_size", "average_from"))
def _risk(
    X: jax.Array,
    y: jax.Array,
    z0: jax.Array,
    rates: jax.Array,
    momentum: Any,
    batch_size: int,
    average_from: int | None,
) -> jax.Array:
    d = X.shape[1]
    advance = _advance(X, y, batch_size, momentum)
    start = jnp.concatenate([z0, jnp.zeros(d, z0.dtype), z0])
    first = (start, jnp.outer(start, start))

    def body(moments: Any, item: Any) -> Any:
        rate, t = item
        n = 0 if average_from is None else jnp.maximum(t + 1 - average_from, 0)
        moments = advance(moments, rate, n / (n + 1))
        return moments, moments[1]

    _, seconds = lax.scan(body, first, (rates, jnp.arange(len(rates))))
    seconds = jnp.concatenate([first[1][None], seconds])[:, 2 * d :, 2 * d :]
    residual = jnp.mean((y - X @ (jnp.linalg.pinv(X) @ y)) ** 2)
    return residual + jnp.einsum("tij,ij->t", seconds, X.T @ X / len(X))


def noise_floor(X: Any, y: Any, *, learning_rate: Any, batch_size: int = 1, momentum: Any = 0.0) -> jax.Array:
    """lim E[‖Xw_t − Xŵ‖²/N]: how far above the least risk SGD with a constant step stays.

    To first order it is η·tr(C)/(4B(1 − β)), tr(C) the trace of the covariance of one example's gradient at ŵ: ∝ η and
    1/B. Its cures are a decaying η, a larger B and an average of iterates (all in `sgd_risk`). Momentum is a weak one:
    in one dimension, with curvature h and gradient noise s², the average form m ← βm + (1 − β)g with rate η has the
    floor ηs²/(2(2 − ηh(1 − β)/(1 + β))), which falls from ηs²/(2(2 − ηh)) at β = 0 to ηs²/4: by nothing where ηh is
    small. The heavy ball's at the same η is about 1/(1 − β) times as high as SGD's.

    The moments' fixed point is found by a linear solve of size (2r)², r the rank of X, min(N, d) under jit: r is to be
    small (up to about 30).

    Args:
        X: (N, d).
        y: (N,).
        learning_rate: η, positive.
        batch_size: B.
        momentum: β of the heavy ball.

    Returns:
        a scalar; inf where the second moment diverges.
    """
    X, y = as_design(X, y)
    check_count("batch_size", batch_size)
    check_positive("learning_rate", learning_rate)
    check_decay("momentum", momentum)
    # What X doesn't see never moves, and has no fixed point.
    return _floor(*_in_row_space(X), y, learning_rate, momentum, batch_size)


@functools.partial(jax.jit, static_argnames="batch_size")
def _floor(
    X: jax.Array, is_seen: jax.Array, y: jax.Array, learning_rate: Any, momentum: Any, batch_size: int
) -> jax.Array:
    d = X.shape[1]
    pairs = jnp.outer(jnp.tile(is_seen, 2), jnp.tile(is_seen, 2))
    advance = _advance(X, y, batch_size, momentum)
    zero = jnp.zeros(3 * d, X.dtype)

    def second(S: jax.Array) -> jax.Array:
        """The next second moment of (z, v) where the mean is 0, as in the limit it is."""
        padded = jnp.pad(pairs * S.reshape(2 * d, 2 * d), ((0, d), (0, d)))
        return (pairs * advance((zero, padded), learning_rate, 0.0)[1][: 2 * d, : 2 * d]).ravel()

    source = second(jnp.zeros(4 * d * d, X.dtype))
    operator = jax.vmap(lambda S: second(S) - source, out_axes=1)(jnp.eye(4 * d * d, dtype=X.dtype))
    S = jnp.linalg.solve(jnp.eye(4 * d * d, dtype=X.dtype) - operator, source).reshape(2 * d, 2 * d)
    is_stable = _radius(operator) < 1
    return jnp.where(is_stable, jnp.sum(S[:d, :d] * (X.T @ X)) / len(X), jnp.inf)


class Interpolation(NamedTuple):
    """A prediction of SGD where a solution fits every example; see `interpolation`."""

    rho: jax.Array  # E[V] shrinks by this factor a step, in the long run: exact
    guarantee: jax.Array  # and by at least this one: E[V_t] ≤ κ·guaranteeᵗ·V₀, κ = σ²max/σ²min
    bound: jax.Array  # 2/(σ²max + ‖x‖²max)
    diverges: jax.Array  # whether rho is at least 1


def interpolation(X: Any, *, learning_rate: Any, batch_size: int = 1) -> Interpolation:
    """Predicts V = ‖Xz‖², z = w − w*, where Xw* = y (d > N, or no noise): it shrinks to 0 with a constant step.

    A step draws B examples with replacement: z ← z − (2η/B)Σx_b(x_bᵀz). With B = 1 the expectation of ‖z‖² falls by
    (4η/N)(1 − η‖x‖²max)‖Xz‖² or more, and V ≤ σ²max‖z‖² therefore exponentially, for every η < 1/‖x‖²max. Since
    σmax ≥ ‖x‖max, every η below 2/(σ²max + ‖x‖²max) is among those.

    E[V] itself needn't fall at every step below that bound, as some courses argue: where examples are nearly parallel
    it first rises. A step changes it by −(4η/N)uᵀGu + (4η²/N)Σuᵢ²(G²)ᵢᵢ with u = Xz, G = XXᵀ, and the last term
    doesn't vanish where uᵀGu does. ‖z‖² is what falls.

    rho is the radius of the second moment's map, a matrix of r² rows and columns, r the rank of X, min(N, d) under jit:
    8r⁴ bytes in float64, and 31 products at 2r⁶ operations each. r is to be small (up to about 40: 20 MB, 0.25 TFLOP).

    Source: Strohmer and Vershynin 2009 for B = 1; Ma, Bassily and Belkin 2018 (arXiv 1712.06559) for B.

    Args:
        X: (N, d), not 0.
        learning_rate: η.
        batch_size: B.
    """
    X = as_curved(X)
    check_count("batch_size", batch_size)
    check_not_negative("learning_rate", learning_rate)
    return _interpolation(*_in_row_space(X), learning_rate, batch_size)


@functools.partial(jax.jit, static_argnames="batch_size")
def _interpolation(X: jax.Array, is_seen: jax.Array, learning_rate: Any, batch_size: int) -> Interpolation:
    n, d = X.shape
    sigma = jnp.linalg.norm(X, axis=0)  # the columns are orthogonal
    high, low, longest = sigma[0] ** 2, jnp.min(jnp.where(is_seen, sigma, jnp.inf)) ** 2, jnp.max(jnp.sum(X**2, axis=1))
    pairs = jnp.outer(is_seen, is_seen)
    advance = _advance(X, jnp.zeros(n, X.dtype), batch_size, 0.0)

    def second(S: jax.Array) -> jax.Array:
        padded = jnp.pad(pairs * S.reshape(d, d), ((0, 2 * d), (0, 2 * d)))
        return (pairs * advance((jnp.zeros(3 * d, X.dtype), padded), learning_rate, 0.0)[1][:d, :d]).ravel()

    rho = _radius(jax.vmap(second, out_axes=1)(jnp.eye(d * d, dtype=X.dtype)))
    # E[(mean of x xᵀ)²] is at most (‖x‖²max/B + (1 − 1/B)σ²max/N)·XᵀX/N.
    square = longest / batch_size + (1 - 1 / batch_size) * high / n
    fall = 4 * learning_rate / n * (1 - learning_rate * square)
    guarantee = 1 - fall * jnp.where(fall > 0, low, high)
    return Interpolation(rho, guarantee, 2 / (high + longest), rho >= 1)


def convex_rate(distance: Any, gradient_bound: Any, steps: Any) -> jax.Array:
    """3DG/(2√T): E[f(x̄_T)] − f* is at most that, for convex f and η_t = D/(G√t).

    x̄_T is the mean of the T iterates x₁ … x_T from which gradients were taken. `optlab.schedules.inverse_sqrt(D/G)` is
    that η. Source: Zinkevich 2003; Hazan 2016 (arXiv 1909.05207), Theorem 3.1, divided by T.

    Args:
        distance: D, which no iterate's distance from the minimum exceeds.
        gradient_bound: G, E‖g‖² ≤ G².
        steps: T, from 1.
    """
    check_all_not_negative("distance", distance)
    check_all_not_negative("gradient_bound", gradient_bound)
    check_whole("steps", steps, least=1)
    D, G, T = as_numbers(distance=distance, gradient_bound=gradient_bound, steps=steps)
    return 1.5 * D * G / jnp.sqrt(T)


def strongly_convex_rate(noise: Any, convexity: Any, steps: Any) -> jax.Array:
    """σ²/(2μT): E[f(x_T)] − f* after T steps of η_t = 1/(μt) on f = ½μ‖x − x*‖², exactly, from any start.

    `optlab.schedules.inverse(1/μ)` is that η: the iterate is then x* minus the mean of the noises over μ. On a
    quadratic with curvatures h ≥ μ it bounds what the noise leaves for large T: a direction's part is
    (h/μ)/(2h/μ − 1) ≤ 1 times its share of σ². What is left of the start falls like T^(−2h/μ), after growing where
    h > 2μ.

    Source: Nemirovski et al. 2009, eq. 2.9 and 2.10, whose bound is by E‖g‖².

    Args:
        noise: σ, E‖g − ∇f‖² = σ².
        convexity: μ, positive.
        steps: T, from 1.
    """
    check_all_not_negative("noise", noise)
    check_all_positive("convexity", convexity)
    check_whole("steps", steps, least=1)
    sigma, mu, T = as_numbers(noise=noise, convexity=convexity, steps=steps)
    return sigma**2 / (2 * mu * T)


# The recursion.


def _advance(X: jax.Array, y: jax.Array, batch_size: int, momentum: Any) -> Any:
    """(moments, η, d) -> moments: mean (3d,) and second moment (3d, 3d) of z = w − ŵ, v and the average a of z.

    v ← βv + g, z ← z − ηv, a ← d·a + (1 − d)z, and g is linear in z.
    """
    n, size = X.shape
    r = y - X @ (jnp.linalg.pinv(X) @ y)
    H, eye, none = X.T @ X / n, jnp.eye(size, dtype=X.dtype), jnp.zeros((size, size), X.dtype)

    def advance(moments: tuple[jax.Array, jax.Array], rate: Any, keep: Any) -> tuple[jax.Array, jax.Array]:
        mean, S = moments
        S = (S + S.T) / 2  # a second moment has no other part, and that of the rounding would grow
        z, v = (eye, none, none), (none, momentum * eye, none)
        moved = tuple(a - rate * b for a, b in zip(z, v, strict=True))  # of the old (z, v, a), without g's part
        averaged = tuple((1 - keep) * a + keep * b for a, b in zip(moved, (none, none, eye), strict=True))
        F = jnp.block([list(moved), list(v), list(averaged)])
        K = jnp.concatenate([-rate * eye, eye, -(1 - keep) * rate * eye])
        M, m = S[:size, :size], mean[:size]
        errors = jnp.einsum("ni,ij,nj->n", X, M, X) - 2 * r * (X @ m) + r**2
        gg = 4 / batch_size * (X.T * errors[None]) @ X / n + (1 - 1 / batch_size) * 4 * H @ M @ H
        cross = F @ S[:, :size] @ (2 * H) @ K.T
        return (
            F + K @ jnp.concatenate([2 * H, none, none], axis=1)
        ) @ mean, F @ S @ F.T + cross + cross.T + K @ gg @ K.T

    return advance


def _in_row_space(X: jax.Array) -> tuple[jax.Array, jax.Array]:
    """X in an orthonormal basis, (N, r), and which of its directions X sees, (r,): the other columns are 0.

    Where the values are known r is the rank. A traced X keeps min(N, d) directions, some of them unseen.
    """
    _, sigma, Vt = jnp.linalg.svd(X, full_matrices=False)
    is_seen = sigma > max(X.shape) * jnp.finfo(X.dtype).eps * jnp.max(sigma, initial=0)
    if not isinstance(sigma, jax.core.Tracer):
        Vt, is_seen = Vt[is_seen], is_seen[is_seen]
    return (X @ Vt.T) * is_seen[None], is_seen


def _radius(operator: jax.Array) -> jax.Array:
    """The largest |eigenvalue|, as the limit of ‖Aᵏ‖^(1/k), k = 2³⁰."""
    tiny = jnp.finfo(operator.dtype).tiny

    def squared(_: Any, carry: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
        power, log = carry
        size = jnp.maximum(jnp.linalg.norm(power), tiny)
        power = power / size
        return power @ power, 2 * (log + jnp.log(size))

    power, log = lax.fori_loop(0, 30, squared, (operator, jnp.zeros((), operator.dtype)))
    return jnp.exp((log + jnp.log(jnp.maximum(jnp.linalg.norm(power), tiny))) / 2**30)
