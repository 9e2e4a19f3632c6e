"""A29: decay after the step, θ ← (1 − ηλ)(θ + u), beside θ + u − ηλθ."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import optlab
from optlab.theory.adam import decay_gap

same = np.testing.assert_allclose


@pytest.fixture(autouse=True)
def float64():
    with jax.enable_x64(True):
        yield


def test_formula():
    tx = optlab.decay_after_step(0.1)
    theta, u = {"a": jnp.array([1.0, -2.0])}, {"a": jnp.array([0.5, 3.0])}
    update, _ = tx.update(u, tx.init(theta), theta)
    same(optax.apply_updates(theta, update)["a"], 0.9 * (theta["a"] + u["a"]), rtol=1e-14)


def stepped(steps=3, **settings):
    """(θ before the last step, its decay-free update, θ after) of adamw."""
    theta = {"kernel": jnp.array([[1.0, -2.0], [0.5, 4.0]]), "bias": jnp.array([3.0, 1.0])}
    tx = optlab.adamw(0.01, weight_decay=0.3, **settings)
    state = tx.init(theta)
    for t in range(steps):
        g = jax.tree.map(lambda p, t=t: jnp.sin(p + t), theta)
        update, state = tx.update(g, state, theta)
        theta, before = optax.apply_updates(theta, update), theta
    return before, theta


def test_adamws_two_forms_part_by_what_is_told():
    before, beside = stepped(1)
    _, after = stepped(1, decay="after_step")
    plain = jax.tree.map(lambda p: p - 0.01 * jnp.sin(p) / (jnp.abs(jnp.sin(p)) + 1e-8), before)
    jax.tree.map(lambda a, p: same(a, (1 - 0.003) * p, rtol=1e-12), after, plain)
    u = jax.tree.map(lambda p: jnp.sin(p) / (jnp.abs(jnp.sin(p)) + 1e-8), before)
    jax.tree.map(lambda a, b, u: same(a - b, decay_gap(0.01, 0.3, u), rtol=1e-7), after, beside, u)


def test_schedules_masks_and_roles_are_those_of_decay_weights():
    rate = optlab.schedules.linear_to_zero(0.01, 4)
    theta = {"kernel": jnp.ones((2, 2)), "bias": jnp.ones(2)}
    tx = optlab.adamw(rate, weight_decay=lambda t: 0.3 + 0.0 * t, decay="after_step", decay_roles=["matrix"])
    state = tx.init(theta)
    for t in range(4):
        g = jax.tree.map(jnp.ones_like, theta)
        update, state = tx.update(g, state, theta)
        moved = jax.tree.map(lambda p, t=t: p - rate(t) / (1 + 1e-8), theta)
        expected = {"kernel": (1 - rate(t) * 0.3) * moved["kernel"], "bias": moved["bias"]}
        theta = optax.apply_updates(theta, update)
        jax.tree.map(lambda a, b: same(a, b, rtol=1e-12), theta, expected)


def test_without_decay_it_is_adam_and_another_word_is_refused():
    theta, g = jnp.ones(3), jnp.array([1.0, -2.0, 3.0])
    tx, adam = optlab.adamw(0.1, weight_decay=0.0, decay="after_step"), optlab.adam(0.1)
    same(tx.update(g, tx.init(theta), theta)[0], adam.update(g, adam.init(theta))[0])
    with pytest.raises(ValueError, match="decay must be one of 'beside_step', 'after_step', got 'after'"):
        optlab.adamw(0.1, decay="after")
