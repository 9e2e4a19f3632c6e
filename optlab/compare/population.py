"""Many trials in one compiled program: the hyperparameters are traced, the states stacked. Nothing is written here.

Several devices share the trials: the stack's axis lies on a mesh, and each device trains its own without a word to the
others, so that the numbers are those of one device.
"""

from __future__ import annotations

import functools
import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from optlab.compare.contenders import Contender
from optlab.compare.curves import OF_STEP, Curve
from optlab.compare.on_device import rows_of
from optlab.compare.points import Choice
from optlab.compare.trials import Result, Trial, pace
from optlab.data import as_batches, evaluation_batches
from optlab.data._rows import map_arrays
from optlab.roles import layout_around
from optlab.training import TrainState, Workload, evaluation_params, init_state, make_evaluation, make_step
from optlab.training.parallel import memory_of
from optlab.training.strategies._base import _QUICK

TRIALS = "trials"  # the mesh axis
WIDTH = 64  # trials in one program: with more, the first results come late
WIDTH_CPU = 4  # or as many as there are finals: a CPU gains nothing from more, and all parts share one program
STATES = 6  # of a trial's state, as much memory is taken for it, its gradients and activations
FEED = 2**28  # bytes of batches that are on the device at once, where the data don't stay there
CONVOLUTION = "conv_general_dilated"  # as it stands in a trace
WHOLE = 2048  # examples of a split that are evaluated as one batch


class Population:
    """Trains the trials of one contender, as many at a time as fit; a short part is filled up with copies.

    Each sees the batches of an ordinary run with its seed. One that diverges goes on as NaN in its place of the stack,
    where no other trial sees it.

    Args:
        workload: what is trained.
        contender: whose trials.
        evaluate_every: steps between two evaluations.
        expected: trials that are likely to come at once.
        is_stacked: whether they are trained side by side; else each device trains its own in turn, by one compiled
            program all the same.
        devices: that share the trials; None is all of this process.
    """

    def __init__(
        self,
        workload: Workload,
        contender: Contender,
        evaluate_every: int,
        expected: int,
        is_stacked: bool = True,
        devices: Sequence[jax.Device] | None = None,
    ):
        self.workload, self.contender, self.evaluate_every = workload, contender, evaluate_every
        self.mesh = Mesh(np.asarray(jax.local_devices() if devices is None else devices), (TRIALS,))
        self.is_stacked, width = is_stacked, 1
        if is_stacked:
            width = max(WIDTH_CPU, min(expected, WIDTH)) if jax.default_backend() == "cpu" else WIDTH
        self.width = self._on_all(width)
        self.read_layout = functools.cache(workload.layout)
        self.programs: dict[str, Program] = {}

    def __call__(self, trials: Sequence[Trial]) -> Iterator[list[Result]]:
        groups: dict[str, list[Trial]] = {}
        for trial in trials:
            groups.setdefault(self._key(trial), []).append(trial)
        for group in groups.values():
            with layout_around(self.read_layout):
                program, width = self._program(group[0])
                for start in range(0, len(group), width):
                    part = group[start : start + width]
                    filled = part + part[-1:] * (width - len(part))
                    yield program.train(filled, self.evaluate_every)[: len(part)]

    def laps(self, trial: Trial, steps: int, *, is_evaluated: bool = False) -> Callable[[], float]:
        """A function that trains a full part for so many steps more: the seconds a trial. Its first call compiles.

        Args:
            trial: whose seed and values all of the part have.
            steps: of a lap.
            is_evaluated: whether the validation split is evaluated in place of training.
        """
        with layout_around(self.read_layout):
            program, width = self._program(trial)
            running = program.laps([trial] * width, steps, is_evaluated)

        def lap() -> float:
            with layout_around(self.read_layout):
                return next(running)

        return lap

    def has_loop(self, trial: Trial) -> bool:
        """Whether many steps are one call: then a lap of another length compiles anew."""
        with layout_around(self.read_layout):
            return self._program(trial)[0].has_loop

    def _key(self, trial: Trial) -> str:
        return repr(sorted(static_values(self.contender, trial.values).items()))

    def _program(self, trial: Trial) -> tuple[Program, int]:
        """The program of trials with this one's static values, and the number that it takes at once."""
        if (key := self._key(trial)) not in self.programs:
            static = static_values(self.contender, trial.values)
            self.programs[key] = Program(self.workload, self.contender, static, self.is_stacked, self.mesh)
        program = self.programs[key]
        return program, min(self.width, program.fitting() * self.mesh.size)

    def _on_all(self, width: int) -> int:
        """The next number of trials that all devices share evenly."""
        return -(-width // self.mesh.size) * self.mesh.size


def _on_one(function: Callable[..., Any], in_axes: tuple[int | None, ...]) -> Callable[..., Any]:
    """`jax.vmap` over an axis of length one, without a trace of it in the program."""

    def on_one(*arguments: Any) -> Any:
        first = lambda tree: jax.tree.map(lambda x: x[0], tree)
        found = function(*(a if axis is None else first(a) for a, axis in zip(arguments, in_axes, strict=True)))
        return jax.tree.map(lambda x: x[None], found)

    return on_one


def static_values(contender: Contender, values: Mapping[str, Any]) -> dict[str, Any]:
    """The values that a program is compiled for; all others are traced."""
    is_static = lambda searched: isinstance(searched, Choice) and not searched.is_traced
    return {name: value for name, value in values.items() if is_static(contender.space[name])}


@dataclass
class Program:
    """The programs of one contender with some of its arguments fixed."""

    workload: Workload
    contender: Contender
    static: Mapping[str, Any]
    is_stacked: bool = True
    mesh: Mesh | None = None

    def __post_init__(self) -> None:
        self.rows = rows_of(self.workload.data.train)
        self.rows_there = None if self.rows is None else self._on_each(self.rows.arrays)
        options = _QUICK if jax.default_backend() == "cpu" else None
        # XLA's CPU convolutions are 25 times slower in a loop, even of one turn.
        self.has_loop = jax.default_backend() != "cpu" or CONVOLUTION not in self.traced
        self.started = jax.jit(self._mapped(self.first, (0, 0)), compiler_options=options)
        self.stepped = jax.jit(self._mapped(self.steps, (0, 0, 0, None)), donate_argnums=1)
        self.evaluated = jax.jit(self._mapped(self.evaluation, (0, None)))
        self.held_out: dict[str, list[Any]] = {}

    @functools.cached_property
    def traced(self) -> str:
        """A step of one trial as it is traced."""
        return str(jax.make_jaxpr(self.step)(*self.shapes()))

    def _mapped(self, function: Callable[..., Any], in_axes: tuple[int | None, ...]) -> Callable[..., Any]:
        """The function of one trial as that of a stack: of each device's part of it, if there are several."""
        over = (jax.vmap if self.is_stacked else _on_one)(function, in_axes)
        if self.mesh is None or self.mesh.size == 1:
            return over
        places = tuple(P() if axis is None else P(TRIALS) for axis in in_axes)
        # Unchecked, a model's own loops may begin with numbers that are the same on all devices.
        return jax.shard_map(over, mesh=self.mesh, in_specs=places, out_specs=P(TRIALS), check_vma=False)

    def _on_each(self, tree: Any) -> Any:
        """The arrays whole on every device."""
        whole = None if self.mesh is None else NamedSharding(self.mesh, P())
        return map_arrays(lambda x: jax.device_put(x, whole), tree)

    def optimizer(self, traced: Mapping[str, Any]) -> Any:
        return self.contender.make({**self.static, **traced})

    def first(self, traced: Mapping[str, jax.Array], seed: jax.Array) -> TrainState:
        """The state that `train` starts from with this seed."""
        key, init_key = jax.random.split(jax.random.key(seed))
        params, model_state = self.workload.init(init_key)
        return init_state(params, model_state, self.optimizer(traced), key=key)

    def step(self, traced: Mapping[str, jax.Array], state: TrainState, batch: Any) -> tuple[TrainState, jax.Array]:
        """A state's next one and what was measured, (sum, weight) of each of `OF_STEP`."""
        state, metrics = make_step(self.workload.loss, self.optimizer(traced), guard="stop")(state, batch)
        return state, jnp.stack([jnp.stack([x.astype(jnp.float32) for x in metrics[name]]) for name in OF_STEP])

    def steps(self, traced: Any, state: TrainState, feed: Any, rows: Any) -> tuple[TrainState, jax.Array]:
        """A chunk of steps; `feed` holds a batch for each, or what picks it from the rows."""

        def body(state: TrainState, item: Any) -> Any:
            return self.step(traced, state, item if self.rows is None or rows is None else self.rows.pick(rows, item))

        if self.has_loop:
            return jax.lax.scan(body, state, feed)
        state, measured = body(state, jax.tree.map(lambda x: x[0], feed))
        return state, measured[None]

    def evaluation(self, state: TrainState, batch: Any) -> dict[str, jax.Array]:
        metrics = make_evaluation(self.workload.loss)(evaluation_params(state), state.model_state, batch, state.key)
        return {name: jnp.stack(pair) for name, pair in metrics.items()}

    def shapes(self) -> tuple[Any, Any, Any]:
        """Of the arguments of `step`."""
        traced = {k: jax.ShapeDtypeStruct((), jnp.float32) for k in self.contender.middle if k not in self.static}
        state = jax.eval_shape(self.first, traced, jax.ShapeDtypeStruct((), jnp.uint32))
        return traced, state, as_batches(self.workload.data.train, self.workload.batch_size).batch(0)

    def fitting(self) -> int:
        """The number of states that fit into a quarter of a device's memory, at least 1."""
        _, state, batch = self.shapes()

        def size(tree: Any) -> int:
            return sum(math.prod(x.shape) * jnp.dtype(x.dtype).itemsize for x in jax.tree.leaves(tree))

        state = (state.params, state.model_state, [x for x in jax.tree.leaves(state.opt_state)])
        limit = memory_of(jax.local_devices()[0]) or 2**33
        return max(1, int(limit / 4 / (STATES * size(state) + 8 * size(batch))))

    def train(self, trials: Sequence[Trial], evaluate_every: int) -> list[Result]:
        """The trials' results, all of them at the end."""
        began, parts = time.monotonic(), []
        found = [Curve(t) for t in trials]
        stretches = self.stretches(trials, self.contender.steps, evaluate_every)
        start, state, _ = next(stretches)
        part = time.monotonic()
        for at, state, measured in stretches:
            held_out = self.evaluate("validation", state)
            for i, curve in enumerate(found):
                curve.add(start, measured[i], {k: float(v[i]) for k, v in held_out.items()})
            parts.append((time.monotonic() - part) / (at - start) / len(trials))
            start, part = at, time.monotonic()
        test = self.evaluate("test", state) if any(t.is_final for t in trials) else {}
        share = (time.monotonic() - began) / len(trials)
        how = share, pace(parts), "population" if self.is_stacked else "series"
        return [c.result({k: float(v[i]) for k, v in test.items()}, *how) for i, c in enumerate(found)]

    def stretches(
        self, trials: Sequence[Trial], steps: int, every: int
    ) -> Iterator[tuple[int, TrainState, np.ndarray]]:
        """All trials' states, first at step 0 and then every so many steps; the next one takes the buffers of the last.

        With each comes what was measured in every step since, (trials, steps, of `OF_STEP`, 2) in float64.
        """
        traced, state, feeds = self._begun(trials)
        yield 0, state, np.empty((len(trials), 0, len(OF_STEP), 2))
        for start in range(0, steps, every):
            stop, measured = min(start + every, steps), []
            piece = self._piece(stop - start, len(trials))
            for at in range(start, stop, piece):
                state, new = self.stepped(traced, state, self._feed(feeds, at, at + piece), self.rows_there)
                measured.append(new)
            yield stop, state, np.concatenate([np.asarray(m, np.float64) for m in measured], axis=1)

    def laps(self, trials: Sequence[Trial], steps: int, is_evaluated: bool) -> Iterator[float]:
        """Trains all for so many steps, or evaluates them, again and again: the seconds a trial each time."""
        traced, state, feeds = self._begun(trials)
        piece = self._piece(steps, len(trials))
        while True:
            began = time.monotonic()
            if is_evaluated:
                self.evaluate("validation", state)
            for _ in range(0, 0 if is_evaluated else steps, piece):
                state, measured = self.stepped(traced, state, self._feed(feeds, 0, piece), self.rows_there)
                np.asarray(measured)
            yield (time.monotonic() - began) / len(trials)

    def _begun(self, trials: Sequence[Trial]) -> tuple[Any, TrainState, list[Any]]:
        """Their traced hyperparameters, first states, and batches."""
        traced = {
            name: jnp.asarray([t.values[name] for t in trials], jnp.float32)
            for name in trials[0].values
            if name not in self.static
        }
        state = self.started(traced, jnp.asarray([t.seed for t in trials], jnp.uint32))
        return traced, state, [self._batches(t.seed) for t in trials]

    def _batches(self, seed: int) -> Any:
        return as_batches(self.workload.data.train, self.workload.batch_size, seed, self.workload.draw)

    def _piece(self, steps: int, width: int) -> int:
        """The number of steps fed at once: all, or the most that divide them and fit into `FEED`."""
        if not self.has_loop:
            return 1
        if self.rows is not None:
            return steps
        size = sum(x.nbytes for x in jax.tree.leaves(self.shapes()[2]))
        return max(n for n in range(1, steps + 1) if steps % n == 0 and (n == 1 or n * size * width <= FEED))

    def _feed(self, feeds: Sequence[Any], start: int, stop: int) -> Any:
        """For every trial and step the batch, or what picks it where the data stay on the device."""
        if self.rows is not None:
            each = [self.rows.items(b, range(start, stop)) for b in feeds]
            return map_arrays(lambda *x: np.stack(x), *each)
        each = [map_arrays(lambda *x: np.stack(x), *(b.batch(t) for t in range(start, stop))) for b in feeds]
        return map_arrays(lambda *x: np.stack(x), *each)

    def evaluate(self, split: str, state: TrainState) -> dict[str, np.ndarray]:
        """By metric the mean over a whole split, one for every trial; summed in float64, as `train` does."""
        data = getattr(self.workload.data, split)
        if data is None:
            return {}
        if split not in self.held_out:
            batches = evaluation_batches(data, len(data) if len(data) <= WHOLE else self.workload.batch_size)
            self.held_out[split] = list(map(self._on_each, batches))
        sums: dict[str, Any] = {}
        for batch in self.held_out[split]:
            for name, pair in self.evaluated(state, batch).items():
                sums[name] = sums.get(name, 0) + np.asarray(pair, np.float64)
        with np.errstate(invalid="ignore", divide="ignore"):
            return {f"{split}/{name}": pair[:, 0] / pair[:, 1] for name, pair in sums.items()}
