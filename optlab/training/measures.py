"""Measurements in the program of a training step: those of `train(measure=…)`, and what an optimizer's state holds."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax import lax

from optlab._measure import Measure
from optlab._probe_state import METRICS, SPECTRUM, find_probes
from optlab.config import is_learning_rate
from optlab.training.state import TrainState
from optlab.training.workload import Batch, Loss, Metrics


def measured(
    measures: Sequence[Measure],
    loss: Loss,
    state: TrainState,
    batch: Batch,
    *,
    gradient: Any,
    after: TrainState,
    tx: optax.GradientTransformation,
    axis_name: str | None,
) -> Metrics:
    """The measurements of a step, as (sum, weight) by name in the records; (0, 0) in steps that aren't due.

    Args:
        measures: all that there are.
        loss: the workload's.
        state: before the step.
        batch: the step's; under a mapped axis the device's part of it, which is gathered where one is due.
        gradient: the step's, averaged over devices and microbatches.
        after: the state after the step.
        tx: the optimizer.
        axis_name: the mapped axis that the step runs under, if there is one.

    Raises:
        ValueError: if two measures have one name.
    """
    found: Metrics = {}
    for measure in measures:
        function = _bound(measure, {"loss": loss, "gradient": gradient, "after": after, "tx": tx}, axis_name)
        for name, pair in _if_due(measure.every, function, state, batch).items():
            if (name := measure.prefix + name) in found:
                raise ValueError(f"two measures have the name {name.removeprefix(measure.prefix)!r}")
            found[name] = pair
    return found


def _bound(measure: Measure, given: Mapping[str, Any], axis_name: str | None) -> Callable[..., Any]:
    """(state, batch) -> {name: (sum, weight)}, with what the measure asks for."""
    names = inspect.signature(measure.function).parameters
    asked = {name: x for name, x in given.items() if name in names}

    def function(state: TrainState, batch: Batch) -> Metrics:
        found = measure.function(state, batch, **asked)
        return {name: _pair(x) for name, x in found.items()}

    return function if axis_name is None else _on_whole_batch(function, axis_name)


def _pair(x: Any) -> tuple[jax.Array, jax.Array]:
    total, weight = x if isinstance(x, tuple) else (x, jnp.ones_like(x))
    return jnp.asarray(total), jnp.asarray(weight)


def _on_whole_batch(function: Callable[..., Any], axis_name: str) -> Callable[..., Any]:
    """The function of the whole batch, on every device alike, under a mapped axis.

    A mean over that axis (BatchNorm's) is one over the single member of an axis of the same name: each device has all.
    """

    def on_whole(state: TrainState, batch: Batch) -> Any:
        batch = jax.tree.map(lambda x: lax.all_gather(x, axis_name, tiled=True), batch)
        alone = jax.vmap(lambda _: function(state, batch), axis_name=axis_name)
        return jax.tree.map(lambda x: x[0], alone(jnp.zeros(1)))

    return on_whole


def _if_due(every: int, function: Callable[..., Metrics], state: TrainState, batch: Batch) -> Metrics:
    """function(state, batch) in every k-th step, without computing it in the others."""
    if every == 1:
        return function(state, batch)
    shapes = jax.eval_shape(function, state, batch)

    def none(*_: Any) -> Any:
        return jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), shapes)

    return lax.cond((state.step + 1) % every == 0, function, none, state, batch)


def is_rare(names: Iterable[str]) -> bool:
    """True if something among the metrics of these names is measured seldom, so that its step needs a record."""
    return any(
        name.startswith("measure/") or (name.startswith("probe/") and name.rpartition("/")[2] in SPECTRUM)
        for name in names
    )


def _probed(state: TrainState, batch: Batch, *, after: TrainState) -> Metrics:
    """The values that the optimizer's probes measured in the step, by "<name>/<metric>" or "<name>/<path>/<metric>".

    A probe's count says whether it saw an update at all: in `optax.MultiSteps` it does only in some steps.
    """
    earlier = find_probes(state.opt_state)
    metrics: Metrics = {}
    for name, probe in find_probes(after.opt_state).items():
        is_new = (probe.measured == probe.count) & (probe.count > earlier[name].count)
        values, weights = jnp.where(is_new, probe.values, 0), is_new.astype(probe.values.dtype)
        for path, index in probe.rows:
            prefix = "/".join(part for part in (name, path) if part)
            metrics |= {
                f"{prefix}/{metric}": (values[(*index, i)], weights[(*index, i)]) for i, metric in enumerate(METRICS)
            }
    return metrics


PROBES = Measure(_probed, every=1, prefix="probe/")


def injected_rates(opt_state: Any) -> list[jax.Array]:
    """The learning rates in the states of `optax.inject_hyperparams`, in the tree's order."""
    is_one = lambda x: isinstance(getattr(x, "hyperparams", None), dict)
    states = [x for x in jax.tree.leaves(opt_state, is_leaf=is_one) if is_one(x)]
    return [x for state in states for name, x in state.hyperparams.items() if is_learning_rate(name)]


def rate_names(count: int, *, after: int = 0) -> list[str]:
    """The names in the records of so many learning rates, after others."""
    return [f"learning_rate_{i}" if i > 1 else "learning_rate" for i in range(after + 1, after + count + 1)]


def _rates(state: TrainState, batch: Batch, *, after: TrainState) -> dict[str, jax.Array]:
    """The learning rates that the step's update had."""
    rates = injected_rates(after.opt_state)
    return dict(zip(rate_names(len(rates)), rates, strict=True))


RATES = Measure(_rates, every=1, prefix="")
