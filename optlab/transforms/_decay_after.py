"""Weight decay after the step: the new weights shrink, not the old ones."""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import optax

from optlab._trees import matched
from optlab.transforms._decay import decay_weights


def decay_after_step(
    rate: float | optax.Schedule,
    *,
    mask: Any | Callable[[optax.Params], Any] | None = None,
    roles: Sequence[str] | None = None,
) -> optax.GradientTransformation:
    """u − r(θ + u), so that θ becomes (1 − r)(θ + u); to stand behind the learning rate, with r = ηλ.

    `decay_weights` before the learning rate gives θ + u − ηλθ. The two part by ηλu, which is of second order in the
    learning rate: u itself is ∝ η.

    Args:
        rate: r, the learning rate times the decay, a number or a schedule.
        mask: which parameters decay, as in optax: a tree of booleans, or a function that gives one.
        roles: which parameters decay: names of `optlab.roles`, as ["matrix", "conv"]; None is all.
    """
    shrink = optax.with_extra_args_support(decay_weights(rate, mask=mask, roles=roles))

    def update_fn(
        updates: optax.Updates, state: optax.OptState, params: optax.Params | None = None, **extra_args: Any
    ) -> tuple[optax.Updates, optax.OptState]:
        moved = params if params is None else optax.apply_updates(matched(updates, params), updates)
        turned, state = shrink.update(_negative(updates), state, moved, **extra_args)  # −u + r(θ + u)
        return _negative(turned), state

    return optax.GradientTransformationExtraArgs(shrink.init, update_fn)


def _negative(tree: Any) -> Any:
    return jax.tree.map(lambda x: -x, tree)
