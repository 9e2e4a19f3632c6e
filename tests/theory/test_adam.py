"""D18, A13, A28: Adam's first steps, its moments started at the first gradient, ε inside the root."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import optlab
from optlab.theory import adam

same = np.testing.assert_allclose


def directions(steps, g=0.7, **settings):
    """Updates by equal gradients, with a rate of −1."""
    tx = optlab.adam(1.0, eps=0.0, **settings)
    state, found = tx.init(jnp.zeros(())), []
    for _ in range(steps):
        update, state = tx.update(jnp.asarray(g), state)
        found.append(-float(update))
    return np.array(found)


def test_the_first_step_without_correction_is_three_times_the_corrected_one():
    same(adam.first_step_ratio(), 0.1 / np.sqrt(0.001), rtol=1e-13)  # 3.16
    same(directions(1, bias_correction=False) / directions(1), adam.first_step_ratio(), rtol=1e-13)
    same(adam.first_step_ratio(0.5, 0.75), 1.0, rtol=1e-13)


def test_every_later_step_is_predicted_too_and_ends_at_one():
    seen = directions(200, bias_correction=False)
    same(seen, adam.first_step(np.arange(1, 201)), rtol=1e-12)
    same(directions(200), 1, rtol=1e-12)
    same(adam.first_step(1e5), 1, rtol=1e-12)
    assert seen.max() > 6  # it is at its largest not at the first step


def test_moments_that_start_at_the_first_gradient_need_no_correction():
    same(directions(50, bias_correction=False, start="first_gradient"), 1, rtol=1e-12)
    with pytest.raises(ValueError, match="leaves no bias to correct"):
        optlab.adam(0.1, start="first_gradient")


@pytest.mark.parametrize("eps", [1e-8, 1e-2])
def test_epsilon_inside_the_root(eps):
    """m̂/√(v̂ + ε): by eps=0 and eps_root=ε, step by step; a small gradient is damped by √ε, not by ε."""
    tx = optlab.scale_by_adam(0.9, 0.999, eps=0.0, eps_root=eps)
    rng, m, v = np.random.default_rng(0), 0.0, 0.0
    state = tx.init(jnp.zeros(()))
    for t in range(1, 20):
        g = 1e-3 * rng.normal()
        m, v = 0.9 * m + 0.1 * g, 0.999 * v + 0.001 * g**2
        update, state = tx.update(jnp.asarray(g), state)
        same(update, m / (1 - 0.9**t) / np.sqrt(v / (1 - 0.999**t) + eps), rtol=1e-10)


def test_bad_decays_are_named():
    with pytest.raises(ValueError, match=r"b2 must lie in \[0, 1\), got 1.0"):
        adam.first_step_ratio(0.9, 1.0)


def test_it_maps():
    same(
        jax.vmap(adam.first_step_ratio)(jnp.array([0.9, 0.5]), jnp.array([0.999, 0.75])),
        [0.1 / np.sqrt(0.001), 1.0],
        rtol=1e-12,
    )
