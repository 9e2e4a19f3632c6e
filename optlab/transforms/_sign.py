"""Updates that keep the sign of a gradient and forget its size."""

import jax
import jax.numpy as jnp
import optax

from optlab._checks import check_positive
from optlab.transforms._numerics import cast_like, check_wide, widen


def scale_by_sign() -> optax.GradientTransformation:
    """sign(g), coordinate by coordinate; 0 stays 0.

    Source: Bernstein et al. 2018, signSGD (arXiv 1802.04434).
    """
    return optax.scale_by_sign()


def scale_by_softsign(eps: float = 1e-8) -> optax.GradientTransformation:
    """g / (|g| + ε), coordinate by coordinate: about the sign where |g| ≫ ε, and g / ε where |g| ≪ ε.

    It is Adam with β₁ = β₂ = 0. ε → 0 gives the sign.

    Args:
        eps: the size of a gradient that counts as small (ε), positive.
    """
    check_wide(eps=eps)
    check_positive("eps", eps)

    def update_fn(
        updates: optax.Updates, state: optax.EmptyState, params: optax.Params | None = None
    ) -> tuple[optax.Updates, optax.EmptyState]:
        del params
        softsign = jax.tree.map(lambda g: g / (jnp.abs(g) + eps), widen(updates))
        return cast_like(softsign, updates), state

    return optax.GradientTransformation(optax.init_empty_state, update_fn)
