"""A25: the direction alone; with η = η⁰‖∇L‖ it is gradient descent."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from hypothesis import given
from hypothesis import strategies as st

import optlab

same = np.testing.assert_allclose


def updated(grads):
    tx = optlab.normalize()
    return tx.update(grads, tx.init(grads))[0]


def test_the_norm_is_over_all_parameters():
    grads = {"a": jnp.array([3.0, 4.0]), "b": jnp.array([[12.0]])}
    jax.tree.map(same, updated(grads), {"a": np.array([3, 4]) / 13, "b": np.array([[12]]) / 13})


@given(log_scale=st.integers(-37, 37), dtype=st.sampled_from([np.float32, np.float64]))
def test_the_length_is_one_however_small_or_large_the_gradient(log_scale, dtype):
    with jax.enable_x64(True):
        g = jnp.array([3, -4, 0, 12], dtype) * dtype(10.0**log_scale)
        same(updated(g), np.array([3, -4, 0, 12]) / 13, rtol=1e-6)


def test_nothing_moves_where_the_gradient_is_zero_and_nan_is_seen():
    same(updated({"a": jnp.zeros(3), "b": jnp.zeros(())})["a"], 0)
    assert np.isnan(updated(jnp.array([1.0, jnp.nan]))).all()
    assert updated({"a": jnp.zeros(0)})["a"].shape == (0,)


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16, jnp.complex64])
def test_other_numbers(dtype):
    g = jnp.array([300, 400], dtype)
    assert updated(g).dtype == dtype
    same(updated(g).astype(jnp.complex64), [0.6, 0.8], rtol=1e-2)


def test_with_a_rate_of_the_gradients_norm_it_is_gradient_descent():
    f = lambda x: 0.5 * x @ jnp.diag(jnp.array([1.0, 5.0])) @ x
    x, y = jnp.array([1.0, -1.0]), jnp.array([1.0, -1.0])
    for _ in range(10):
        g = jax.grad(f)(x)
        tx = optax.chain(optlab.normalize(), optax.scale_by_learning_rate(0.1 * jnp.linalg.norm(g)))
        x = x + tx.update(g, tx.init(x))[0]
        y = y - 0.1 * jax.grad(f)(y)
    same(x, y, rtol=1e-5)


def test_every_step_has_the_length_of_the_learning_rate():
    tx = optax.chain(optlab.normalize(), optax.scale_by_learning_rate(0.05))
    path = optlab.minimize(lambda x: jnp.sum(x**4), tx, jnp.array([2.0, -1.0]), steps=20)
    same(np.linalg.norm(np.diff(path.x, axis=0), axis=1), 0.05, rtol=1e-4)
