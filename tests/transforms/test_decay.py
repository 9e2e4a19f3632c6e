import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

import optlab

from .runs import in_float64, iterates, ravine

PARAMS = {
    "dense": {"kernel": jnp.full((2, 3), 2.0), "bias": jnp.full(3, 2.0)},
    "embedding": {"embedding": jnp.full((4, 2), 2.0)},
}
ZERO = jax.tree.map(jnp.zeros_like, PARAMS)


def decayed(tx, **extra_args):
    """What is added to a zero gradient, a number for each leaf."""
    update, _ = tx.update(ZERO, tx.init(PARAMS), PARAMS, **extra_args)
    return jax.tree.map(lambda x: float(x.ravel()[0]), update)


def test_all_parameters_decay_by_lambda_theta():
    assert jax.tree.leaves(decayed(optlab.decay_weights(0.1))) == pytest.approx([0.2, 0.2, 0.2])


def test_roles_say_what_decays():
    got = decayed(optlab.decay_weights(0.1, roles=["matrix", "embedding"]))
    assert got == {"dense": {"kernel": pytest.approx(0.2), "bias": 0}, "embedding": {"embedding": pytest.approx(0.2)}}


def test_roles_that_by_role_gives_come_before_names():
    layout = optlab.roles.read_names(PARAMS, {"*": "vector"})
    assert decayed(optlab.decay_weights(0.1, roles=["matrix"]), layout=layout) == jax.tree.map(lambda _: 0.0, PARAMS)


def test_a_mask_says_what_decays_as_in_optax():
    mask = lambda tree: jax.tree.map(lambda x: x.ndim > 1, tree)
    assert decayed(optlab.decay_weights(0.1, mask=mask)) == decayed(optax.add_decayed_weights(0.1, mask))


def test_a_schedule_counts_steps():
    tx = optlab.decay_weights(lambda step: 0.1 * step, roles=["matrix"])
    state = tx.init(PARAMS)
    for expected in (0.0, 0.2, 0.4):
        update, state = tx.update(ZERO, state, PARAMS)
        np.testing.assert_allclose(update["dense"]["kernel"], expected, rtol=1e-6)
        np.testing.assert_array_equal(update["dense"]["bias"], 0)


def test_no_decay_does_without_parameters():
    tx = optlab.decay_weights(0.0)
    assert tx.update(ZERO, tx.init(PARAMS))[0] is ZERO


def shrinking(factory):
    """What a decay of 1e-4 takes from the update, by gradients (T, n) and weights, in float64."""

    def last(decay, g, theta):
        tx = factory(1.0, weight_decay=decay)
        return jax.lax.scan(lambda state, g: tx.update(g, state, theta)[::-1], tx.init(theta), g)[1][-1]

    return in_float64(lambda g, theta: last(0.0, g, theta) - last(1e-4, g, theta))


decoupled, penalized = shrinking(optlab.adamw), shrinking(optlab.adam_l2)
vectors = hnp.arrays(np.float64, 4, elements=st.floats(0.1, 10))


@settings(max_examples=20, deadline=None)
@given(sizes=vectors, theta=vectors)
def test_decoupled_decay_shrinks_every_coordinate_by_the_same_factor_and_l2_doesnt(sizes, theta):  # A16, A17
    g = sizes * (-1.0) ** np.arange(40)[:, None]  # gradients of several sizes that cancel
    np.testing.assert_allclose(decoupled(g, theta) / theta, 1e-4, rtol=1e-7)
    np.testing.assert_allclose(penalized(g, theta) / theta, 1e-4 / sizes, rtol=0.02)  # Adam divides λθ by the size too


# Cautious decay: Chen et al. 2025 (arXiv 2510.12402), Algorithm 1.


def test_cautious_decay_for_a_hundred_steps():
    gradient, start, _ = ravine()
    theta, m, v, path, shares = start, 0.0, 0.0, [start], []
    for t in range(1, 101):
        g = gradient(theta)
        m, v = 0.9 * m + 0.1 * g, 0.999 * v + 0.001 * g**2
        u = m / (1 - 0.9**t) / (np.sqrt(v / (1 - 0.999**t)) + 1e-8)
        shares.append(np.mean(u * theta >= 0))
        theta = theta - 0.01 * (u + 0.3 * (u * theta >= 0) * theta)
        path.append(theta)
    tx = optax.chain(optlab.scale_by_adam(), optlab.decay_weights(0.3, cautious=True), optax.scale(-0.01))
    np.testing.assert_allclose(iterates(tx, gradient, start), np.stack(path), rtol=1e-8, atol=1e-10)
    assert 0 < min(shares) < 1


def test_cautious_decay_is_for_the_same_sign_and_for_zero():
    theta, g = jnp.array([2.0, 2.0, -2.0, -2.0, 2.0]), jnp.array([1.0, -1.0, 1.0, -1.0, 0.0])
    for dtype, size in (("float32", 1.0), ("float16", 1e-5)):  # in float16 1e-10 is 0
        x, u = (size * theta).astype(dtype), (size * g).astype(dtype)
        tx = optlab.decay_weights(0.5, cautious=True)
        added = tx.update(u, tx.init(x), x)[0] - u
        np.testing.assert_allclose(added, size * np.array([1.0, 0, 0, -1.0, 1.0]), rtol=0.01)


def test_cautious_decay_keeps_to_its_roles():
    got = decayed(optlab.decay_weights(0.1, roles=["matrix"], cautious=True))
    assert got == {"dense": {"kernel": pytest.approx(0.2), "bias": 0}, "embedding": {"embedding": 0}}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"weight_decay": -0.1}, r"weight_decay must not be negative, got -0\.1"),
        ({"mask": PARAMS, "roles": ["matrix"]}, "takes a mask or roles, got both"),
        ({"roles": ["matrix", "biases"]}, "knows no role 'biases': did you mean"),
        ({"roles": ["matrx"]}, "knows no role 'matrx': did you mean 'matrix'"),
        ({"roles": "matrix"}, r"roles must be a list of role names, got the string 'matrix': write \['matrix'\]"),
    ],
)
def test_decay_refuses(arguments, message):
    with pytest.raises(ValueError, match=message):
        optlab.decay_weights(**{"weight_decay": 0.1, **arguments})
