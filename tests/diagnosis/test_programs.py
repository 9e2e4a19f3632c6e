"""What the program of a loss shows: mistakes in it, and layers that are saturated."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from optlab.diagnosis._programs import bounded_logits, crossed, first_examples, nodes_of, outputs_of, read_numbers

X = np.random.default_rng(0).standard_normal((40, 8)).astype(np.float32)
PARAMS = {"a": np.ones((8, 5), np.float32), "b": np.ones((5, 1), np.float32)}


def nodes(loss, labels):
    batch = first_examples({"inputs": X, "labels": labels})
    return nodes_of(lambda params, state, batch, key: loss(params, batch), PARAMS, {}, batch, jax.random.key(0))[1]


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


def test_a_program_that_is_run_has_its_values_and_knows_its_parameters():
    batch = {"inputs": X, "labels": X[:, :1]}
    loss = lambda params, state, batch, key: jax.jit(squared)(params, batch)
    value, found = nodes_of(loss, PARAMS | {"c": np.ones(3)}, {}, batch, jax.random.key(0), is_run=True)
    assert float(value.value) == pytest.approx(float(squared(PARAMS, batch)), rel=1e-6)
    assert value.roots == {"params", 0, 1, "other", "labels"}  # and not 2, which nothing uses
    assert all(np.shape(x.value) == x.shape for x in found)


def dense(f):
    return lambda params, x: f(x @ params["a"]) @ params["b"]


def attention(params, x, keys=9):
    x = jnp.stack([x * (1 + t) for t in range(keys)], axis=1)
    scores = jnp.einsum("ntd,nsd->nts", x, x @ params["a"] @ params["a"].T)
    return (jax.nn.softmax(scores) @ x).sum((1, 2))


@pytest.mark.parametrize(
    ("model", "scale", "kind", "is_saturated"),
    [
        (dense(jnp.tanh), 3.0, "tanh", True),
        (dense(jnp.tanh), 0.2, "tanh", False),
        (dense(jax.nn.sigmoid), 6.0, "logistic", True),
        (dense(jax.nn.sigmoid), 0.2, "logistic", False),
        (dense(jax.nn.gelu), 9.0, None, False),  # its tanh is a gate
        (dense(jax.nn.silu), 9.0, None, False),
        (dense(jax.nn.relu), 9.0, "relu", False),
        (dense(lambda x: jax.nn.relu(x - 99)), 9.0, "relu", True),
        (lambda params, x: jax.nn.log_softmax(x @ params["a"] @ X.T), 9.0, "logits", True),
        (lambda params, x: jax.nn.log_softmax(x @ params["a"] @ X.T), 0.01, "logits", False),
        (attention, 1.0, "softmax", True),
        (attention, 0.02, "softmax", False),
        (functools.partial(attention, keys=4), 1.0, None, False),  # so few may share it unevenly
        (lambda params, x: jax.nn.softmax(x @ params["a"]).sum(-1), 9.0, None, False),  # what a model ends in
    ],
)
def test_how_saturated_a_layer_is(model, scale, kind, is_saturated):
    random = np.random.default_rng(1)
    params = {"a": scale * random.standard_normal((8, 8)), "b": np.ones((8, 1))}
    loss = lambda params, state, batch, key: model(params, batch["inputs"]).sum()
    args = (params, {}, first_examples({"inputs": X, "labels": X[:, 0]}), jax.random.key(0))
    found = read_numbers(loss, args)[0].saturation
    assert (list(found), any(share > 0.6 for share in found.values())) == ([kind] * (kind is not None), is_saturated)


def logits(params, batch):
    return jnp.tanh(batch["inputs"] @ params["a"])


@pytest.mark.parametrize(
    "loss",
    [
        lambda p, b: optax.softmax_cross_entropy_with_integer_labels(logits(p, b), b["labels"]).mean(),
        lambda p, b: jnp.mean((logits(p, b) - jax.nn.one_hot(b["labels"], 5)) ** 2),
        lambda p, b: jnp.mean(jnp.abs(logits(p, b)[:, 0] - b["labels"])) + 0 * sum(x.sum() for x in p.values()),
    ],
    ids=["cross-entropy", "one-hot", "one number"],
)
def test_the_outputs_are_what_labels_first_meet(loss):
    batch = first_examples({"inputs": X, "labels": np.arange(40) % 5})
    args = (PARAMS, {}, batch, jax.random.key(0))
    (found,) = read_numbers(lambda params, state, batch, key: loss(params, batch), args)
    np.testing.assert_allclose(found.outputs[:, 0], np.asarray(logits(PARAMS, batch))[:, 0], rtol=1e-6)
    assert found.loss == pytest.approx(float(loss(PARAMS, batch)), rel=1e-6)


def test_a_loss_without_labels_shows_no_outputs():
    assert outputs_of(nodes(lambda params, batch: logits(params, batch).sum(), X[:, 0])) is None
