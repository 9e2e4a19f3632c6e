"""Caution: no step in a coordinate where the update goes against the gradient."""

from typing import Any

import jax
import jax.numpy as jnp
import optax

from optlab.transforms._numerics import agreement, cast_like, widen

LEAST_SHARE = 1e-3  # of the coordinates: where fewer agree the rest isn't scaled up further, as in the authors' code


def cautious(inner: optax.GradientTransformation) -> optax.GradientTransformationExtraArgs:
    """u·φ / mean(φ) with φ = [ug > 0], where g goes into the inner transform and u comes out; complex, [Re(uḡ) > 0].

    The mean is over a parameter, so that as many coordinates as are stopped the others go further. Where all agree u
    stays what it is; where none does the update is 0. Put the moments inside, and decay and learning rate after it:
    `chain(cautious(scale_by_adam()), decay_weights(0.1), scale_by_learning_rate(1e-3))` is C-AdamW.

    Source: Liang et al. 2024 (arXiv 2411.16085), Algorithm 1; the mean is at least a thousandth.

    Args:
        inner: a transform, or a chain of them, whose update is to be subtracted.
    """
    inner = optax.with_extra_args_support(inner)

    def update_fn(
        updates: optax.Updates, state: optax.OptState, params: optax.Params | None = None, **extra_args: Any
    ) -> tuple[optax.Updates, optax.OptState]:
        proposed, state = inner.update(updates, state, params, **extra_args)
        return cast_like(jax.tree.map(_agreeing, widen(proposed), updates), proposed), state

    return optax.GradientTransformationExtraArgs(inner.init, update_fn)


def _agreeing(u: jax.Array, g: jax.Array) -> jax.Array:
    agree = (agreement(u, g) > 0).astype(u.real.dtype)
    return u * agree / jnp.maximum(agree.mean(), LEAST_SHARE)
