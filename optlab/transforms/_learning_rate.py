"""The learning rate: the block that ends a chain."""

from typing import Any

import jax
import optax

from optlab._checks import check_not_negative
from optlab._rates import name_rate
from optlab._trees import matched
from optlab.transforms._numerics import cast_like, widen


def scale_by_learning_rate(
    learning_rate: float | optax.Schedule, *, flip_sign: bool = True
) -> optax.GradientTransformationExtraArgs:
    """−η·u, which ends a chain: the sign turns the updates downhill. As optax's, computed in at least float32.

    In bfloat16 a rate would be off by up to 0.4 %. Where the parameters are wider than the updates, the product has
    their dtype. `optlab.training.train` logs the rate.

    Args:
        learning_rate: step size (η), a number or a schedule.
        flip_sign: whether the sign turns; without, the chain goes uphill, or another block of it has turned the sign.
    """
    check_not_negative("learning_rate", learning_rate, schedule=True)
    scale = optax.scale_by_learning_rate(learning_rate, flip_sign=flip_sign)

    def init_fn(params: optax.Params) -> optax.OptState:
        if jax.tree.leaves(params):  # of a rule without parameters it isn't worth a line in the log
            name_rate(learning_rate)
        return scale.init(params)

    def update_fn(
        updates: optax.Updates, state: optax.OptState, params: optax.Params | None = None, **extra_args: Any
    ) -> tuple[optax.Updates, optax.OptState]:
        del extra_args
        scaled, state = scale.update(widen(updates), state)
        try:
            return cast_like(scaled, updates, updates if params is None else matched(updates, params)), state
        except ValueError:  # parameters of another structure, which nothing here needs
            return cast_like(scaled, updates), state

    return optax.GradientTransformationExtraArgs(init_fn, update_fn)
