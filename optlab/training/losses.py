"""Losses and metrics: pure functions `(outputs, batch) -> values`, one value for every example or position.

The mean over the examples is taken by the workload, which knows their weights; a function of yours may also return a
scalar, which then counts as the mean over the batch.
"""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp
import optax

from optlab.data import Batch


def cross_entropy(outputs: jax.Array, batch: Batch, *, label_smoothing: float = 0.0) -> jax.Array:
    """−log softmax(outputs)[label], in nats.

    For its gradient the logits alone are kept, as they are; the probabilities are computed again.

    Args:
      outputs: logits (..., classes).
      batch: integer classes (...) under "labels".
      label_smoothing: share of the target's mass that is spread evenly over all classes, in [0, 1).

    Returns:
      losses (...), float32.
    """
    if isinstance(label_smoothing, int | float) and not 0 <= label_smoothing < 1:
        raise ValueError(f"label_smoothing must lie in [0, 1), got {label_smoothing}")
    logits = outputs.astype(jnp.promote_types(outputs.dtype, jnp.float32))
    labels = jnp.asarray(batch["labels"])
    nll = _negative_log_likelihood(logits, labels)
    if isinstance(label_smoothing, float) and label_smoothing == 0.0:
        return nll
    return nll + label_smoothing * (_of_label(logits, labels) - jnp.mean(logits, axis=-1))


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
    labels = jnp.where(labels < 0, labels + x.shape[-1], labels)[..., None]
    return jnp.sum(jnp.where(jax.lax.broadcasted_iota(labels.dtype, x.shape, x.ndim - 1) == labels, x, 0), axis=-1)


def squared_error(outputs: jax.Array, batch: Batch) -> jax.Array:
    """The squared distance to the labels, summed over the last axis; labels (B,) stand for (B, 1).

    Args:
      outputs: predictions (B, d).
      batch: what should have come out, (B, d) or (B,), under "labels".

    Returns:
      losses (B,).
    """
    labels = jnp.asarray(batch["labels"])
    if labels.size != outputs.size:
        raise ValueError(f"squared_error needs labels of the outputs' shape {outputs.shape}, got {labels.shape}")
    labels = jnp.reshape(labels, outputs.shape)
    return jnp.sum(jnp.square(outputs - labels), axis=-1)


def accuracy(outputs: jax.Array, batch: Batch) -> jax.Array:
    """1 where the largest logit is the label's, 0 elsewhere.

    Args:
      outputs: logits (..., classes).
      batch: integer classes (...) under "labels".
    """
    return (jnp.argmax(outputs, axis=-1) == batch["labels"]).astype(jnp.float32)
