"""Measurements of a run's state, inside the program of its step."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Protocol

import jax
import jax.numpy as jnp
from jax import lax

from optlab.training.workload import Loss

PREFIX = "measure/"


class Measure(Protocol):
    """What `train(measure=…)` takes; `optlab.theory.measures` has some.

    Attributes:
      every: steps from one measurement to the next.
      bind: the workload's loss -> a pure function (state, batch) -> {name: number}, of the state before a step.
    """

    @property
    def every(self) -> int: ...

    @property
    def bind(self) -> Callable[[Loss], Callable[[Any, Any], dict[str, jax.Array]]]: ...


def measuring(step: Callable[..., Any], loss: Loss, measures: Sequence[Measure], strategy: str) -> Callable[..., Any]:
    """The same step, whose metrics hold what is measured: (value, 1) in the steps that are due, (0, 0) in others.

    Raises:
      ValueError: under pmap, where every device would measure its own part of the batch; for two of one name.
    """
    if measures and strategy == "pmap":
        raise ValueError(
            "measure needs strategy='jit' or another: under pmap each device measures its part of the batch"
        )
    bound = [(measure.every, measure.bind(loss)) for measure in measures]

    def with_measures(state: Any, batch: Any) -> Any:
        new_state, metrics = step(state, batch)
        for every, measure in bound:
            shapes = jax.eval_shape(measure, state, batch)
            none = {name: jnp.zeros(x.shape, x.dtype) for name, x in shapes.items()}
            is_due = (state.step + 1) % every == 0
            found = lax.cond(is_due, measure, lambda *_, none=none: none, state, batch)
            if taken := [name for name in found if PREFIX + name in metrics]:
                raise ValueError(f"two measures have the name {taken[0]!r}")
            metrics |= {PREFIX + name: (x, is_due.astype(x.dtype)) for name, x in found.items()}
        return new_state, metrics

    return with_measures if bound else step
