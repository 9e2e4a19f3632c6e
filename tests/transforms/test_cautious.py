import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

import optlab
from optlab.transforms._cautious import cautious

from .runs import gradients, in_float64, iterates, ravine, scan_updates, updates

RATE, DECAY = 0.01, 0.1
GRADIENT, START, _ = ravine()


def adam(g, m, v, t):
    m, v = 0.9 * m + 0.1 * g, 0.999 * v + 0.001 * g**2
    return m / (1 - 0.9**t) / (np.sqrt(v / (1 - 0.999**t)) + 1e-8), m, v


def lion(g, m, v, t):
    return np.sign(0.9 * m + 0.1 * g), 0.99 * m + 0.01 * g, v


@pytest.mark.parametrize(
    ("direction", "inner"), [(adam, optlab.scale_by_adam()), (lion, optax.scale_by_lion(0.9, 0.99))]
)
def test_the_papers_algorithm_for_a_hundred_steps(direction, inner):
    """C-AdamW and C-Lion: Liang et al. 2024, Algorithm 1."""
    theta, m, v, path, shares = START, 0.0, 0.0, [START], []
    for t in range(1, 101):
        g = GRADIENT(theta)
        u, m, v = direction(g, m, v, t)
        mask = (u * g > 0).astype(float)
        theta = theta - RATE * (u * mask / max(mask.mean(), 1e-3) + DECAY * theta)
        path.append(theta)
        shares.append(mask.mean())
    tx = optax.chain(cautious(inner), optlab.decay_weights(DECAY), optax.scale_by_learning_rate(RATE))
    np.testing.assert_allclose(iterates(tx, GRADIENT, START), np.stack(path), rtol=1e-8, atol=1e-10)
    assert min(shares) < 1


average = optlab.momentum(0.9, style="ema")
averages, cautious_averages = in_float64(scan_updates, average), in_float64(scan_updates, cautious(average))


@settings(max_examples=30, deadline=None)
@given(hnp.arrays(np.float64, (3, 5), elements=st.integers(-99, 99)))
def test_the_update_never_goes_against_the_gradient(g):
    u, m = cautious_averages(g), averages(g)
    assert (u * g >= 0).all()
    moved = np.sign(m) * np.sign(g) > 0
    share = moved.mean(axis=1, keepdims=True)
    np.testing.assert_allclose(u, np.where(moved, m / np.maximum(share, 1e-3), 0), rtol=1e-9)


def test_where_all_agree_it_changes_nothing():
    g = gradients()
    np.testing.assert_array_equal(
        updates(cautious(optlab.scale_by_softsign()), g), updates(optlab.scale_by_softsign(), g)
    )


def test_where_none_agrees_nothing_moves():
    np.testing.assert_array_equal(updates(cautious(optax.scale(-1.0)), gradients()), 0)


def test_the_mean_is_over_each_parameter():
    flip_first = optax.stateless(lambda g, _: jax.tree.map(lambda x: x.at[0].multiply(-1), g))
    g = {"a": jnp.ones(2), "b": jnp.ones(4)}
    got, _ = cautious(flip_first).update(g, cautious(flip_first).init(g))
    np.testing.assert_allclose(got["a"], [0, 2])
    np.testing.assert_allclose(got["b"], np.array([0, 1, 1, 1]) * 4 / 3, rtol=1e-6)


def test_small_numbers_in_float16_agree_though_their_product_is_0():
    g = jnp.full(4, 1e-5, jnp.float16)
    got, _ = cautious(optax.identity()).update(g, cautious(optax.identity()).init(g))
    np.testing.assert_array_equal(got, g)
    assert got.dtype == jnp.float16


def test_what_the_inner_transform_needs_is_passed_on():
    kernels = {"conv": jnp.ones((2, 2, 3, 5))}
    tx = optlab.by_role({"conv": cautious(optax.chain(optlab.momentum(0.9), optlab.orthogonalize()))})
    got, _ = tx.update(kernels, tx.init(kernels), kernels)
    assert jnp.isfinite(got["conv"]).all()
