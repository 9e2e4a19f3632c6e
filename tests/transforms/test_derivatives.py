"""Derivatives through an update are finite, at zero too, where roots and norms have none of their own."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import optlab
from optlab import optimizers
from optlab.transforms._numerics import roots
from optlab.transforms.matrices._newton_schulz import Recipe, Recipes, newton_schulz, polar

BLOCKS = {
    "cautious": lambda: optlab.cautious(optlab.scale_by_adam()),
    "decay_weights": lambda: optlab.decay_weights(0.1, cautious=True),
    "keep_weight_norm": optlab.keep_weight_norm,
    "momentum": lambda: optlab.momentum(0.9, nesterov=True),
    "orthogonalize": optlab.orthogonalize,
    "orthogonalize svd": lambda: optlab.orthogonalize("svd"),
    "probe": lambda: optlab.probe("u", every=1),
    "scale_by_adagrad": lambda: optlab.scale_by_adagrad(0.0, eps=0.0),
    "scale_by_adagrad outside": lambda: optlab.scale_by_adagrad(0.0, eps_in_sqrt=False),
    "scale_by_adam": optlab.scale_by_adam,
    "scale_by_adam nesterov": lambda: optlab.scale_by_adam(nesterov=True),
    "scale_by_matrix_shape": optlab.scale_by_matrix_shape,
    "scale_by_neuron_rms": optlab.scale_by_neuron_rms,
    "scale_by_rms": lambda: optlab.scale_by_rms(eps_in_sqrt=False),
    "scale_by_rms centered": lambda: optlab.scale_by_rms(eps_in_sqrt=False, centered=True),
    "scale_by_sign": optlab.scale_by_sign,
    "scale_by_softsign": optlab.scale_by_softsign,
    "scale_to_rms": optlab.scale_to_rms,
    "scale_to_weight_norm": optlab.scale_to_weight_norm,
}
OPTIMIZERS = {name: functools.partial(getattr(optimizers, name), 0.01) for name in optimizers.__all__}
MORE = {
    "orthogonalize polar_express": lambda: optlab.orthogonalize("polar_express"),
    "orthogonalize eps": lambda: optlab.orthogonalize(eps=0.0),
    "muon svd": lambda: optlab.muon(0.01, orthogonalizer=optlab.orthogonalize("svd")),
    "rmsprop outside": lambda: optlab.rmsprop(0.1, eps_in_sqrt=False),
}
KINDS = [*BLOCKS, "adamw", "muon"]  # of the others the second derivative test asks as much, by the learning rate
everything = pytest.mark.parametrize(
    "make",
    [
        pytest.param(make, id=name, marks=[] if name in KINDS else pytest.mark.slow)
        for name, make in {**BLOCKS, **OPTIMIZERS, **MORE}.items()
    ],
)
ZERO = {"zero": jnp.zeros((4, 6)), "row": jnp.zeros((4, 6)).at[0].set(1.0), "some": jnp.eye(4)}


@everything
def test_at_zero_they_are_finite(make):
    """Of two updates by the gradients and the parameters, backward and forward, matrices of zeros among both."""
    tx = make()

    def two(inputs):
        grads, params = inputs
        updates, state = tx.update(grads, tx.init(params), params)
        params = optax.apply_updates(params, updates)
        return tx.update(grads, state, params)[0]

    ones = jax.tree.map(lambda x: 10 * jnp.ones_like(x), (ZERO, ZERO))
    forward = lambda: jax.jvp(two, ((ZERO, ZERO),), (ones,))
    backward = lambda: jax.vjp(two, (ZERO, ZERO))[1](ZERO)
    for x in jax.tree.leaves(jax.jit(lambda: (forward(), backward()))()):
        assert jnp.isfinite(x).all()


@pytest.mark.parametrize("name", optimizers.__all__)
def test_by_the_learning_rate_they_are_finite(name):
    def end(rate):
        tx, params = getattr(optimizers, name)(rate), ZERO
        state = tx.init(params)
        for _ in range(2):
            updates, state = tx.update(ZERO, state, params)
            params = optax.apply_updates(params, updates)
        return sum(map(jnp.sum, jax.tree.leaves(params)))

    assert jnp.isfinite(jax.jit(jax.grad(end))(0.1))


def test_a_root_is_what_it_was_but_for_its_slope_at_zero():
    x = jnp.array([0.0, 0.25, 4.0])
    np.testing.assert_array_equal(roots(x), jnp.sqrt(x))
    np.testing.assert_allclose(jax.vmap(jax.grad(roots))(x), [0, 1, 0.25])
    np.testing.assert_allclose(jax.vmap(jax.grad(jax.grad(roots)))(x), [0, -2, -1 / 32])
    assert "call" not in jax.jit(roots).lower(x).as_text().replace("custom_call", "")  # compiled, it is the root alone


@pytest.mark.thinned
@pytest.mark.parametrize("shape", [(3, 5), (4, 4), (5, 3)])
@pytest.mark.parametrize("dtype", ["float64", "complex128"])
def test_a_polar_factors_derivative_is_that_of_differences(shape, dtype):
    with jax.enable_x64(True):
        rng = np.random.default_rng(0)
        normal = lambda: rng.normal(size=(2, *shape)) + (1j * rng.normal(size=(2, *shape)) if dtype[0] == "c" else 0)
        X, E = (jnp.asarray(normal(), dtype) for _ in range(2))
        _, dO = jax.jvp(polar, (X,), (E,))
        np.testing.assert_allclose(dO, (polar(X + 1e-6 * E) - polar(X - 1e-6 * E)) / 2e-6, rtol=1e-6, atol=1e-8)


def test_equal_singular_values_have_a_derivative():
    """Where an SVD has none: of an orthogonal momentum, a gradient along which the singular values stay together."""
    E = jax.random.normal(jax.random.key(0), (1, 4, 4))
    _, dO = jax.jvp(polar, (jnp.eye(4)[None],), (E,))
    np.testing.assert_allclose(dO, (E - E.mT) / 2, atol=1e-6)


def test_at_zero_newton_schulz_has_the_slope_of_eps():
    recipes = Recipes(*3 * (Recipe("standard", (1,), "float32", "highest"),))
    f = lambda X: newton_schulz(X, ((1.5, -0.5, 0.0),), recipes, 1e-3)
    E = jnp.eye(3)[None]
    np.testing.assert_allclose(jax.jvp(f, (0 * E,), (E,))[1], 1.5 * E / 1e-3, rtol=1e-5)
