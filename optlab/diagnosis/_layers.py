"""The layers of a model at one state: weights, gradients and what moved; its outputs, and the operation they end in."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from optlab.data import Batch
from optlab.diagnosis._programs import (
    EXAMPLES,
    bounded_logits,
    crossed,
    first_examples,
    last_operation,
    nodes_of,
    nonlinearity,
    outputs_of,
    read_numbers,
)
from optlab.roles import LayoutError, read_names

ITERATIONS = 20


@dataclass(frozen=True)
class Layer:
    """One parameter.

    Attributes:
        path: such as "dense_0/kernel".
        role: as the program shows it, or names; None where nothing does.
        is_input: whether no product of a parameter lies before it; None where only names are known.
        shape: its shape.
        weight: the norm of its values,
        gradient: and of its gradient, of one batch.
        first_gradient: the norm of its gradient at the initialization; None where that isn't known.
        first_weight: the norm of its values there; None where that isn't known.
        dead: the share of its units (output columns) whose gradient is exactly 0; None where it has no units.
        is_symmetric: whether all units have the same weights and the same gradient, so that they stay alike.
        moved: the share of its entries that aren't what they were at the initialization; None where that isn't known.
        stuck: the share of the entries with a gradient that still are; None where that isn't known.
        turned: the spectral norm of what its values have changed since then over their own; None: not known.
        bits: of the mantissa of its dtype: 23 in float32, 7 in bfloat16.
        is_used: whether the loss depends on it, as its program shows; None where that can't be read.
    """

    path: str
    role: str | None
    shape: tuple[int, ...]
    weight: float
    gradient: float
    dead: float | None = None
    is_symmetric: bool = False
    moved: float | None = None
    stuck: float | None = None
    bits: int = 23
    is_input: bool | None = None
    first_gradient: float | None = None
    turned: float | None = None
    first_weight: float | None = None
    is_used: bool | None = None

    @property
    def is_matrix(self) -> bool:
        return self.role in ("matrix", "conv", "head")


@dataclass(frozen=True)
class ModelProbe:
    """A model at one state.

    Attributes:
        step: updates before it.
        layers: its parameters, in the tree's order.
        loss: on the batch.
        first_loss: of the initialization on the same batch.
        labels: the batch's; None if it has none.
        outputs: of the model on the batch, or on its first examples; None where neither the workload nor the program of
            its loss shows them.
        first_outputs: those of the initialization.
        end: the operation that the outputs end in: "softmax", "logistic", "tanh", "relu", or None for a sum.
        is_cross_entropy: whether the loss is the cross-entropy of the outputs as logits.
        bounded: the nonlinearity that the loss takes the log-softmax of, as its program shows; None: of none.
        is_crossed: whether the program subtracts every label from every output, (N, 1) − (N,) being (N, N).
        first_saturation: of the layers of each kind of nonlinearity at the initialization, as `read_numbers` has it,
        saturation: and at the state.
        sees_ahead: whether outputs at a place of a sequence depend on tokens behind it; None where there are none.
        association: by how many deviations of chance the held-out loss lies below what it is with the labels shuffled;
            None where there are no held-out labels.
        orthogonalized: heads and embeddings that a rule for hidden matrices moves.
        uphill: the least cosine of the first updates with their gradients; None where it isn't known.
        climbing: parameters whose own cosine is large in each of them, where others descend.
        step_size: the norm of the first over that of the weights; None where a learning rate is known of the optimizer.
        clip: the norm that a longer gradient is cut to, as the updates show; None where none is seen.
        is_frozen_by_name: whether the optimizer calls a part of the parameters frozen.
        began: the parameter in which a divergence began, with the step; None where nothing diverged.
    """

    step: int
    layers: tuple[Layer, ...]
    loss: float
    first_loss: float
    labels: np.ndarray | None = None
    outputs: np.ndarray | None = None
    first_outputs: np.ndarray | None = None
    end: str | None = None
    is_cross_entropy: bool = False
    bounded: str | None = None
    is_crossed: bool = False
    first_saturation: Mapping[str, float] = field(default_factory=dict)
    saturation: Mapping[str, float] = field(default_factory=dict)
    sees_ahead: bool | None = None
    association: float | None = None
    orthogonalized: tuple[str, ...] = ()
    uphill: float | None = None
    climbing: tuple[str, ...] = ()
    step_size: float | None = None
    clip: float | None = None
    is_frozen_by_name: bool = False
    began: tuple[str, int] | None = None

    def signal(self, outputs: np.ndarray | None) -> float | None:
        """How much outputs differ from example to example, where 1 is what a loss can see; None where that isn't known.

        Of logits their standard deviation, since softmax sees their differences; else it over that of the labels.
        """
        labels = self.labels
        if outputs is None or labels is None or len(outputs) < 2 or not np.isfinite(outputs).all():
            return None
        spread = float(outputs.std(axis=0).max())
        if self.is_cross_entropy:
            return spread
        scale = float(labels.std()) if labels.dtype.kind == "f" and labels.size == outputs.size else 0.0
        return spread / scale if scale > 0 else None


def probe_model(workload: Any, state: Any, first: Any, batch: Batch, *, is_own: bool, **found: Any) -> ModelProbe:
    """Measures a model at a state, by one batch.

    Args:
        workload: what is trained: loss, apply and layout.
        state: the state, such as a checkpoint's: step, params, model_state, key.
        first: the state before the first step.
        batch: training examples.
        is_own: whether `first` is the run's own initialization, so that the two can be compared entry by entry.
        **found: further attributes of the result.
    """

    # The batch is an argument, as in training: a loss may refuse labels that it can read, and a rule names them better.
    def value(params: Any, model_state: Any, batch: Batch, key: Any, is_training: bool) -> Any:
        return workload.loss(params, model_state, batch, key, is_training)[0]

    gradient = jax.jit(functools.partial(jax.value_and_grad(value), is_training=True))
    loss, grads = gradient(state.params, state.model_state, batch, state.key)
    first_loss, first_grads = gradient(first.params, first.model_state, batch, first.key)
    outputs = first_outputs = end = sees_ahead = None
    is_cross_entropy = False
    labels = np.asarray(batch["labels"]) if "labels" in batch else None
    if workload.apply is not None:

        def apply(params: Any, model_state: Any) -> Any:
            return workload.apply(params, model_state, batch["inputs"], state.key, False)[0]

        run = jax.jit(apply)
        outputs, first_outputs = run(state.params, state.model_state), run(first.params, first.model_state)
        end = last_operation(jax.make_jaxpr(apply)(first.params, first.model_state).jaxpr)
        outputs, first_outputs = map(_numbers, (outputs, first_outputs))
        evaluate = jax.jit(functools.partial(value, is_training=False))
        evaluated = evaluate(first.params, first.model_state, batch, state.key)
        is_cross_entropy = is_the_loss(float(evaluated), first_outputs, labels)
        sees_ahead = _sees_ahead(workload, state, batch["inputs"], outputs)
    before = jax.tree.leaves(first.params) if is_own else [None] * len(jax.tree.leaves(state.params))
    used, of_program = _program(workload, state, first, batch)
    readings = readings_of(workload, state.params)
    layers = [
        _layer(path, reading, *map(np.asarray, (x, g, g0)), before=None if x0 is None else np.asarray(x0), is_used=u)
        for (path, reading), x, g, g0, x0, u in zip(
            readings.items(), *map(jax.tree.leaves, (state.params, grads, first_grads)), before, used, strict=True
        )
    ]
    measured: dict[str, Any] = {"labels": labels, "outputs": outputs, "first_outputs": first_outputs, "end": end}
    measured |= {"is_cross_entropy": is_cross_entropy, "sees_ahead": sees_ahead, **of_program}
    return ModelProbe(int(state.step), tuple(layers), float(loss), float(first_loss), **measured, **found)


def _program(workload: Any, state: Any, first: Any, batch: Batch) -> tuple[list[bool | None], dict[str, Any]]:
    """Of each parameter whether the loss depends on it, and what else the program of the loss shows."""
    count = len(jax.tree.leaves(first.params))
    if len(jax.tree.leaves(batch)[0]) < EXAMPLES:
        return [None] * count, {}

    def training(*args: Any) -> Any:
        return workload.loss(*args, True)[0]

    def evaluation(*args: Any) -> Any:
        return workload.loss(*args, False)[0]

    few = first_examples(batch)
    before, now = ((x.params, x.model_state, few, x.key) for x in (first, state))
    try:
        value, nodes = nodes_of(training, *before)
        start, end = read_numbers(evaluation, before, now)
    except Exception:  # a loss that can't be traced so: for other numbers of examples, or without its mesh
        return [None] * count, {}
    shown: dict[str, Any] = {"bounded": bounded_logits(nodes), "is_crossed": crossed(nodes)}
    shown |= {"first_saturation": start.saturation, "saturation": end.saturation}
    made = outputs_of(nodes)
    if workload.apply is None and made is not None and start.outputs is not None:
        labels = few["labels"]
        shown |= {"labels": labels, "outputs": end.outputs, "first_outputs": start.outputs, "end": nonlinearity(made)}
        shown["is_cross_entropy"] = is_the_loss(start.loss, start.outputs, labels)
    return [at in value.roots for at in range(count)], shown


def _sees_ahead(workload: Any, state: Any, inputs: Any, outputs: np.ndarray | None) -> bool | None:
    """Whether outputs (N, T, V) in the first half of sequences (N, T) change with the tokens of the second half."""
    tokens: np.ndarray = np.asarray(inputs) if hasattr(inputs, "shape") else np.zeros(0)
    if outputs is None or tokens.dtype.kind not in "iu" or tokens.ndim != 2 or tokens.shape[1] < 4:
        return None
    if outputs.ndim != 3 or outputs.shape[:2] != tokens.shape or not np.isfinite(outputs).all():
        return None
    half = tokens.shape[1] // 2
    others = np.concatenate([tokens[:, :half], tokens[::-1, half:]], axis=1)
    changed = _numbers(workload.apply(state.params, state.model_state, others, state.key, False)[0])
    assert changed is not None
    moved = np.abs(changed - outputs)[:, :half].max()
    return bool(moved > 1e-3 * np.abs(outputs).max())


def is_the_loss(value: float, outputs: np.ndarray | None, labels: np.ndarray | None) -> bool:
    """True if a loss is the mean cross-entropy of outputs (…, C) with integer labels (…)."""
    if outputs is None or labels is None or labels.dtype.kind not in "iu" or outputs.shape[:-1] != labels.shape:
        return False
    if labels.min() < 0 or labels.max() >= outputs.shape[-1]:
        return False
    top = outputs.max(axis=-1, keepdims=True)
    normalizers = np.log(np.exp(outputs - top).sum(axis=-1)) + top[..., 0]
    own = np.mean(normalizers - np.take_along_axis(outputs, labels[..., None], axis=-1)[..., 0])
    return bool(abs(own - value) <= 1e-3 * max(1.0, abs(own)))


def _numbers(outputs: Any) -> np.ndarray | None:
    return np.asarray(outputs, np.float64) if hasattr(outputs, "shape") else None  # a tree of outputs isn't looked at


def readings_of(workload: Any, params: Any) -> Mapping[str, Any]:
    """The readings of the parameters by their paths: as the program shows them, or names."""
    try:
        return workload.layout().readings
    except (LayoutError, TypeError, ValueError):  # a program that can't be read
        return read_names(params).readings


def _layer(
    path: str,
    reading: Any,
    x: np.ndarray,
    g: np.ndarray,
    g0: np.ndarray,
    *,
    before: np.ndarray | None,
    is_used: bool | None,
) -> Layer:
    bits = int(jnp.finfo(x.dtype).nmant) if jnp.issubdtype(x.dtype, jnp.floating) else 23
    has_gradient = g != 0
    x64, g64 = np.asarray(x, np.float64), np.asarray(g, np.float64)
    found: dict[str, Any] = {}
    if before is not None:
        x0 = np.asarray(before, np.float64)
        found["first_weight"] = float(np.linalg.norm(x0))
        found["moved"] = float(np.mean(x != before)) if x.size else None
        if has_gradient.any():
            found["stuck"] = float(np.mean((x == before)[has_gradient]))
        if x.ndim >= 2 and (whole := _spectral(x64)) > 0:
            found["turned"] = _spectral(x64 - x0) / whole
    if reading.role in ("matrix", "conv", "head") and x.ndim >= 2 and x.shape[-1] > 1:
        weights, slopes = x64.reshape(-1, x.shape[-1]), g64.reshape(-1, x.shape[-1])
        found["dead"] = float(np.mean(~slopes.any(axis=0))) if slopes.any() else None
        found["is_symmetric"] = bool(slopes.any() and _are_alike(weights) and _are_alike(slopes))
    return Layer(
        path,
        reading.role,
        x.shape,
        weight=float(np.linalg.norm(x64)),
        gradient=float(np.linalg.norm(g64)),
        first_gradient=float(np.linalg.norm(np.asarray(g0, np.float64))),
        bits=bits,
        is_input=reading.is_input if reading.uses else None,  # only a program shows it
        is_used=is_used,
        **found,
    )


def _spectral(x: np.ndarray) -> float:
    """The largest singular value, of (…, n) as a matrix with n columns, by power iteration: a few per cent too low."""
    matrix = x.reshape(-1, x.shape[-1])
    vector = np.random.default_rng(0).standard_normal(matrix.shape[1])
    for _ in range(ITERATIONS):
        norm = np.linalg.norm(vector)
        if not norm > 0:
            return 0.0
        vector = matrix.T @ (matrix @ (vector / norm))
    return float(np.sqrt(np.linalg.norm(vector)))


def _are_alike(columns: np.ndarray) -> bool:
    return bool(np.abs(columns - columns[:, :1]).max() <= 1e-5 * np.abs(columns).max())
