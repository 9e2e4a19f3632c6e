"""Flax models as pure functions, Linen's and NNX's alike."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn
from flax import nnx

from optlab.data import Source, as_batches
from optlab.training import modes

Params = Any
ModelState = Any
Init = Callable[[jax.Array], tuple[Params, ModelState]]
Apply = Callable[[Params, ModelState, Any, jax.Array, bool], tuple[Any, ModelState]]


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
