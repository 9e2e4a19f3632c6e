"""Weight decay: adds λθ to the update. After the moments it is decoupled decay, before them an L2 penalty."""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import optax

from optlab._checks import check_not_negative, is_number
from optlab.roles import check_roles, layout_of
from optlab.transforms._numerics import computed_wide


def decay_weights(
    weight_decay: float | optax.Schedule = 0.0,
    *,
    mask: Any | Callable[[optax.Params], Any] | None = None,
    roles: Sequence[str] | None = None,
    cautious: bool = False,
) -> optax.GradientTransformation:
    """g + λθ, as `optax.add_decayed_weights`, for all parameters, for those in a mask, or for those with given roles.

    A constant 0 decays nothing, and does without the parameters. Cautious decay (Chen et al. 2025, arXiv 2510.12402)
    is g + λθ·[gθ ≥ 0]: g being subtracted later, it never works against the update.

    Args:
        weight_decay: the decay (λ), a number or a schedule; the learning rate multiplies it if it comes after.
        mask: which parameters decay, as in optax: a tree of booleans, or a function that gives one.
        roles: which parameters decay: names of `optlab.roles`, as ["matrix", "conv"]; None is all.
        cautious: whether only coordinates decay whose update has the weight's own sign, or is 0.
    """
    check_not_negative("weight_decay", weight_decay)
    if mask is not None and roles is not None:
        raise ValueError("decay_weights takes a mask or roles, got both: give one of them")
    if isinstance(mask, str):
        raise ValueError(f"mask must be a tree of booleans or a function that gives one, got the string {mask!r}")
    if isinstance(roles, str):
        raise ValueError(f"roles must be a list of role names, got the string {roles!r}: write [{roles!r}]")
    check_roles("decay_weights", roles or ())
    if is_number(weight_decay) and weight_decay == 0:
        return optax.identity()
    decay = computed_wide(optax.add_decayed_weights(weight_decay, mask))

    def update_fn(
        updates: optax.Updates, state: optax.OptState, params: optax.Params | None = None, **extra_args: Any
    ) -> tuple[optax.Updates, optax.OptState]:
        decayed, state = decay.update(updates, state, params)
        if cautious:
            agree = lambda g, p: jnp.sign(g) * jnp.sign(p) >= 0  # in 16 bits gθ itself can round to 0
            decayed = jax.tree.map(lambda d, g, p: jnp.where(agree(g, p), d, g), decayed, updates, params)
        if roles is not None:
            layout = layout_of(params, extra_args)
            layout.check_known("decay_weights")
            decayed = jax.tree.map(lambda role, d, g: d if role in roles else g, layout.roles, decayed, updates)
        return decayed, state

    return optax.GradientTransformationExtraArgs(decay.init, update_fn)
