"""Mistakes that the program of a loss shows where its outputs aren't known."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from optlab.diagnosis._programs import bounded_logits, crossed, nodes_of

X = np.random.default_rng(0).standard_normal((40, 8)).astype(np.float32)
PARAMS = {"a": np.ones((8, 5), np.float32), "b": np.ones((5, 1), np.float32)}


def nodes(loss, labels):
    whole = lambda params, state, batch, key, train: (loss(params, batch), (state, {}))
    return nodes_of(whole, PARAMS, {}, {"inputs": X, "labels": labels}, jax.random.key(0))


def cross_entropy(end):
    def loss(params, batch):
        logits = end(jnp.tanh(batch["inputs"] @ params["a"]) * 3 @ jnp.eye(5))
        return optax.softmax_cross_entropy_with_integer_labels(logits, batch["labels"]).mean()

    return loss


ENDS = [(jax.nn.sigmoid, "logistic"), (jax.nn.softmax, "softmax"), (jax.nn.relu, "relu"), (jnp.tanh, "tanh")]
ENDS += [(lambda x: x, None), (jax.jit(jax.nn.sigmoid), "logistic"), (lambda x: 30 * jnp.tanh(x / 30), None)]


@pytest.mark.parametrize(("end", "name"), ENDS)
def test_logits_with_bounds_are_seen_before_a_log_softmax(end, name):
    assert bounded_logits(nodes(cross_entropy(end), np.arange(40) % 5)) == name


def squared(params, batch):
    return jnp.mean((batch["inputs"] @ params["a"] @ params["b"] - batch["labels"]) ** 2)


def contrasted(params, batch):
    x = batch["inputs"] @ params["a"]
    return jnp.mean((x @ x.T - jnp.eye(len(x))) ** 2) + jnp.mean((x[:, :1] - x[:, 0]) ** 2) + 0 * batch["labels"].sum()


@pytest.mark.parametrize(
    ("loss", "labels", "is_crossed"),
    [(squared, X[:, 0], True), (squared, X[:, :1], False), (contrasted, X[:, 0], False)],
)
def test_every_label_from_every_output_is_seen(loss, labels, is_crossed):
    with jax.numpy_rank_promotion("allow"):  # which is how it comes about
        assert crossed(nodes(loss, labels)) == is_crossed
