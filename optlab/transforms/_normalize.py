"""The gradient's direction alone: how far a step goes is the learning rate's to say."""

import jax
import jax.numpy as jnp
import optax

from optlab._trees import largest
from optlab.transforms._numerics import abs_square, cast_like, widen


def normalize() -> optax.GradientTransformation:
    """g / ‖g‖, the norm over all parameters; where g is 0 it stays 0.

    With the learning rate η every step has the length η, so that plateaus are crossed and minima circled. With
    η = η⁰‖g‖ it is gradient descent. Under `by_role` or `optax.masked` the norm is that of the rule's own parameters.

    Source: Shor 1985; for non-convex functions Levy 2016 (arXiv 1611.04831), Algorithm 1.
    """

    def update_fn(
        updates: optax.Updates, state: optax.EmptyState, params: optax.Params | None = None
    ) -> tuple[optax.Updates, optax.EmptyState]:
        del params
        g = widen(updates)
        size = largest(g)  # the norm itself may be infinite
        unit = jax.tree.map(lambda x: x / size.astype(x.real.dtype), g)
        square = sum((jnp.sum(abs_square(x)) for x in jax.tree.leaves(unit)), jnp.zeros([]))
        norm = jnp.sqrt(jnp.where(square == 0, 1, square))
        return cast_like(jax.tree.map(lambda x: x / norm.astype(x.real.dtype), unit), updates), state

    return optax.GradientTransformation(optax.init_empty_state, update_fn)
