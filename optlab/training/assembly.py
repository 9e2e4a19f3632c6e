"""A run before its first batch: the first state and the step, put together for the devices of a strategy."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import optax
from jax.sharding import Mesh

from optlab._integers import check_seed
from optlab._measure import Measure
from optlab._rates import listening, name_rate, optax_schedules
from optlab.config import Stop, StrategyName, find_strategy
from optlab.roles import Layout, layout_around
from optlab.training.judge import norm_bound
from optlab.training.mean import check_mean
from optlab.training.measures import PROBES, RATES, injected_rates, rate_names
from optlab.training.mistakes import check_roles, checked_init
from optlab.training.packed import packed, unless_small
from optlab.training.parallel import check_memory, memory_held, memory_needed, parallelize
from optlab.training.sharding import Rules
from optlab.training.state import TrainState, init_state
from optlab.training.step import StepSettings, make_measured_step
from optlab.training.strategies import Parallel
from optlab.training.workload import Workload


@dataclass(frozen=True)
class Assembly:
    """A run that `assemble` put together; nothing is made or compiled yet.

    Attributes:
        workload: what is trained.
        settings: the step's.
        parallel: the step on its devices, and what places states and batches there. The step returns its metrics as
            `PackedMetrics`, under their names in the records.
        first: the function that makes the first state,
        arguments: and its arguments.
        read_layout: the layout of the workload's parameters; it is read once, when a block first asks for it.
    """

    workload: Workload
    settings: StepSettings
    parallel: Parallel
    first: Callable[..., TrainState]
    arguments: tuple[Any, ...]
    read_layout: Callable[[], Layout]

    def layout(self) -> contextlib.AbstractContextManager[None]:
        """The context in which the optimizer has to be traced: its blocks ask for the parameters' layout."""
        return layout_around(self.read_layout)

    def shapes(self) -> TrainState:
        """The first state's shapes, dtypes and shardings."""
        return self._traced[0]

    def schedules(self) -> dict[str, Callable[[Any], Any]]:
        """The learning rates in the optimizer that optlab's blocks or optax's schedules are, as functions of the step.

        They are named "learning_rate", "learning_rate_2" and so on, in the order of the chain, after those of
        `optax.inject_hyperparams`, which the step measures; equal ones are one.
        """
        rates = [rate if callable(rate) else functools.partial(_constant, rate) for rate in self._traced[1]]
        return dict(zip(rate_names(len(rates), after=len(injected_rates(self.shapes().opt_state))), rates, strict=True))

    @functools.cached_property
    def _traced(self) -> tuple[TrainState, list[Any]]:
        """The first state's shapes, and the learning rates that the optimizer's blocks named."""
        with self.layout(), listening() as rates:
            shapes = jax.eval_shape(self.first, *self.arguments)
        return self.parallel.shapes(shapes), rates

    def place_state(self) -> TrainState:
        """Makes the first state on the devices.

        Raises:
            DeviceMemoryError: if a device has no memory for it; nothing is made then.
        """
        check_memory(self.parallel, self.shapes())
        with self.layout():
            return self.parallel.place_state(self.first, *self.arguments)

    def check(self, state: TrainState, batch: Any) -> None:
        """Checks a step before the first one; it is compiled for it.

        Args:
            state: placed.
            batch: placed.

        Raises:
            DeviceMemoryError: if it needs more memory than a device has.
            ValueError: if the loss isn't the mean that it measures, where means of its parts are taken.
        """
        check_memory(self.parallel, state, batch)
        if self.settings.accumulate > 1 or self.parallel.strategy.axis_name is not None:
            check_mean(self.workload.loss, state, batch, self.settings.accumulate)

    def bytes_held(self) -> int:
        """The bytes of the state on each device."""
        return memory_held(self.shapes())

    def bytes_needed(self, batch: Any) -> int:
        """The bytes that a step needs on each device, from the compiled program; 0 where the backend doesn't say.

        Args:
            batch: placed.
        """
        state = self.shapes() if self.parallel.compiles_shapes else self.place_state()
        return memory_needed(self.parallel, state, batch)


def assemble(
    workload: Workload,
    tx: optax.GradientTransformation,
    settings: StepSettings = StepSettings(),
    strategy: StrategyName = "single",
    *,
    mesh: Mesh | None = None,
    rules: Rules | None = None,
    seed: int = 0,
    initial: tuple[Any, Any] | None = None,
    stop: Stop = Stop(),
    measure: Sequence[Measure] = (),
) -> Assembly:
    """Puts a workload's first state and its step together, for the devices of a strategy.

    Args:
        workload: what is trained.
        tx: any optax transformation that ends in the learning rate.
        settings: the step's.
        strategy: how the step runs on the devices, see `parallelize`,
        mesh: on which,
        rules: and where the mesh's axis "model" goes.
        seed: of the initialization and of what the loss draws; a whole number in [0, 2**32).
        initial: (params, model_state) in place of `workload.init`.
        stop: the step makes no update where its gradient's norm is at most stop.gradient_norm.
        measure: what else is measured in the step; the optimizer's probes always are.

    Raises:
        ValueError: as `parallelize`, and for roles that match no parameter or are misspelt.
    """
    check_seed(seed)
    check_roles(workload.init, workload.roles)
    axis_name = find_strategy(strategy).axis_name
    read_layout = functools.cache(functools.partial(workload.layout, axis_name))
    step = make_measured_step(workload.loss, tx, settings, axis_name=axis_name, measures=(*measure, PROBES, RATES))
    whole = unless_small(packed(step), norm_bound(stop))
    parallel = parallelize(_within(read_layout, whole), strategy, mesh, rules=rules)

    def first(key: jax.Array, init_key: jax.Array, initial: tuple[Any, Any] | None) -> TrainState:
        params, model_state = initial if initial is not None else checked_init(workload.init)(init_key)
        for schedule in optax_schedules(tx.update):
            name_rate(schedule)
        kept = {"ema": settings.ema is not None, "spike": settings.spike is not None}
        return init_state(params, model_state, tx, key=key, **kept)

    key, init_key = jax.random.split(jax.random.key(seed))
    return Assembly(workload, settings, parallel, first, (key, init_key, initial), read_layout)


def _constant(value: float, step: Any) -> float:
    return value


def _within(read_layout: Callable[[], Layout], step: Callable[..., Any]) -> Callable[..., Any]:
    """The step, traced where blocks find the layout."""

    def within(state: Any, batch: Any) -> Any:
        with layout_around(read_layout):
            return step(state, batch)

    return within
