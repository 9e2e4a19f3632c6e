"""Parameters wider than the gradients: what they enter keeps their width."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import optlab

RATE, DECAY = 1e-3, 1e-3
MASK = lambda tree: jax.tree.map(lambda x: x.ndim > 0, tree)
PARTS = {"a": "x", "b": "y"}
DECAYING = {  # by the weight decay
    "sgd": lambda d: optlab.sgd(RATE, weight_decay=d),
    "lion": lambda d: optlab.lion(RATE, weight_decay=d),
    "lion of a schedule": lambda d: optlab.lion(lambda step: RATE, weight_decay=lambda step: d),
    "adamw": lambda d: optlab.adamw(RATE, weight_decay=d),
    "adamw of roles": lambda d: optlab.adamw(RATE, weight_decay=d, decay_roles=["matrix"]),
    "adamw with a mask": lambda d: optlab.adamw(RATE, weight_decay=d, mask=MASK),
    "muon": lambda d: optlab.muon(RATE, weight_decay=d),
    "normuon": lambda d: optlab.normuon(RATE, weight_decay=d),
    "cautious decay": lambda d: optax.chain(
        optlab.scale_by_sign(), optlab.decay_weights(d, cautious=True), optlab.scale_by_learning_rate(RATE)
    ),
    "inside cautious": lambda d: optax.chain(
        optlab.cautious(optax.chain(optlab.scale_by_sign(), optlab.decay_weights(d))),
        optlab.scale_by_learning_rate(RATE),
    ),
    "before a momentum": lambda d: optax.chain(
        optlab.decay_weights(d), optlab.momentum(0.0), optlab.scale_by_learning_rate(RATE)
    ),
    "by_role": lambda d: optlab.by_role({"default": optlab.lion(RATE, weight_decay=d)}),
    "partition": lambda d: optax.partition(
        {"x": optlab.lion(RATE, weight_decay=d), "y": optlab.lion(RATE, weight_decay=d)}, PARTS
    ),
    "MultiSteps": lambda d: optax.MultiSteps(optlab.lion(RATE, weight_decay=d), 1),
}


def tree(value, dtype):
    return {"a": jnp.full((4, 4), value, dtype), "b": jnp.full((4, 6), value, dtype)}


def moved(tx, dtype):
    """The weights after ten gradients that stay, from 0.5."""

    def step(carry, _):
        params, state = carry
        updates, state = tx.update(tree(1.0, dtype), state, params)
        return (optax.apply_updates(params, updates), state), None

    params = tree(0.5, "float32")
    return jax.lax.scan(step, (params, tx.init(params)), None, 10)[0][0]  # whose carry keeps its types


@pytest.mark.thinned
@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
@pytest.mark.parametrize("make", DECAYING.values(), ids=DECAYING)
def test_decay_reaches_them(make, dtype):
    for kind in (dtype, "float32"):
        ends = [moved(make(decay), kind) for decay in (0.0, DECAY)]
        for after, without in zip(jax.tree.leaves(ends[1]), jax.tree.leaves(ends[0]), strict=True):
            np.testing.assert_allclose(after - without, -10 * RATE * DECAY * 0.5, rtol=0.05)


def test_updates_have_the_width_of_what_enters_them_and_no_more():
    narrow, wide = tree(1.0, "bfloat16"), tree(0.5, "float32")
    kinds = lambda tx, g, p: {x.dtype.name for x in jax.tree.leaves(tx.update(g, tx.init(p), p)[0])}
    decay = optlab.decay_weights(0.1)
    assert kinds(decay, narrow, wide) == {"float32"}
    assert kinds(decay, wide, narrow) == {"float32"}
    assert kinds(decay, narrow, narrow) == {"bfloat16"}
    assert kinds(decay, narrow, tree(0.5, "float16")) == {"float32"}
    assert kinds(optlab.sgd(0.1), narrow, wide) == {"float32"}
    assert optlab.sgd(0.1).update(narrow, optlab.sgd(0.1).init(wide))[0]["a"].dtype == "bfloat16"
    assert kinds(optlab.scale_by_adam(), narrow, wide) == {"bfloat16"}
    for block in (optlab.scale_to_weight_norm(), optlab.keep_weight_norm()):
        assert kinds(block, narrow, wide) == {"float32"}
        assert kinds(block, narrow, narrow) == {"bfloat16"}


def test_a_sphere_is_kept_to_the_width_of_the_weights():
    params = {"w": jax.random.normal(jax.random.key(0), (8, 6))}
    tx = optlab.muonh(0.02)
    state, radius = tx.init(params), jnp.linalg.norm(params["w"])
    for seed in range(5):
        g = {"w": jax.random.normal(jax.random.key(seed), (8, 6), jnp.bfloat16)}
        updates, state = tx.update(g, state, params)
        params = optax.apply_updates(params, updates)
        np.testing.assert_allclose(jnp.linalg.norm(params["w"]), radius, rtol=1e-6)
