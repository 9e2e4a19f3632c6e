"""Weight decay: adds λθ to the update. After the moments it is decoupled decay, before them an L2 penalty."""

import warnings
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import optax

from optlab._checks import check_not_negative, is_number
from optlab._trees import matched
from optlab.roles import check_roles, layout_of
from optlab.transforms._numerics import agreement, cast_like, widen

FLATTENED = (
    "decay_weights got one array without a name, as optax.flatten makes of a tree: it decays whole, whatever the roles "
    "are. Put flatten inside, around what moves every coordinate by itself"
)


def decay_weights(
    weight_decay: float | optax.Schedule | None = None,
    *,
    mask: Any | Callable[[optax.Params], Any] | None = None,
    roles: Sequence[str] | None = None,
    cautious: bool = False,
) -> optax.GradientTransformation:
    """g + λθ, as `optax.add_decayed_weights`, for all parameters, for those in a mask, or for those with given roles.

    None, and a constant 0, decay nothing, and do without the parameters. Where the parameters are wider than the
    updates, float32 under bfloat16, what decays gets their dtype, in which a small λθ beside a large g isn't lost.

    Cautious decay (Chen et al. 2025, arXiv 2510.12402) is g + λθ·[gθ ≥ 0], of complex numbers Re(gθ̄) ≥ 0: g being
    subtracted later, it never works against the update.

    Args:
        weight_decay: the decay (λ), a number, a schedule or None; the learning rate multiplies it if it comes after.
        mask: which parameters decay, as in optax: a tree of booleans, or a function that gives one.
        roles: which parameters decay: names of `optlab.roles`, as ["matrix", "conv"]; None is all.
        cautious: whether only coordinates decay whose update has the weight's own sign, or is 0.
    """
    if weight_decay is not None:
        check_not_negative("weight_decay", weight_decay, schedule=True)
    if mask is not None and roles is not None:
        raise ValueError("decay_weights takes a mask or roles, got both: give one of them")
    if isinstance(mask, str):
        raise ValueError(f"mask must be a tree of booleans or a function that gives one, got the string {mask!r}")
    if isinstance(roles, str):
        raise ValueError(f"roles must be a list of role names, got the string {roles!r}: write [{roles!r}]")
    check_roles("decay_weights", roles or ())
    if weight_decay is None or (is_number(weight_decay) and weight_decay == 0):
        return optax.identity()
    decay = _add_decay(weight_decay)
    decay = decay if mask is None else optax.masked(decay, mask)

    def update_fn(
        updates: optax.Updates, state: optax.OptState, params: optax.Params | None = None, **extra_args: Any
    ) -> tuple[optax.Updates, optax.OptState]:
        params = matched(updates, params)
        decayed, state = decay.update(updates, state, params)
        if cautious:

            def keep(d: Any, g: Any, p: Any) -> Any:
                return jnp.where(agreement(g, p) >= 0, d, g)

            decayed = jax.tree.map(keep, decayed, updates, params)
        if roles is not None:
            layout = layout_of(params, extra_args)
            if list(layout) == [""] and layout[""].role is None:
                warnings.warn(FLATTENED, stacklevel=2)
                return decayed, state
            layout.check_known("decay_weights")
            decayed = jax.tree.map(lambda role, d, g: d if role in roles else g, layout.roles, decayed, updates)
        return decayed, state

    return optax.GradientTransformationExtraArgs(decay.init, update_fn)


def _add_decay(weight_decay: float | optax.Schedule) -> optax.GradientTransformation:
    """As `optax.add_decayed_weights`, computed in at least float32, in the dtype of whichever is wider, g or θ."""
    decay = optax.add_decayed_weights(weight_decay)

    def update_fn(
        updates: optax.Updates, state: optax.OptState, params: optax.Params | None = None
    ) -> tuple[optax.Updates, optax.OptState]:
        decayed, state = decay.update(widen(updates), state, widen(params))
        return cast_like(decayed, updates, params), state

    return optax.GradientTransformation(decay.init, update_fn)
