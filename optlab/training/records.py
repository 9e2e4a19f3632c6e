"""What becomes of a step's metrics: they are read late, joined with evaluations, and told to the observers."""

from __future__ import annotations

import collections
import contextlib
import functools
import math
import sys
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from optlab._processes import is_first
from optlab.config import Target
from optlab.data import DataError, Split, StepBatches, evaluation_batches
from optlab.runs import MetricsFile, Observer, Record, StepLog
from optlab.runs._fingerprints import non_finite
from optlab.training.damaged import DamagedExamples
from optlab.training.guard import Skips, not_finite
from optlab.training.judge import CONVERGED, Judge
from optlab.training.measures import PREFIX
from optlab.training.parallel import Parallel
from optlab.training.probes import has_spectrum, probe_metrics
from optlab.training.state import TrainState, evaluation_params
from optlab.training.step import make_evaluation
from optlab.training.workload import Loss, Metrics, ShapeError, Workload

# More simulated devices' collectives in flight than this can deadlock (jax 0.10.2); fewer would let a device wait.
IN_FLIGHT = 16


@functools.partial(jax.tree_util.register_dataclass, data_fields=["pairs"], meta_fields=["names"])
@dataclass(frozen=True)
class PackedMetrics:
    """Metrics in one array, because the host pays for every array that it reads.

    Attributes:
      names: of the metrics.
      pairs: their (sum, weight), an array of shape (names, 2).
    """

    names: tuple[str, ...]
    pairs: Any

    @classmethod
    def pack(cls, metrics: Metrics) -> PackedMetrics:
        return cls(tuple(metrics), jnp.stack([jnp.stack(pair) for pair in metrics.values()]))

    def sums(self) -> dict[str, np.ndarray]:
        """(sum, weight) by name, on the host; waits until they are there."""
        return dict(zip(self.names, np.asarray(self.pairs, np.float64), strict=True))


def packed(step: Callable[..., tuple[Any, Metrics]]) -> Callable[..., tuple[Any, PackedMetrics]]:
    """The same step, its metrics packed under the names of the record, and with them what the probes measured.

    What a `Measure` found keeps its name.
    """

    def packing(state: Any, batch: Any) -> tuple[Any, PackedMetrics]:
        new_state, metrics = step(state, batch)
        named = {name if name.startswith(PREFIX) else f"train/{name}": pair for name, pair in metrics.items()}
        return new_state, PackedMetrics.pack(named | probe_metrics(state.opt_state, new_state.opt_state))

    return packing


def unless_small(
    step: Callable[..., tuple[Any, PackedMetrics]], gradient_norm: float | None
) -> Callable[..., tuple[Any, PackedMetrics]]:
    """The same packed step, but it makes no update, and counts none, where ‖∇L‖ ≤ ε: the state is what was tested."""
    if gradient_norm is None:
        return step

    def testing(state: Any, batch: Any) -> tuple[Any, PackedMetrics]:
        new_state, packed = step(state, batch)
        value = lambda name: packed.pairs[packed.names.index(name), 0]
        is_small = value("train/gradient_norm") <= gradient_norm
        if "train/fault" in packed.names:
            is_small &= value("train/fault") == 0  # a skipped step's gradient says nothing
        return jax.tree.map(lambda old, new: jnp.where(is_small, old, new), state, new_state), packed

    return testing


class Records:
    """The bookkeeping of one call of `train`: metrics in flight, evaluations, the records that come of both."""

    def __init__(
        self,
        workload: Workload,
        parallel: Parallel,
        batches: StepBatches,
        judge: Judge,
        skips: Skips,
        damaged: DamagedExamples,
        observers: Sequence[Observer],
        schedules: Mapping[str, Callable[[Any], Any]],
        steps: int,
        log_every: int,
        evaluate_every: int,
    ):
        self.workload, self.parallel, self.batches, self.judge = workload, parallel, batches, judge
        self.skips, self.damaged = skips, damaged
        self.observers, self.schedules, self.steps = observers, schedules, steps
        self.log_every, self.evaluate_every = log_every, evaluate_every
        self.evaluation = jax.jit(_evaluation(workload.loss), out_shardings=parallel.replicated)
        self.gathered = jax.jit(lambda *model: model, out_shardings=parallel.replicated)
        self.all: list[Record] = []
        self.pending: collections.deque[tuple[int, PackedMetrics]] = collections.deque()
        self.latest: Record = {}
        self.is_unsaved = False
        self.shapes: Any = None
        self.reading = threading.Lock()  # held by whoever takes a training batch: it may be a buffer of the loader's
        self._sound: set[str] = set()  # what was NaN with labels that are classes

    def check_names(self, state: TrainState) -> None:
        """Refuses a target whose metric is never measured, and values of another shape than the batch's.

        Shapes are traced for it, nothing is compiled.
        """
        data, target = self.workload.data, self.judge.target
        evaluate = functools.partial(jax.eval_shape, make_evaluation(self.workload.loss))
        shape = lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype)
        model = self.shapes = jax.tree.map(shape, (state.params, state.model_state))
        try:
            names = evaluate(*model, self.workload.examples(), state.key)
        except ShapeError:
            raise
        except Exception:  # a model may be made for batches of one size alone
            names = evaluate(*model, self.workload.example(), state.key)
        splits = ["train", *(["validation"] if data.validation is not None and len(data.validation) else [])]
        known = [f"{split}/{name}" for split in splits for name in names]
        if target.metric not in known and (target != Target() or self.judge.stop.patience):
            empty = "" if data.validation is None or len(splits) > 1 else ": the validation split holds no examples"
            raise ValueError(f"target.metric must be one of {', '.join(known)}, got {target.metric!r}{empty}")

    @contextlib.contextmanager
    def observed(self, start: int) -> Iterator[None]:
        """Tells the observers of the run's beginning and end."""
        begun: list[Observer] = []
        try:
            for observer in self.observers:
                observer.begin(start, self.steps)
                begun.append(observer)
            yield
        except BaseException as error:
            self.judge.ended = type(error).__name__
            raise
        finally:
            for observer in begun:
                observer.end(self.judge.ended or "finished")

    def push(self, t: int, metrics: PackedMetrics) -> None:
        """Takes a step's metrics, which the device may still be computing; when they are many, reads the older half."""
        self.pending.append((t, metrics))
        if len(self.pending) >= (IN_FLIGHT if self.judge.stop.gradient_norm is None else 1):
            self._read((len(self.pending) + 1) // 2)  # one wait and one copy for many steps

    def drain(self) -> None:
        """Waits for the steps in flight."""
        self._read(len(self.pending))

    def sync(self) -> None:
        """What was told so far outlives the machine: a checkpoint stands for it."""
        for log in self._logs():
            log.sync()

    def dump(self) -> dict[str, Any]:
        """As JSON data, for a checkpoint: how many lines each file holds up to its step."""
        return {"lines": {log.path.name: log.lines for log in self._logs()}}

    def check_lines(self, notes: Mapping[str, Any]) -> None:
        """Says which file doesn't hold the lines any more that were there at the checkpoint: what is gone is gone."""
        for log in self._logs():
            if (lines := notes.get("lines", {}).get(log.path.name, log.lines)) != log.lines:
                print(f"optlab: {log.path} has {log.lines} lines up to here, and had {lines}", file=sys.stderr)

    def _logs(self) -> list[StepLog]:
        """The files of this run, whose lines a checkpoint counts; of several processes the first one's."""
        logs = [observer.log for observer in self.observers if isinstance(observer, MetricsFile)]
        return [*logs, self.skips.log] if self.skips.log is not None and is_first() else logs

    def is_savable(self, t: int, state: TrainState) -> bool:
        """Whether a state's parameters are finite; if not it is refused or, without a guard, said once not to be saved.

        Raises:
          NonFiniteError: under a guard.
        """
        if not non_finite(dict(enumerate(jax.tree.leaves((state.params, state.ema))))):
            return True
        if self.skips.guard is not None:
            raise not_finite(f"step {t}: the parameters aren't finite")
        if not self.is_unsaved and is_first():
            print(f"optlab: step {t}: parameters that aren't finite are never saved (guard=None)", file=sys.stderr)
        self.is_unsaved = True
        return False

    def outcome_at(self, t: int, state: TrainState) -> str | None:
        """Evaluates after step t if that is due; how the run ends there, if it does."""
        converged = self.judge.converged(self.latest)
        if not (self._is_evaluated(t) or converged):
            return None
        self.drain()
        record = self.latest
        record |= self._evaluate("validation", state)
        # The values are those of the state, which after a step that only tested the gradient is one update behind.
        stopped = self.judge({**record, "step": int(state.step)} if converged else record)
        outcome = CONVERGED if converged else "finished" if t == self.steps else stopped
        if outcome:
            self.judge.ended = outcome
            record |= self._evaluate("test", state)
        self._emit(record)
        return outcome

    def _is_evaluated(self, t: int) -> bool:
        return t % self.evaluate_every == 0 or t == self.steps

    def _read(self, count: int) -> None:
        """Turns the metrics of the oldest steps into records; one that is at fault may end the run."""
        for t, metrics in [self.pending.popleft() for _ in range(count)]:
            values = _means(metrics.sums())
            if bad := self._unexplained(values):
                with self.reading:
                    self._check_labels(f"step {t}", self.batches.batch(t - 1))
                self._sound |= bad - ({"train/loss"} if self.skips.guard is not None else set())
            self.latest = self.skips({"step": t, **values})
            is_rare = has_spectrum(values) or any(name.startswith(PREFIX) for name in values)
            is_due = t % self.log_every == 0 or is_rare  # what is measured seldom isn't lost
            if is_due or self._is_evaluated(t):
                self.latest |= {
                    name: float(schedule(self.skips.updates(t))) for name, schedule in self.schedules.items()
                }
            if is_due and not self._is_evaluated(t) and not self.judge.converged(self.latest):
                self._emit(self.latest)

    def _emit(self, record: Record) -> None:
        self.all.append(record)
        for observer in self.observers:
            observer.record(record)

    def _evaluate(self, split: str, state: TrainState) -> Record:
        """Means over a whole split; the last batch may be short, since sums and weights are added up."""
        data: Split | None = getattr(self.workload.data, split)
        if data is None:
            return {}
        params = evaluation_params(state)
        sums: dict[str, np.ndarray] = collections.defaultdict(lambda: np.zeros(2))
        pending: collections.deque[PackedMetrics] = collections.deque()

        def add(metrics: PackedMetrics) -> None:
            for name, pair in metrics.sums().items():
                sums[name] += pair

        size, step = self.workload.batch_size, int(self.latest["step"])
        on_damage = lambda found: self.damaged.add(step, split, found.items())
        for i, batch in enumerate(evaluation_batches(data, size, self.parallel.rows, on_damage)):
            placed = self.parallel.place_batch(batch, min(size, len(data) - i * size))
            model = self._on_every(params, state.model_state, placed)
            pending.append(self.evaluation(*model, placed, state.key))
            if len(pending) > IN_FLIGHT:
                add(pending.popleft())
        for metrics in pending:
            add(metrics)
        values = {f"{split}/{name}": value for name, value in _means(sums).items()}
        if bad := self._unexplained(values):
            for i, batch in enumerate(evaluation_batches(data, size)):
                self._check_labels(f"{split} examples from {i * size} on", batch)
            self._sound |= bad
        return values

    def _unexplained(self, values: Mapping[str, float]) -> set[str]:
        """What is NaN, but for what was NaN before with sound labels: a look at them costs a trace of the model."""
        return {name for name, value in values.items() if math.isnan(value)} - self._sound

    def _check_labels(self, where: str, batch: Any) -> None:
        """Looks for the cause of a NaN in a batch's labels, which a program on the device can't refuse.

        Raises:
          DataError: if one that counts is no class of the outputs.
        """
        loss, key = make_evaluation(self.workload.loss), jax.random.key(0)
        try:
            jax.eval_shape(lambda params, model_state: loss(params, model_state, batch, key), *self.shapes)
        except DataError as error:
            raise DataError(f"{where}: {error}") from None

    def _on_every(self, params: Any, model_state: Any, placed: Any) -> tuple[Any, Any]:
        """Parameters and model state; whole on every device where the batch is, since it can't be divided.

        Divided parameters and a whole batch came to wrong numbers on 3 × 2 devices (XLA's partitioner, jax 0.10.2).
        """
        is_divided = any(not x.sharding.is_fully_replicated for x in jax.tree.leaves(params))
        if not is_divided or any(not x.sharding.is_fully_replicated for x in jax.tree.leaves(placed)):
            return params, model_state
        return self.gathered(params, model_state)


def _evaluation(loss: Loss) -> Callable[..., PackedMetrics]:
    evaluate = make_evaluation(loss)
    return lambda *args: PackedMetrics.pack(evaluate(*args))


def _means(sums: dict[str, np.ndarray]) -> dict[str, float]:
    """The means by name, without what wasn't measured: by a probe, or of a batch in which no example counts."""
    return {name: float(total / weight) for name, (total, weight) in sums.items() if weight}
