"""What Adam's moments do to a step: the first one without correction, and decay before or after it."""

from typing import Any

import jax
import jax.numpy as jnp

from optlab.theory._arrays import as_floats, check_decay

__all__ = ["decay_gap", "first_step", "first_step_ratio"]


def first_step_ratio(b1: Any = 0.9, b2: Any = 0.999) -> jax.Array:
    """(1 − β₁)/√(1 − β₂): Adam's first step without bias correction, in units of the corrected one.

    m₁ = (1 − β₁)g and √v₁ = √(1 − β₂)|g|, where the corrected quotient is sign(g). At the defaults it is 3.16:
    the first steps are too large, not too small, as the correction is often explained. Kingma and Ba 2015, section 3.

    Args:
        b1: β₁.
        b2: β₂.
    """
    check_decay("b1", b1)
    check_decay("b2", b2)
    return (1 - as_floats(b1)) / jnp.sqrt(1 - as_floats(b2))


def first_step(t: Any, b1: Any = 0.9, b2: Any = 0.999) -> jax.Array:
    """(1 − β₁ᵗ)/√(1 − β₂ᵗ): the same at step t, with equal gradients so far; it goes to 1 from above or below.

    Args:
        t: the step, from 1.
        b1: β₁.
        b2: β₂.
    """
    return first_step_ratio(as_floats(b1) ** t, as_floats(b2) ** t)


def decay_gap(learning_rate: Any, weight_decay: Any, update: Any) -> jax.Array:
    """η²λu: (θ − ηu − ηλθ) minus (1 − ηλ)(θ − ηu), decay beside the step and decay after it, is −η²λu.

    The sign is that of what is subtracted: with U = −ηu, the step as it is added, it is ηλU.

    Args:
        learning_rate: η.
        weight_decay: λ.
        update: u, what the learning rate multiplies.
    """
    return as_floats(learning_rate) ** 2 * weight_decay * as_floats(update)
