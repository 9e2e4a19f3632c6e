"""Losses and metrics: pure functions `(outputs, batch) -> values`, one value for every example or position.

The mean over the examples is taken by the workload, which knows their weights; a function of yours may also return a
scalar, which then counts as the mean over the batch.
"""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from optlab._checks import check_decay
from optlab.data import Batch, DataError
from optlab.training.reductions import wide

__all__ = ["accuracy", "cross_entropy", "squared_error"]


class LabelError(DataError):
    """A label that is no class of the outputs."""


def cross_entropy(outputs: jax.Array, batch: Batch, *, label_smoothing: float = 0.0) -> jax.Array:
    """−log softmax(outputs)[label], in nats; NaN where the label is no class of the outputs.

    For its gradient the logits alone are kept, as they are; the probabilities are computed again.

    Args:
        outputs: logits (..., classes).
        batch: integer classes (...) under "labels". A label that counts must be a class: one that only pads needs
            weight 0 under "weight".
        label_smoothing: share of the target's mass that is spread evenly over all classes, in [0, 1).

    Returns:
        losses (...), float32.

    Raises:
        ValueError: for labels of another shape or dtype.
        LabelError: for a label that is no class, where it can be read (outside of jit); in training the guard finds the
            NaN, and `train` names the label.
    """
    check_decay("label_smoothing", label_smoothing)  # has a decay's range
    logits = wide(outputs)
    labels, is_outside = _classes("cross_entropy", outputs, batch)
    nll = _negative_log_likelihood(logits, labels)
    if not isinstance(label_smoothing, float) or label_smoothing != 0.0:
        nll += label_smoothing * (_of_label(logits, labels) - jnp.mean(logits, axis=-1))
    return jnp.where(is_outside, jnp.nan, nll)


@jax.custom_jvp
def _negative_log_likelihood(logits: jax.Array, labels: jax.Array) -> jax.Array:
    return optax.softmax_cross_entropy_with_integer_labels(logits, labels)


@_negative_log_likelihood.defjvp
def _derivative(primals: Any, tangents: Any) -> tuple[jax.Array, jax.Array]:
    (logits, labels), (along, _) = primals, tangents
    nll = _negative_log_likelihood(logits, labels)
    return nll, _along(logits, jax.nn.logsumexp(logits, axis=-1, keepdims=True), labels, along)


@functools.partial(jax.checkpoint, prevent_cse=False)  # else the backward pass would be given the probabilities
def _along(logits: jax.Array, log_normalizers: jax.Array, labels: jax.Array, along: jax.Array) -> jax.Array:
    """The derivative (softmax(logits) − onehot(label)) · along."""
    return jnp.sum(jnp.exp(logits - log_normalizers) * along, axis=-1) - _of_label(along, labels)


def _of_label(x: jax.Array, labels: jax.Array) -> jax.Array:
    """x[label] by a mask, whose gradient is one too: that of an index would be scattered into an array of zeros."""
    is_label = jax.lax.broadcasted_iota(labels.dtype, x.shape, x.ndim - 1) == labels[..., None]
    return jnp.sum(jnp.where(is_label, x, 0), axis=-1)


def squared_error(outputs: jax.Array, batch: Batch) -> jax.Array:
    """The squared distance to the labels, summed over the last axis; (B,) stands for (B, 1), in outputs and labels.

    Args:
        outputs: predictions (B, d) or (B,).
        batch: what should have come out, of the same shape but for axes of length 1, under "labels".

    Returns:
        losses (B,), at least float32.

    Raises:
        ValueError: for labels of another shape.
    """
    labels = jnp.asarray(batch["labels"])

    def of_example(x: Any) -> Any:
        return (x.shape[:1], tuple(n for n in x.shape[1:] if n != 1))

    if not outputs.ndim or of_example(outputs) != of_example(labels):
        raise ValueError(f"squared_error needs labels of the outputs' shape {outputs.shape}, got {labels.shape}")
    errors = wide(outputs) - wide(jnp.reshape(labels, outputs.shape))
    squares = jnp.square(errors.real) + jnp.square(errors.imag) if jnp.iscomplexobj(errors) else jnp.square(errors)
    return squares if squares.ndim == 1 else jnp.sum(squares, axis=-1)


def accuracy(outputs: jax.Array, batch: Batch) -> jax.Array:
    """1 where the largest logit is the label's, 0 elsewhere; NaN where the label is no class of the outputs.

    Args:
        outputs: logits (..., classes).
        batch: integer classes (...) under "labels", as for `cross_entropy`.
    """
    labels, is_outside = _classes("accuracy", outputs, batch)
    is_hit = jnp.argmax(outputs, axis=-1) == labels
    return jnp.where(is_outside, jnp.nan, is_hit.astype(jnp.float32))


def _classes(name: str, outputs: jax.Array, batch: Batch) -> tuple[jax.Array, jax.Array]:
    """The labels, and where they are no class of the outputs although they count; 0 stands for them there.

    An index outside of an array is no error in JAX: −1 would be the last class.
    """
    labels, classes = jnp.asarray(batch["labels"]), outputs.shape[-1] if outputs.ndim else 0
    if not (jnp.issubdtype(labels.dtype, jnp.integer) or labels.dtype == jnp.bool_):
        is_one_hot = labels.ndim == outputs.ndim and labels.shape[-1] > 1
        raise ValueError(
            f"{name} needs labels that are classes, whole numbers from 0 on, got {labels.dtype}: say "
            f"{'labels.argmax(-1) of one-hot rows' if is_one_hot else 'labels.astype(int) of classes'}, "
            "loss=squared_error for values"
        )
    if labels.shape != outputs.shape[:-1] or not outputs.ndim:
        raise ValueError(
            f"{name} needs labels of shape {outputs.shape[:-1]}, a class for each of the outputs {outputs.shape}, got "
            f"{labels.shape}: labels[:, 0] of one column, labels.argmax(-1) of one-hot rows"
        )
    weight: Any = batch.get("weight")
    weight = weight if np.shape(weight) == labels.shape else None
    _check_classes(name, batch["labels"], weight, classes)
    if labels.dtype.itemsize < 4:
        labels = labels.astype(jnp.int32)
    is_class = (labels >= 0) & (labels < classes)
    is_outside = ~is_class if weight is None else ~is_class & (jnp.asarray(weight) > 0)
    return jnp.where(is_class, labels, 0), is_outside


def _check_classes(name: str, labels: Any, weight: Any, classes: int) -> None:
    """Refuses a label that is no class, where it can be read."""
    if any(isinstance(x, jax.core.Tracer) for x in (labels, weight)):
        return
    labels = np.asarray(labels)
    is_outside = (labels < 0) | (labels >= classes)
    if weight is not None:
        is_outside &= np.asarray(weight) > 0
    if is_outside.any():
        where = tuple(int(i) for i in np.argwhere(is_outside)[0])
        raise LabelError(
            f"{name} needs labels from 0 to {classes - 1}, as the outputs have {classes} classes, got {labels[where]} "
            f"at {list(where)} and {int(is_outside.sum()) - 1} more outside; what only pads needs weight 0 in the "
            'batch\'s "weight"'
        )
