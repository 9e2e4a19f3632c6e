"""The MLP against its formula, and what it refuses."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from optlab.models import MLP, mlp

from .oracles import compiled, float64, initialized, numpy_norm, randomized

X = jnp.float32(np.random.default_rng(0).normal(size=(6, 4)))
SIGMA = {"relu": lambda x: np.maximum(x, 0), "sigmoid": lambda x: 1 / (1 + np.exp(-x)), "tanh": np.tanh}


@pytest.mark.parametrize("activation", SIGMA)
def test_one_width_is_the_shallow_network(activation):
    """f(x) = Σᵢ aᵢ σ(wᵢᵀx + bᵢ), and an offset (C2)."""
    model = mlp(1, widths=(5,), activation=activation)
    variables = initialized(model, X)
    rng = np.random.default_rng(1)
    w, b, a, c = rng.normal(size=(4, 5)), rng.normal(size=5), rng.normal(size=(5, 1)), rng.normal(size=1)
    params = {"hidden_0": {"kernel": w, "bias": b}, "head": {"kernel": a, "bias": c}}
    assert jax.tree.map(np.shape, variables["params"]) == jax.tree.map(np.shape, params)
    expected = [sum(a[i, 0] * SIGMA[activation](w[:, i] @ x + b[i]) for i in range(5)) + c[0] for x in X]
    out = model.apply({"params": jax.tree.map(jnp.float32, params)}, X)
    np.testing.assert_allclose(out[:, 0], expected, atol=1e-5)


def test_depth_is_the_number_of_widths_and_inputs_are_flattened():
    shapes = jax.tree.map(
        np.shape, jax.eval_shape(mlp(3, widths=[7, 5]).init, jax.random.key(0), jnp.ones((2, 2, 3, 2)))
    )
    kernels = {name: layer["kernel"] for name, layer in shapes["params"].items()}
    assert kernels == {"hidden_0": (12, 7), "hidden_1": (7, 5), "head": (5, 3)}


def test_no_width_is_a_linear_model():
    model = mlp(2, widths=())
    variables = initialized(model, X)
    head = variables["params"].pop("head")
    assert not variables["params"]
    out = model.apply({"params": {"head": head}}, X)
    np.testing.assert_allclose(out, X @ np.asarray(head["kernel"], np.float64), atol=1e-5)


def test_norm_stands_before_the_activation():
    model = mlp(3, widths=(5, 4), activation="tanh", norm="layer")
    variables = randomized(model, X)
    p, x = float64(variables["params"]), np.asarray(X, np.float64)
    for i in (0, 1):
        x = x @ p[f"hidden_{i}"]["kernel"] + p[f"hidden_{i}"]["bias"]
        x = np.tanh(numpy_norm(p[f"norm_{i}"], x))
    np.testing.assert_allclose(compiled(model)(variables, X), x @ p["head"]["kernel"] + p["head"]["bias"], atol=1e-4)


@pytest.mark.parametrize(("activation", "variance"), [("relu", 2.0), ("gelu", 2.0), ("tanh", 1.0), ("sigmoid", 1.0)])
def test_first_weights_keep_the_variance_of_the_signal(activation, variance):
    params = initialized(mlp(1, widths=(400,), activation=activation), jnp.ones((1, 100)))["params"]
    assert np.var(params["hidden_0"]["kernel"]) * 100 == pytest.approx(variance, rel=0.05)


def test_batch_norm_updates_its_statistics_in_training_only():
    model = mlp(2, widths=(5,), norm="batch")
    variables = initialized(model, X)
    _, trained = compiled(model, train=True, mutable="batch_stats")(variables, X)
    _, evaluated = compiled(model, mutable="batch_stats")(variables, X)
    old, new = variables["batch_stats"]["norm_0"]["mean"], trained["batch_stats"]["norm_0"]["mean"]
    assert np.abs(new - old).max() > 0
    np.testing.assert_array_equal(evaluated["batch_stats"]["norm_0"]["mean"], old)


def test_dropout_leaves_out_its_share_and_keeps_the_mean():
    """All-one activations: what is left is 1/(1 − rate), so that their mean stays 1."""
    model = mlp(1, widths=(1000,), dropout=0.25)
    x = jnp.ones((1, 1))
    params = {
        "hidden_0": {"kernel": jnp.zeros((1, 1000)), "bias": jnp.ones(1000)},
        "head": {"kernel": jnp.full((1000, 1), 1e-3), "bias": jnp.zeros(1)},
    }
    out = lambda key, train: float(model.apply({"params": params}, x, train=train, rngs={"dropout": key})[0, 0])
    assert out(jax.random.key(0), False) == pytest.approx(1.0, abs=1e-5)
    kept = out(jax.random.key(0), True) * 1000 * 0.75
    assert kept == pytest.approx(round(kept), abs=1e-2)
    assert 690 < kept < 810
    assert out(jax.random.key(0), True) != out(jax.random.key(1), True)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"outputs": 0}, "outputs must be a whole number of at least 1, got 0"),
        ({"widths": (8, 0)}, "every width in widths must be a whole number of at least 1, got 0"),
        ({"activation": "rleu"}, "activation must be one of relu, .*, got 'rleu': did you mean 'relu'?"),
        ({"norm": "bacth"}, "norm must be one of batch, layer, rms, none, got 'bacth': did you mean 'batch'?"),
        ({"dropout": 1.0}, r"dropout must lie in \[0, 1\), got 1.0"),
        ({"dropout": -0.1}, r"dropout must lie in \[0, 1\), got -0.1"),
        ({"dtype": "float16"}, "dtype must be one of float32, bfloat16, float64, got 'float16'"),
    ],
)
@pytest.mark.parametrize("make", [mlp, MLP])
def test_impossible_settings_are_refused_when_it_is_made(make, settings, message):
    with pytest.raises(ValueError, match=message):
        make(**{"outputs": 3, **settings})
