"""Evaluations: means over a whole split, and a look at the labels where a value is NaN."""

from __future__ import annotations

import collections
import functools
import math
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import jax
import numpy as np

from optlab._trees import shapes_of
from optlab.config import Target
from optlab.data import Batch, DataError, Split, evaluation_batches
from optlab.data.batches import evaluation_starts
from optlab.runs import Record
from optlab.training.damaged import DamagedExamples
from optlab.training.packed import PackedMetrics, means
from optlab.training.state import TrainState, evaluation_params
from optlab.training.step import make_evaluation
from optlab.training.strategies import IN_FLIGHT, Parallel
from optlab.training.workload import Loss, ShapeError, Workload


class Labels:
    """Looks for the cause of a NaN in the labels, which a program on the device can't refuse.

    Args:
        loss: the workload's.
        state: any of the run's, for its shapes.
    """

    def __init__(self, loss: Loss, state: TrainState):
        self.loss = make_evaluation(loss)
        self.model = shapes_of((state.params, state.model_state))
        self._sound: set[str] = set()  # what was NaN with labels that are classes: a look costs a trace of the model

    def check(
        self, values: Mapping[str, float], batches: Iterable[tuple[str, Batch]], *, always: frozenset[str] = frozenset()
    ) -> None:
        """Looks at the batches if one of their values is NaN, and wasn't with sound labels before.

        Args:
            values: means by name.
            batches: what they were measured on, each with its name; it is read if there is a NaN.
            always: names for which a look is worth its cost every time.

        Raises:
            DataError: if a label that counts is no class of the outputs.
        """
        bad = {name for name, value in values.items() if math.isnan(value)} - self._sound
        if not bad:
            return
        for where, batch in batches:
            try:
                self._trace(batch)
            except DataError as error:
                raise type(error)(f"{where}: {error}") from None
        self._sound |= bad - always

    def _trace(self, batch: Batch) -> None:
        key = jax.random.key(0)
        jax.eval_shape(lambda params, model_state: self.loss(params, model_state, batch, key), *self.model)


class Evaluator:
    """Evaluates a state on a whole split, on the devices of a run."""

    def __init__(self, workload: Workload, parallel: Parallel, damaged: DamagedExamples, labels: Labels):
        self.workload, self.parallel, self.damaged, self.labels = workload, parallel, damaged, labels
        self.evaluation = jax.jit(_packed(workload.loss), out_shardings=parallel.replicated)
        self.gathered = jax.jit(lambda *model: model, out_shardings=parallel.replicated)

    def check_target(self, target: Target, *, is_needed: bool) -> None:
        """Refuses a target whose metric is never measured, and values of another shape than the batch's.

        Shapes are traced for it, nothing is compiled.

        Args:
            target: the workload's.
            is_needed: whether something waits for it.
        """
        data, evaluate = self.workload.data, functools.partial(jax.eval_shape, make_evaluation(self.workload.loss))
        key = jax.random.key(0)
        try:
            names = evaluate(*self.labels.model, self.workload.examples(), key)
        except ShapeError:
            raise
        except Exception:  # a model may be made for batches of one size alone
            names = evaluate(*self.labels.model, self.workload.example(), key)
        splits = ["train", *(["validation"] if data.validation is not None and len(data.validation) else [])]
        known = [f"{split}/{name}" for split in splits for name in names]
        if target.metric not in known and (target != Target() or is_needed):
            empty = "" if data.validation is None or len(splits) > 1 else ": the validation split holds no examples"
            raise ValueError(f"target.metric must be one of {', '.join(known)}, got {target.metric!r}{empty}")

    def __call__(self, split: str, state: TrainState, t: int, batches: int | None = None) -> Record:
        """Means over a split, or so many of its batches, by "<split>/<name>", after step t; nothing if it isn't there.

        The last batch may be short, since sums and weights are added up.
        """
        data: Split | None = getattr(self.workload.data, split)
        if data is None:
            return {}
        params, size = evaluation_params(state), self.workload.batch_size
        sums: dict[str, np.ndarray] = collections.defaultdict(lambda: np.zeros(2))
        in_flight: collections.deque[PackedMetrics] = collections.deque()

        def add(metrics: PackedMetrics) -> None:
            for name, pair in metrics.sums().items():
                sums[name] += pair

        def on_damage(found: Mapping[int, str]) -> None:
            self.damaged.add(t, split, found.items())

        starts = evaluation_starts(data, size, batches)
        read = evaluation_batches(data, size, self.parallel.rows, on_damage, batches=batches)
        for start, batch in zip(starts, read, strict=True):
            placed = self.parallel.place_batch(batch, min(size, len(data) - start))
            model = self._on_every(params, state.model_state, placed)
            in_flight.append(self.evaluation(*model, placed, state.key))
            if len(in_flight) > IN_FLIGHT:
                add(in_flight.popleft())
        for metrics in in_flight:
            add(metrics)
        values = {f"{split}/{name}": value for name, value in means(sums).items()}
        again = zip(starts, evaluation_batches(data, size, batches=batches), strict=True)
        self.labels.check(values, ((f"{split} examples from {start} on", batch) for start, batch in again))
        return values

    def _on_every(self, params: Any, model_state: Any, placed: Any) -> tuple[Any, Any]:
        """Parameters and model state; whole on every device where the batch is, since it can't be divided.

        Divided parameters and a whole batch came to wrong numbers on 3 × 2 devices (XLA's partitioner, jax 0.10.2).
        """
        is_divided = any(not x.sharding.is_fully_replicated for x in jax.tree.leaves(params))
        if not is_divided or any(not x.sharding.is_fully_replicated for x in jax.tree.leaves(placed)):
            return params, model_state
        return self.gathered(params, model_state)


def _packed(loss: Loss) -> Callable[..., PackedMetrics]:
    evaluate = make_evaluation(loss)
    return lambda *arguments: PackedMetrics.pack(evaluate(*arguments))
