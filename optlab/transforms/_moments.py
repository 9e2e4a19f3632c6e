"""Updates divided by the size that gradients have had: Adam, RMSProp, AdaGrad.

Second moments are kept in at least float32 whatever the parameters' dtype, unless `nu_dtype` says otherwise: in
bfloat16 an average with β₂ = 0.999 never moves, because a change of a thousandth is less than half of the last bit.
"""

from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import optax

from optlab._checks import check_choice, check_decay, check_not_negative
from optlab.transforms._numerics import (
    abs_square,
    cast_like,
    check_holds,
    check_state_dtypes,
    check_wide,
    roots,
    squares_like,
    wide_dtype,
    widen,
)


def scale_by_adam(
    b1: float = 0.9,
    b2: float = 0.999,
    eps: float = 1e-8,
    eps_root: float = 0.0,
    mu_dtype: Any | None = None,
    *,
    nesterov: bool = False,
    bias_correction: bool = True,
    start: Literal["zero", "first_gradient"] = "zero",
    nu_dtype: Any | None = None,
) -> optax.GradientTransformation:
    """m̂ / (√(v̂ + ε_root) + ε) with m ← β₁m + (1 − β₁)g and v ← β₂v + (1 − β₂)g².

    Bias correction divides by the sum of the weights so far: m̂ = m / (1 − β₁ᵗ), v̂ = v / (1 − β₂ᵗ), so that equal
    gradients give m̂ = g. Arguments, state and numbers are those of `optax.scale_by_adam`, but that v is kept in at
    least float32. The last three arguments are ours.

    Source: Kingma and Ba 2015 (arXiv 1412.6980), Algorithm 1.

    Args:
        b1: decay of the average of gradients (β₁), in [0, 1).
        b2: decay of the average of squared gradients (β₂), in [0, 1).
        eps: added to the root (ε), so that zero gradients give zero updates.
        eps_root: added inside the root (ε_root), for whoever differentiates through the update.
        mu_dtype: the dtype that m is stored in; None takes the parameters'.
        nesterov: whether m looks one step ahead (Dozat 2016).
        bias_correction: whether m̂ and v̂ are used; False uses m and v as they are.
        start: m and v before the first step: "zero", or the "first_gradient" and its square, which needs
            bias_correction=False.
        nu_dtype: the dtype that v is stored in; None is at least float32.
    """
    check_wide(b1=b1, b2=b2, eps=eps, eps_root=eps_root)
    check_state_dtypes(mu_dtype=mu_dtype, nu_dtype=nu_dtype)
    check_decay("b1", b1)
    check_decay("b2", b2)
    check_not_negative("eps", eps)
    check_not_negative("eps_root", eps_root)
    check_choice("start", start, ("zero", "first_gradient"))
    if start == "first_gradient" and bias_correction:
        raise ValueError(
            "start='first_gradient' leaves no bias to correct (m₁ = g₁): pass bias_correction=False with it"
        )

    def init_fn(params: optax.Params) -> optax.ScaleByAdamState:
        check_holds(params, "mu_dtype", mu_dtype)
        mu = optax.tree.zeros_like(params, dtype=mu_dtype)
        return optax.ScaleByAdamState(jnp.zeros([], jnp.int32), mu, squares_like(params, 0, nu_dtype))

    def update_fn(
        updates: optax.Updates, state: optax.ScaleByAdamState, params: optax.Params | None = None
    ) -> tuple[optax.Updates, optax.ScaleByAdamState]:
        del params
        t = optax.safe_increment(state.count)
        g, m, v = widen(updates), widen(state.mu), widen(state.nu)
        if start == "first_gradient":
            m, v = optax.tree.where(state.count == 0, (g, jax.tree.map(abs_square, g)), (m, v))
        m = optax.tree.update_moment(g, m, b1, 1)
        v = optax.tree.update_moment_per_elem_norm(g, v, b2, 2)
        correct = optax.tree.bias_correction if bias_correction else lambda moment, decay, count: moment
        v_hat = correct(v, b2, t)
        if nesterov:
            m_hat = optax.tree.update_moment(correct(g, b1, t), correct(m, b1, optax.safe_increment(t)), b1, 1)
        else:
            m_hat = correct(m, b1, t)
        root = roots(jax.tree.map(lambda v: v + eps_root, v_hat))
        direction = jax.tree.map(lambda m, r: m / (r + eps), m_hat, root)
        new_state = optax.ScaleByAdamState(t, cast_like(m, state.mu), cast_like(v, state.nu))
        return cast_like(direction, updates), new_state

    return optax.GradientTransformation(init_fn, update_fn)


class ScaleByRmsState(NamedTuple):
    """count: updates made so far, shape (), int32. nu: v. mu: m where v is centred, else None."""

    count: jax.Array  # type: ignore[assignment]  # a tuple has a method of that name
    nu: optax.Updates
    mu: optax.Updates | None


def scale_by_rms(
    decay: float = 0.9,
    eps: float = 1e-8,
    initial_scale: float = 0.0,
    eps_in_sqrt: bool = True,
    bias_correction: bool = False,
    *,
    centered: bool = False,
    nu_dtype: Any | None = None,
) -> optax.GradientTransformation:
    """g / √(v + ε), or g / (√v + ε), with v ← ρv + (1 − ρ)g².

    Arguments and numbers are those of `optax.scale_by_rms`, and with `centered` those of `optax.scale_by_stddev`:
    v − m² in v's place, m ← ρm + (1 − ρ)g. (Where rounding makes v − m² negative optax gives NaN; here it is 0.)

    Source: Tieleman and Hinton 2012, lecture 6.5; centred: Graves 2013 (arXiv 1308.0850).

    Args:
        decay: decay of the average of squared gradients (ρ), in [0, 1).
        eps: added to the denominator (ε).
        initial_scale: v before the first step.
        eps_in_sqrt: whether ε stands inside the root, as here by default; the lecture and torch add it outside.
        bias_correction: whether v is divided by the sum of its weights, 1 − ρᵗ.
        centered: whether the variance of the gradients takes the place of their mean square.
        nu_dtype: the dtype that v is stored in; None is at least float32.
    """
    check_wide(decay=decay, eps=eps, initial_scale=initial_scale)
    check_state_dtypes(nu_dtype=nu_dtype)
    check_decay("decay", decay)
    check_not_negative("eps", eps)
    check_not_negative("initial_scale", initial_scale)

    def init_fn(params: optax.Params) -> ScaleByRmsState:
        mu = jax.tree.map(lambda x: jnp.zeros_like(x, wide_dtype(x)), params) if centered else None
        return ScaleByRmsState(jnp.zeros([], jnp.int32), squares_like(params, initial_scale, nu_dtype), mu)

    def update_fn(
        updates: optax.Updates, state: ScaleByRmsState, params: optax.Params | None = None
    ) -> tuple[optax.Updates, ScaleByRmsState]:
        del params
        t = optax.safe_increment(state.count)
        g, m = widen(updates), None
        correct = optax.tree.bias_correction if bias_correction else lambda moment, decay, count: moment
        v = optax.tree.update_moment_per_elem_norm(g, widen(state.nu), decay, 2)
        spread = correct(v, decay, t)
        if centered:
            m = cast_like(optax.tree.update_moment(g, state.mu, decay, 1), state.mu)
            spread = jax.tree.map(lambda v, m: jnp.maximum(v - abs_square(m), 0), spread, correct(m, decay, t))
        update = jax.tree.map(lambda g, r: g / r, g, _divisors(spread, eps, eps_in_sqrt))
        return cast_like(update, updates), ScaleByRmsState(t, cast_like(v, state.nu), m)

    return optax.GradientTransformation(init_fn, update_fn)


def scale_by_adagrad(
    initial_accumulator_value: float = 0.1, eps: float = 1e-7, *, eps_in_sqrt: bool = True
) -> optax.GradientTransformation:
    """g / √(s + ε), or g / (√s + ε), with s ← s + g².

    By default the numbers are those of `optax.scale_by_rss`. The paper's need initial_accumulator_value=0 and
    eps_in_sqrt=False. Where s = 0 the update is 0.

    Source: Duchi, Hazan and Singer 2011, Figure 1.

    Args:
        initial_accumulator_value: s before the first step; 0.1 keeps the first steps small, the paper starts at 0.
        eps: added to the denominator (ε).
        eps_in_sqrt: whether ε stands inside the root, as here by default; the paper and torch add it outside.
    """
    check_wide(initial_accumulator_value=initial_accumulator_value, eps=eps)
    check_not_negative("initial_accumulator_value", initial_accumulator_value)
    check_not_negative("eps", eps)

    def init_fn(params: optax.Params) -> optax.ScaleByRssState:
        return optax.ScaleByRssState(squares_like(params, initial_accumulator_value))

    def update_fn(
        updates: optax.Updates, state: optax.ScaleByRssState, params: optax.Params | None = None
    ) -> tuple[optax.Updates, optax.ScaleByRssState]:
        del params
        g = widen(updates)
        s = jax.tree.map(lambda g, s: s + abs_square(g), g, state.sum_of_squares)
        seen = jax.tree.map(lambda s: s > 0, s)
        divisors = _divisors(jax.tree.map(lambda s, some: jnp.where(some, s, 1), s, seen), eps, eps_in_sqrt)
        update = jax.tree.map(lambda g, r, some: jnp.where(some, g / r, 0), g, divisors, seen)
        return cast_like(update, updates), optax.ScaleByRssState(cast_like(s, state.sum_of_squares))

    return optax.GradientTransformation(init_fn, update_fn)


def _divisors(squares: Any, eps: float, eps_in_sqrt: bool) -> Any:
    """√(s + ε) or √s + ε of every leaf."""
    if eps_in_sqrt:
        return roots(jax.tree.map(lambda s: s + eps, squares))
    return jax.tree.map(lambda r: r + eps, roots(squares))
