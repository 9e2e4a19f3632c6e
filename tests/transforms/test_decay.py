import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import optlab

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
    roles = jax.tree.map(lambda _: "vector", PARAMS)
    assert decayed(optlab.decay_weights(0.1, roles=["matrix"]), roles=roles) == jax.tree.map(lambda _: 0.0, PARAMS)


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
