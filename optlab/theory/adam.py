"""Effects of Adam's moments on a step: the first one without correction, agreement, and decay before or after it."""

from typing import Any

import jax
import jax.numpy as jnp
import optax

from optlab._checks import check_decay
from optlab.theory._arrays import as_numbers, check_all_decays, check_all_finite, check_all_not_negative, check_whole

__all__ = ["adam_state", "agreement", "decay_gap", "first_step", "first_step_ratio", "mean_agreement"]


def first_step_ratio(b1: Any = 0.9, b2: Any = 0.999) -> jax.Array:
    """(1 − β₁)/√(1 − β₂): Adam's first step without bias correction, in units of the corrected one.

    m₁ = (1 − β₁)g and √v₁ = √(1 − β₂)|g|, where the corrected quotient is sign(g). At the defaults it is 3.16:
    the first steps are too large, not too small, as the correction is often explained. Kingma and Ba 2015, section 3.

    Args:
        b1: β₁.
        b2: β₂.
    """
    return first_step(1, b1, b2)


def first_step(t: Any, b1: Any = 0.9, b2: Any = 0.999) -> jax.Array:
    """(1 − β₁ᵗ)/√(1 − β₂ᵗ): the same at step t, with equal gradients so far; it goes to 1 from above or below.

    Args:
        t: the step, from 1, a whole number.
        b1: β₁,
        b2: and β₂, in [0, 1), of shapes that broadcast with it.
    """
    check_whole("t", t, least=1)
    check_all_decays("b1", b1)
    check_all_decays("b2", b2)
    t, b1, b2 = as_numbers(t=t, b1=b1, b2=b2)
    return (1 - b1**t) / jnp.sqrt(1 - b2**t)


def decay_gap(learning_rate: Any, weight_decay: Any, update: Any) -> jax.Array:
    """η²λu: (θ − ηu − ηλθ) minus (1 − ηλ)(θ − ηu), decay beside the step and decay after it, is −η²λu.

    The sign is that of what is subtracted: with U = −ηu, the step as it is added, it is ηλU.

    Args:
        learning_rate: η, of a shape that broadcasts with u's,
        weight_decay: and λ.
        update: u, what the learning rate multiplies, any shape.
    """
    check_all_not_negative("learning_rate", learning_rate)
    check_all_not_negative("weight_decay", weight_decay)
    check_all_finite("update", update)
    rate, decay, u = as_numbers(learning_rate=learning_rate, weight_decay=weight_decay, update=update)
    return rate**2 * decay * u


def agreement(opt_state: Any, *, b1: Any = 0.9, b2: Any = 0.999, bias_correction: bool = True) -> Any:
    """|m̂|/√v̂ for every coordinate, a tree like the parameters: near 1 where signs agree, small where they flip.

    It is the factor by which Adam's step is smaller than softsign momentum's. For gradients of one sign and size it
    is 1, for alternating ones (1 − β₁)/(1 + β₁), 0.05 at the default, for independent ones of mean 0 √((1 − β₁)/(1 +
    β₁)) in root mean square, 0.23. It is 0 where no gradient has been.

    Args:
        opt_state: of any chain with `optlab.scale_by_adam` (or optax's) in it.
        b1: β₁, as it was given to it; 1 − β₁ᵗ corrects m,
        b2: β₂,
        bias_correction: and whether it corrects m and v.

    Raises:
        ValueError: if there is no state of Adam's, or more than one.
    """
    check_decay("b1", b1)
    check_decay("b2", b2)
    state = adam_state("agreement", opt_state)
    t = jnp.maximum(state.count, 1)
    m, v = state.mu, state.nu
    if bias_correction:
        m, v = optax.tree.bias_correction(m, b1, t), optax.tree.bias_correction(v, b2, t)
    return jax.tree.map(lambda m, v: jnp.where(v > 0, jnp.abs(m) / jnp.sqrt(jnp.where(v > 0, v, 1)), 0), m, v)


def mean_agreement(opt_state: Any, *, b1: Any = 0.9, b2: Any = 0.999, bias_correction: bool = True) -> jax.Array:
    """The mean of `agreement` over all coordinates."""
    found = jax.tree.leaves(agreement(opt_state, b1=b1, b2=b2, bias_correction=bias_correction))
    return sum((jnp.sum(x) for x in found), jnp.zeros(())) / sum(x.size for x in found)


def adam_state(who: str, opt_state: Any) -> optax.ScaleByAdamState:
    """The one state of Adam's in an optimizer's.

    Raises:
        ValueError: if there is none, or more than one.
    """
    is_adam = lambda s: isinstance(s, optax.ScaleByAdamState)
    found = [s for s in jax.tree.leaves(opt_state, is_leaf=is_adam) if is_adam(s)]
    if len(found) != 1:
        raise ValueError(f"{who} needs an optimizer's state with one of Adam's in it, found {len(found)}")
    return found[0]
