"""Workloads: a pair of pure functions, a source of data, and a target."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from jax.sharding import AbstractMesh, AxisType
from jax.sharding import PartitionSpec as P

from optlab.config import Target
from optlab.data import Batch, Draw, Source, as_batches, as_source, digits, evaluation_batches
from optlab.data._types import describe
from optlab.roles import Layout, read_program
from optlab.roles._layout import Override
from optlab.training import losses
from optlab.training.functions import Apply, Init, ModelState, Params, as_functions
from optlab.training.mistakes import check_model, check_workload, checked_init
from optlab.training.reductions import wide

Metrics = dict[str, tuple[jax.Array, jax.Array]]
Loss = Callable[[Params, ModelState, Batch, jax.Array, bool], tuple[jax.Array, tuple[ModelState, Metrics]]]
Metric = Callable[[Any, Batch], jax.Array]

# Shapes alone are traced with a batch of twice as many examples, of which nobody has a multiple by chance: where its
# square divides the number of a loss's values, there is one for every pair of examples.
PRIME = 211


class ShapeError(ValueError):
    """A loss or metric whose values have neither the batch's shape nor none."""


@dataclass(frozen=True, repr=False)
class Workload:
    """A model and its loss as two pure functions, with the data and the target. `print` shows what it is.

    Make one with `from_model`, or directly from two functions of your own.

    Attributes:
        name: for the log.
        data: a `Source`, or anything that has `train`, `validation` and `test`; `train` may be a split, an object with
            `batch(step)`, or a Grain MapDataset; `validation` and `test` may be None. Arrays, as (inputs, labels) or
            {"inputs": …, "labels": …}, become the source that `optlab.data.arrays` makes of them.
        init: key -> (params, model_state); model_state holds what training changes without a gradient, such as
            BatchNorm's running statistics ({} if there is nothing).
        loss: (params, model_state, batch, key, train) -> (scalar, (model_state, metrics)). metrics are (sum, weight) by
            name, so that means over devices, microbatches and short last batches are exact; "loss" is one of them, and
            its sum / weight is the scalar.
        batch_size: examples an update, where `data.train` is a split.
        target: what counts as better, and what is good enough.
        draw: how a split's examples are drawn, see `optlab.data.Batches`.
        apply: (params, model_state, inputs, key, train) -> (outputs, model_state), for predictions; None where the loss
            is all that is known of the model.
        roles: what you know better than the program shows of parameters' roles and matrix axes, by path or pattern, as
            `optlab.roles.Layout.override` takes it: {"block_*/mixer/kernel": "matrix"}.

    Raises:
        TypeError: for an argument of another kind; DataError for arrays that can't be used.
    """

    name: str
    data: Source
    init: Init
    loss: Loss
    batch_size: int = 128
    target: Target = field(default_factory=Target)
    draw: Draw = "shuffled"
    apply: Apply | None = None
    roles: Mapping[str, Override] = field(default_factory=dict)

    def __post_init__(self) -> None:
        check_workload(self.init, self.loss, self.batch_size, self.target)
        object.__setattr__(self, "data", as_source(self.data))

    def __str__(self) -> str:
        goal = self.target.value is not None and f", to {self.target.value:g}"
        return "\n".join(
            [
                f"{self._model()}, batches of {self.batch_size}, {self.draw}",
                f"  target      {self.target.metric}, {self.target.mode}{goal or ''}",
                *(f"  {line}" for line in describe(self.data)),
            ]
        )

    __repr__ = __str__

    def sizes(self) -> str:
        """The sizes of data, model and batches, in a line."""
        facts = ", ".join(f"{name} {value}" for name, value in getattr(self.data, "facts", {}).items())
        return f"{describe(self.data)[0]}{facts and f' ({facts})'}; {self._model()}; batches of {self.batch_size}"

    def _model(self) -> str:
        params, _ = jax.eval_shape(checked_init(self.init), jax.random.key(0))
        return f"{self.name}: {sum(math.prod(x.shape) for x in jax.tree.leaves(params)):,} parameters"

    def example(self) -> Batch:
        """A training batch of one example, for shapes (the whole batch, where the data makes its own batches)."""
        return as_batches(self.data.train, 1, 0).batch(0)

    def examples(self) -> Batch:
        """The shapes of a batch of a number of examples that is no other axis' length; see `PRIME`."""

        def shape(x: Any) -> Any:
            return jax.ShapeDtypeStruct((2 * PRIME, *np.shape(x)[1:]), jnp.result_type(x))

        return jax.tree.map(shape, self.example())

    def layout(self, axis_name: str | None = None) -> Layout:
        """The role and matrix axes of every parameter, read from the loss in training; nothing is computed.

        Args:
            axis_name: the mapped axis (pmap) that the model's own means are over, if it has such.
        """

        def loss(params: Params, model_state: ModelState, batch: Batch, key: jax.Array) -> jax.Array:
            return self.loss(params, model_state, batch, key, True)[0]

        if axis_name is not None:
            mesh = AbstractMesh((1,), (axis_name,), axis_types=(AxisType.Auto,))
            loss = jax.shard_map(loss, mesh=mesh, in_specs=P(), out_specs=P(), check_vma=False)
        key = jax.random.key(0)
        params, model_state = jax.eval_shape(self.init, key)
        return read_program(loss, params, model_state, self.examples(), key).override(self.roles)

    def unweighted(self, split: str) -> list[str]:
        """The metrics, "loss" among them, that count an example of a split although its "weight" is 0."""
        batch = self.example() if split == "train" else next(evaluation_batches(getattr(self.data, split), 1))
        batch = {**batch, "weight": np.zeros_like(batch["weight"])}

        def weights(key: jax.Array) -> Any:
            params, model_state = self.init(key)
            metrics = self.loss(params, model_state, batch, key, False)[1][1]
            return {name: weight for name, (_, weight) in metrics.items()}

        return [name for name, weight in jax.jit(weights)(jax.random.key(0)).items() if weight != 0]

    @staticmethod
    def from_model(
        model: Any,
        data: Source,
        *,
        loss: Metric = losses.cross_entropy,
        metrics: Mapping[str, Metric] | None = None,
        batch_size: int = 128,
        draw: Draw = "shuffled",
        target: Target | None = None,
        roles: Mapping[str, Override] | None = None,
    ) -> Workload:
        """A workload from a Flax model, data and a loss.

        Args:
            model: a Linen module, or a function `rngs -> nnx.Module`, called as `model(inputs)`. Arguments of its call,
                fields and attributes that choose the mode (`train`, `training`, `deterministic`, `use_running_average`,
                …) are set; a Linen module's rng stream is "dropout".
            data: whose batches hold "inputs", what the loss reads ("labels"), and perhaps "weight", one for every
                value of the loss; or arrays, as (inputs, labels) or {"inputs": …, "labels": …}.
            loss: (outputs, batch) -> a value for every example or position, or the mean of them as a scalar.
            metrics: what else is measured, by name, in the same form.
            batch_size: examples an update.
            draw: how they are drawn: "shuffled" every epoch, with "replacement", "ordered" or as a "stream".
            target: what counts as better; by default a lower validation loss.
            roles: what you know better of the parameters' roles, as for `Workload`.
        """
        check_model(model, loss, metrics)
        data = as_source(data)
        taken = {"loss", "gradient_norm", "fault", "loss_z"} & set(metrics or {})
        if taken:
            raise ValueError(f"metrics can't be named {', '.join(sorted(taken))}: the step has values of that name")
        measures = {"loss": loss, **(metrics or {})}
        init, apply = as_functions(model, data)

        def loss_fn(params: Params, model_state: ModelState, batch: Batch, key: jax.Array, train: bool) -> Any:
            outputs, model_state = apply(params, model_state, batch["inputs"], key, train)
            sums = {name: _sum(name, f(outputs, batch), batch) for name, f in measures.items()}
            total, weight = sums["loss"]
            # A part of a batch (a device's, a microbatch) may have no weight at all; its share of the mean is 0.
            return total / jnp.where(weight > 0, weight, 1), (model_state, sums)

        name = type(model).__name__ if isinstance(model, nn.Module) else getattr(model, "__name__", "model")
        return Workload(name, data, init, loss_fn, batch_size, target or Target(), draw, apply, roles or {})

    @staticmethod
    def digits(*, batch_size: int = 128) -> Workload:
        """The embedded default: a small MLP on scikit-learn's 8×8 digits, to 97 % of the validation images."""
        from optlab.models import mlp

        return Workload.from_model(
            mlp(outputs=10),
            digits(),
            metrics={"accuracy": losses.accuracy},
            batch_size=batch_size,
            target=Target(metric="validation/accuracy", mode="max", value=0.97),
        )


def _sum(name: str, values: jax.Array, batch: Batch) -> tuple[jax.Array, jax.Array]:
    """(Σ weight · value, Σ weight), in at least float32; a scalar is the mean over the examples."""
    values = wide(jnp.asarray(values))
    examples = len(jax.tree.leaves(batch)[0])
    if values.ndim == 0:
        count = jnp.asarray(examples, values.dtype)
        return values * count, count
    each, rest = divmod(values.size, examples)
    if rest or (examples % PRIME == 0 and each % PRIME == 0):
        pairs = "" if rest else ", one for every pair of examples: outputs (B, 1) less labels (B,) are (B, B)"
        raise ShapeError(
            f"{name} must give a value for every example or position, or one for the batch as a scalar; of "
            f"{examples} examples it gives the shape {values.shape}{pairs}"
        )
    if "weight" not in batch:
        return jnp.sum(values), jnp.asarray(values.size, values.dtype)
    weight = jnp.asarray(batch["weight"])
    weight = weight.astype(jnp.promote_types(values.dtype, weight.dtype))  # a sum in float32 hangs on its order
    if weight.shape != values.shape:
        raise ValueError(f"weight must have the loss's shape {values.shape}, one for every value, got {weight.shape}")
    return jnp.sum(jnp.where(weight > 0, values, 0) * weight), jnp.sum(weight)
