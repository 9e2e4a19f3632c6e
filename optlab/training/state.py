"""The one state that every strategy, checkpoint and step shares: a pytree of arrays only."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from optlab.training.reductions import wide


class LossStatistics(NamedTuple):
    """The number of accepted steps, and the running mean and variance of their losses."""

    accepted: jax.Array
    mean: jax.Array
    variance: jax.Array


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class TrainState:
    """Everything that changes while training.

    Attributes:
        step: updates made so far, int32 ().
        params: what is trained.
        model_state: what training changes without a gradient (BatchNorm's running statistics).
        opt_state: the optax transformation's.
        key: typed random key; a step's randomness is fold_in(key, step), so the key itself never changes.
        ema: the weights' moving average, of params' structure and in at least float32, or None.
        losses: the statistics by which a spike of the loss is recognized, or None.
    """

    step: jax.Array
    params: Any
    model_state: Any
    opt_state: Any
    key: jax.Array
    ema: Any = None
    losses: LossStatistics | None = None


def init_state(
    params: Any,
    model_state: Any,
    tx: optax.GradientTransformation,
    *,
    key: jax.Array,
    ema: bool = False,
    spike: bool = False,
) -> TrainState:
    """The state before the first step. Every leaf is a copy of its own, since a step gives the state's buffers away."""
    average = jax.tree.map(_as_average, params) if ema else None
    losses = LossStatistics(jnp.zeros((), jnp.int32), jnp.zeros(()), jnp.zeros(())) if spike else None
    state = TrainState(jnp.zeros((), jnp.int32), params, model_state, tx.init(params), key, average, losses)
    return jax.tree.map(lambda x: jnp.array(x, dtype=jnp.asarray(x).dtype), state)


def _as_average(x: Any) -> jax.Array:
    """A parameter as it is averaged: in bfloat16 what a step adds to the average would be rounded away."""
    x = jnp.asarray(x)
    return wide(x) if jnp.issubdtype(x.dtype, jnp.inexact) else x


def evaluation_params(state: TrainState) -> Any:
    """The parameters that a run is judged by: the moving average if there is one, else the optimizer's answer.

    Schedule-free methods train one point and answer with another (Defazio et al. 2024, arXiv 2405.15682, eq. 4).
    """
    if state.ema is not None:
        return jax.tree.map(lambda a, p: a.astype(p.dtype), state.ema, state.params)
    free = [s for s in jax.tree.leaves(state.opt_state, is_leaf=_is_schedule_free) if _is_schedule_free(s)]
    structure: Any = jax.tree.structure(state.params)
    if len(free) == 1 and jax.tree.structure(free[0].z) == structure:
        return optax.contrib.schedule_free_eval_params(free[0], state.params)
    return state.params


def _is_schedule_free(state: Any) -> bool:
    return isinstance(state, optax.contrib.ScheduleFreeState)
