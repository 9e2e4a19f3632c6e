"""Momentum: the gradients of earlier steps, with weights that fall geometrically."""

from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from optlab._checks import check_choice, check_decay, check_fraction
from optlab.transforms._numerics import add_scaled, cast_like, check_holds, check_state_dtypes, check_wide, widen


class MomentumState(NamedTuple):
    """count: updates made so far, shape (), int32. trace: m, with the parameters' shapes."""

    count: jax.Array  # type: ignore[assignment]  # a tuple has a method of that name
    trace: optax.Updates


def momentum(
    decay: float,
    *,
    nesterov: bool | float = False,
    style: Literal["heavy_ball", "ema"] = "heavy_ball",
    start: Literal["zero", "first_gradient"] = "zero",
    accumulator_dtype: Any | None = None,
) -> optax.GradientTransformation:
    """m ← βm + cg, and the update is m, or with Nesterov's momentum βm + cg of the new m.

    c = 1 is the heavy ball (Polyak 1964), and c = 1 − β the average: the same path with the learning rate scaled by
    1 − β. The heavy ball's numbers are those of `optax.trace`. Nesterov's update is the combination form of his
    look-ahead form v ← βv − η∇L(θ + βv), θ ← θ + v, written for φ = θ + βv (Sutskever et al. 2013, Dozat 2016).

    With a coefficient α of its own the combination is αm + (1 − α)g of the average, and the same path for the heavy
    ball: αm + ((1 − α)/(1 − β))g. α = β is Nesterov's, α = 1 plain momentum, α = 0 no momentum at all.

    Args:
        decay: how much of the momentum stays at every step (β), in [0, 1).
        nesterov: whether the update looks one step ahead; or the coefficient of m in it (α), in [0, 1].
        style: "heavy_ball" sums the gradients (c = 1), "ema" averages them (c = 1 − β).
        start: m before the first step: "zero", or with style="ema" the "first_gradient", which makes m a convex
            combination of gradients from the first step on.
        accumulator_dtype: the dtype that m is stored in; None takes the parameters'.
    """
    check_wide(decay=decay)
    check_state_dtypes(accumulator_dtype=accumulator_dtype)
    check_decay("decay", decay)
    own = None if isinstance(nesterov, bool | np.bool_) else nesterov
    if own is not None:
        if isinstance(own, int):  # 1 may be meant as True, and as a coefficient is no look-ahead at all
            raise ValueError(f"nesterov must be True, False or a coefficient such as 0.9, got {own}")
        check_wide(nesterov=own)
        check_fraction("nesterov", own)
    check_choice("style", style, ("heavy_ball", "ema"))
    check_choice("start", start, ("zero", "first_gradient"))
    if start == "first_gradient" and style == "heavy_ball":
        raise ValueError(
            "start='first_gradient' needs style='ema': a heavy ball's first momentum is the gradient anyway"
        )

    def init_fn(params: optax.Params) -> MomentumState:
        check_holds(params, "accumulator_dtype", accumulator_dtype)
        return MomentumState(jnp.zeros([], jnp.int32), optax.tree.zeros_like(params, dtype=accumulator_dtype))

    def update_fn(
        updates: optax.Updates, state: MomentumState, params: optax.Params | None = None
    ) -> tuple[optax.Updates, MomentumState]:
        del params
        new = (lambda g: g) if style == "heavy_ball" else (lambda g: (1 - decay) * g)

        def advance(m: Any, g: Any) -> Any:
            return jax.tree.map(lambda m, g: add_scaled(new(g), decay, m), m, g)

        m, g = widen(state.trace), widen(updates)
        if start == "first_gradient":
            m = optax.tree.where(state.count == 0, g, m)
        m = advance(m, g)
        if own is not None:
            share = (1 - own) / (1 - decay) if style == "heavy_ball" else 1 - own
            update = jax.tree.map(lambda m, g: own * m + share * g, m, g)
        else:
            update = advance(m, g) if nesterov else m
        new_state = MomentumState(optax.safe_increment(state.count), cast_like(m, state.trace))
        return cast_like(update, updates), new_state

    return optax.GradientTransformation(init_fn, update_fn)
