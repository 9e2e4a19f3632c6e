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
from flax import nnx
from jax.sharding import AbstractMesh, AxisType
from jax.sharding import PartitionSpec as P

from optlab.config import Target
from optlab.data import Batch, Draw, Source, as_batches, as_source, digits, evaluation_batches
from optlab.data._types import describe
from optlab.roles import Layout, read_program
from optlab.training import losses, modes
from optlab.training.mistakes import check_model, check_workload
from optlab.training.reductions import wide

Params = Any
ModelState = Any
Metrics = dict[str, tuple[jax.Array, jax.Array]]
Init = Callable[[jax.Array], tuple[Params, ModelState]]
Loss = Callable[[Params, ModelState, Batch, jax.Array, bool], tuple[jax.Array, tuple[ModelState, Metrics]]]
Metric = Callable[[Any, Batch], jax.Array]
Apply = Callable[[Params, ModelState, Any, jax.Array, bool], tuple[Any, ModelState]]

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

    def __post_init__(self) -> None:
        check_workload(self.init, self.loss, self.batch_size, self.target)
        object.__setattr__(self, "data", as_source(self.data))

    def __str__(self) -> str:
        params, _ = jax.eval_shape(self.init, jax.random.key(0))
        count = sum(math.prod(x.shape) for x in jax.tree.leaves(params))
        goal = self.target.value is not None and f", to {self.target.value:g}"
        return "\n".join(
            [
                f"{self.name}: {count:,} parameters, batches of {self.batch_size}, {self.draw}",
                f"  target      {self.target.metric}, {self.target.mode}{goal or ''}",
                *(f"  {line}" for line in describe(self.data)),
            ]
        )

    __repr__ = __str__

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
        return read_program(loss, params, model_state, self.examples(), key)

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
        return Workload(name, data, init, loss_fn, batch_size, target or Target(), draw, apply)

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


def as_functions(model: Any, data: Source) -> tuple[Init, Apply]:
    """A Flax model, as `Workload.from_model` takes it, as two pure functions. The data's first example gives shapes."""

    def example() -> Any:
        return as_batches(data.train, 1, 0).batch(0)["inputs"]

    return _linen(model, example) if isinstance(model, nn.Module) else _nnx(model)


def _linen(model: nn.Module, example: Callable[[], Any]) -> tuple[Init, Apply]:
    """A Linen module as two pure functions."""
    call = type(model).__call__
    by_call = modes.of_call(call)
    by_field = {name: x for name, x in modes.of_fields(model).items() if name not in by_call}

    def in_mode(train: bool) -> nn.Module:
        fields: dict[str, Any] = dict(modes.at(by_field, train))
        return model.clone(**fields) if fields else model

    def init(key: jax.Array) -> tuple[Params, ModelState]:
        inputs = jax.tree.map(jnp.array, example())
        arguments, settings = modes.placed(call, modes.at(by_call, False))
        model_state = dict(in_mode(False).init(key, inputs, *arguments, **settings))
        params = model_state.pop("params", {})

        def used(model_state: ModelState) -> ModelState:
            variables = {"params": params, **model_state}
            return in_mode(False).apply(variables, inputs, *arguments, mutable=list(model_state), **settings)[1]

        for name in _sown(model_state, used):
            del model_state[name]
        return params, _as_wide_as(params, model_state)

    def apply(params: Params, model_state: ModelState, inputs: Any, key: jax.Array, train: bool) -> Any:
        variables = {"params": params, **model_state}
        mutable = list(model_state) if train else False
        arguments, settings = modes.placed(call, modes.at(by_call, train))
        with modes.watched(train, is_chosen=bool(by_call or by_field)):
            outputs = in_mode(train).apply(
                variables, inputs, *arguments, rngs={"dropout": key}, mutable=mutable, **settings
            )
        return outputs if train else (outputs, model_state)

    return init, apply


def _sown(model_state: ModelState, used: Callable[[ModelState], ModelState]) -> list[str]:
    """The collections that the model sows into: each use appends to their tuples, so that they are no state."""

    def is_tuple(x: Any) -> bool:
        return isinstance(x, tuple)

    held = {
        name: tree for name, tree in model_state.items() if any(map(is_tuple, jax.tree.leaves(tree, is_leaf=is_tuple)))
    }
    after: Any = jax.eval_shape(used, model_state) if held else {}
    structure: Callable[[Any], Any] = jax.tree.structure
    return [name for name, tree in held.items() if structure(tree) != structure(after[name])]


def _as_wide_as(params: Params, model_state: ModelState) -> ModelState:
    """Flax starts running statistics in float32, which a step of a float64 model would turn into float64."""
    dtype = jnp.result_type(jnp.float32, *jax.tree.leaves(params))

    def widen(x: jax.Array) -> jax.Array:
        return x.astype(jnp.promote_types(x.dtype, dtype)) if jnp.issubdtype(x.dtype, jnp.floating) else x

    return jax.tree.map(widen, model_state)


def _nnx(make: Callable[[nnx.Rngs], nnx.Module]) -> tuple[Init, Apply]:
    """A function that makes an NNX module as two pure functions; what isn't an nnx.Param is model state."""
    if isinstance(make, nnx.Module) or not callable(make):
        raise TypeError(f"model must be a Linen module or a function rngs -> nnx.Module, got {type(make).__name__}")

    def split(model: nnx.Module) -> tuple[Params, ModelState]:
        state: Any = nnx.state(model)
        params, model_state = nnx.split_state(state, nnx.Param, ...)
        return params, model_state

    def init(key: jax.Array) -> tuple[Params, ModelState]:
        return split(make(nnx.Rngs(key)))

    shape = nnx.eval_shape(lambda: make(nnx.Rngs(0)))
    graph, by_call, by_field = nnx.graphdef(shape), modes.of_call(type(shape).__call__), modes.of_fields(shape)
    paths = {path for path, _ in nnx.to_flat_state(nnx.state(shape))}

    def apply(params: Params, model_state: ModelState, inputs: Any, key: jax.Array, train: bool) -> Any:
        keys, others = nnx.split_state(model_state, nnx.RngKey, ...)
        model = nnx.merge(graph, params, _folded(keys, key), others, copy=True)
        modes.set_all(model, train)
        with modes.watched_nnx(model, train, is_chosen=bool(by_call or by_field)):
            outputs = model(inputs, **modes.at(by_call, train))
        if not train:
            return outputs, model_state
        kept = nnx.filter_state(split(model)[1], lambda path, _: path in paths)  # what a model sows is no state
        _, others = nnx.split_state(kept, nnx.RngKey, ...)
        return outputs, nnx.merge_state(keys, others)

    return init, apply


def _folded(keys: Any, key: jax.Array) -> Any:
    """A module's keys for one step, of which every device (and microbatch) has a `key` of its own."""
    bits = jax.random.bits(key)

    def fold(x: Any) -> Any:
        return jax.vmap(lambda x: jax.random.fold_in(x, bits))(x.reshape(-1)).reshape(x.shape)

    return jax.tree.map(fold, keys)


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
