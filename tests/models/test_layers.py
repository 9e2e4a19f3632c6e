"""Norms, activations, rotary positions and attention against float64 NumPy, and the laws that attention keeps."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from hypothesis import given, settings
from hypothesis import strategies as st

from optlab.models import MultiHeadAttention, attention_weights
from optlab.models.layers import FeedForward, activation, make_norm, rotate

from .oracles import FORMULAS, compiled, float64, initialized, numpy_attention, numpy_rotate, quick_jit, randomized

RNG = np.random.default_rng(0)
ROTATE = quick_jit(rotate)
WEIGHTS = quick_jit(attention_weights, static_argnames="causal")


@pytest.mark.parametrize("name", FORMULAS)
def test_activation_is_its_formula(name):
    x = np.linspace(-4, 4, 33)
    np.testing.assert_allclose(activation(name)(jnp.float32(x)), FORMULAS[name](x), atol=1e-6)


def norm_output(kind, x, train=True, **settings):
    """Output and updated statistics of a norm on x, with gain 2 and (where it has one) bias 3."""

    class Model(nn.Module):
        @nn.compact
        def __call__(self, x):
            return make_norm(kind, name="norm", train=train, **settings)(x)

    variables = Model().init(jax.random.key(0), x)
    values = {"scale": 2.0, "bias": 3.0}
    params = {"norm": {k: jnp.full_like(a, values[k]) for k, a in variables.get("params", {}).get("norm", {}).items()}}
    return Model().apply({**variables, "params": params}, x, mutable="batch_stats")


def test_norms_are_their_formulas():
    x = RNG.normal(2.0, 3.0, size=(16, 5))
    standardized = lambda axis: (x - x.mean(axis, keepdims=True)) / np.sqrt(x.var(axis, keepdims=True) + 1e-5)
    expected = {
        "batch": 2 * standardized(0) + 3,
        "layer": 2 * standardized(1) + 3,
        "rms": 2 * x / np.sqrt((x**2).mean(1, keepdims=True) + 1e-5),
        "none": x,
    }
    for kind, y in expected.items():
        np.testing.assert_allclose(norm_output(kind, jnp.float32(x))[0], y, atol=1e-4, err_msg=kind)


def test_batch_norm_keeps_nine_tenths_of_the_old_statistics():
    x = RNG.normal(2.0, 3.0, size=(64, 5))
    statistics = norm_output("batch", jnp.float32(x))[1]["batch_stats"]["norm"]
    np.testing.assert_allclose(statistics["mean"], 0.1 * x.mean(0), rtol=1e-5)
    np.testing.assert_allclose(statistics["var"], 0.9 + 0.1 * x.var(0), rtol=1e-4)


def test_batch_norm_without_training_uses_and_keeps_the_running_statistics():
    x = jnp.float32(RNG.normal(2.0, 3.0, size=(64, 5)))
    y, state = norm_output("batch", x, train=False)
    np.testing.assert_allclose(y, 2 * x / np.sqrt(1 + 1e-5) + 3, rtol=1e-5)  # they still are mean 0 and variance 1
    np.testing.assert_array_equal(state["batch_stats"]["norm"]["mean"], np.zeros(5))


def test_batch_norm_over_a_mapped_axis_sees_the_whole_batch():
    x = jnp.float32(RNG.normal(2.0, 3.0, size=(4, 8, 5)))
    mapped = jax.vmap(lambda x: norm_output("batch", x, axis_name="devices")[0], axis_name="devices")(x)
    np.testing.assert_allclose(mapped.reshape(32, 5), norm_output("batch", x.reshape(32, 5))[0], atol=1e-5)


def test_rotate_turns_pairs():
    x = RNG.normal(size=(2, 7, 3, 6))
    np.testing.assert_allclose(rotate(jnp.float32(x)), numpy_rotate(x), atol=1e-6)


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 2**31 - 1), half=st.sampled_from([1, 4]))
def test_rotated_products_depend_on_the_distance_only(seed, half):
    """One query and one key at every position: the table of their products is constant along each diagonal."""
    q, k = np.random.default_rng(seed).normal(size=(2, 2 * half))
    everywhere = lambda x: jnp.tile(jnp.float32(x)[None, None, None, :], (1, 9, 1, 1))
    products = np.einsum("BTHK,BSHK->TS", ROTATE(everywhere(q)), ROTATE(everywhere(k)))
    for distance in range(-8, 9):
        diagonal = np.diagonal(products, distance)
        np.testing.assert_allclose(diagonal, diagonal[0], atol=1e-4)
    assert np.ptp(products) > 1e-3 * np.abs(products).max()  # and it does depend on the distance


def test_attention_in_float64_is_in_float64_to_the_last_step():
    x = RNG.normal(size=(2, 5, 12))
    with jax.enable_x64(True):
        model = MultiHeadAttention(12, heads=3, causal=True, dtype="float64", param_dtype="float64")
        variables = randomized(model, jnp.asarray(x))
        expected, _ = numpy_attention(float64(variables["params"]), x, 3, causal=True)
        np.testing.assert_allclose(compiled(model)(variables, x), expected, rtol=1e-12)


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize(
    "extras", [{}, {"rotary": True}, {"qk_norm": True}, {"rotary": True, "qk_norm": True}], ids=str
)
def test_attention_is_its_formula(causal, extras):
    model = MultiHeadAttention(12, heads=3, causal=causal, **extras)
    x = RNG.normal(size=(2, 5, 12))
    variables = randomized(model, jnp.float32(x))
    expected, weights = numpy_attention(float64(variables["params"]), x, 3, causal=causal, **extras)
    out, state = compiled(model, mutable="intermediates")(variables, jnp.float32(x))
    np.testing.assert_allclose(out, expected, atol=2e-5)
    np.testing.assert_allclose(compiled(model)(variables, jnp.float32(x)), expected, atol=2e-5)
    np.testing.assert_allclose(state["intermediates"]["attention_weights"][0], weights, atol=2e-6)


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 2**31 - 1), causal=st.booleans(), scale=st.sampled_from([0.1, 1.0, 30.0]))
def test_rows_of_attention_weights_sum_to_one(seed, causal, scale):
    q, k = jnp.float32(np.random.default_rng(seed).normal(size=(2, 2, 6, 3, 4)) * scale)
    weights = np.asarray(WEIGHTS(q, k, causal=causal))
    assert weights.shape == (2, 3, 6, 6)
    assert weights.min() >= 0
    np.testing.assert_allclose(weights.sum(-1), 1.0, rtol=1e-5)
    if causal:
        np.testing.assert_array_equal(weights, np.tril(weights))


def test_attention_weights_cost_nothing_unless_asked_for():
    """The exponentials are those of `jax.nn.dot_product_attention` alone."""
    model = MultiHeadAttention(8, heads=2)
    x = jnp.ones((1, 4, 8))
    variables = initialized(model, x)
    assert set(variables) == {"params"}
    silent = str(jax.make_jaxpr(lambda v: model.apply(v, x))(variables))
    asked = str(jax.make_jaxpr(lambda v: model.apply(v, x, mutable=["intermediates"]))(variables))
    assert silent.count(" exp ") == 1
    assert asked.count(" exp ") == 2


def test_projections_are_matrices_with_the_names_that_roles_reads():
    params = jax.eval_shape(MultiHeadAttention(8, heads=2, bias=False).init, jax.random.key(0), jnp.ones((1, 4, 8)))[
        "params"
    ]
    assert {name: p["kernel"].shape for name, p in params.items()} == dict.fromkeys(
        ("query", "key", "value", "out"), (8, 8)
    )
    assert all(set(p) == {"kernel"} for p in params.values())


@pytest.mark.parametrize("kind", [*FORMULAS, "swiglu"])
def test_feed_forward_is_its_formula(kind):
    model = FeedForward(6, hidden=10, activation=kind, bias=True, out_std=0.1, dtype="float32", param_dtype="float32")
    x = RNG.normal(size=(2, 3, 6))
    variables = randomized(model, jnp.float32(x))
    p = float64(variables["params"])
    linear = lambda name, x: x @ p[name]["kernel"] + p[name]["bias"]
    up = linear("up", x)
    hidden = FORMULAS["silu"](linear("gate", x)) * up if kind == "swiglu" else FORMULAS[kind](up)
    np.testing.assert_allclose(compiled(model)(variables, jnp.float32(x)), linear("down", hidden), atol=2e-5)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"heads": 5}, r"heads must divide width \(384\), got 5"),
        ({"heads": 0}, "heads must be a whole number of at least 1, got 0"),
        ({"heads": 2.0}, r"heads must be a whole number of at least 1, got 2\.0"),
        ({"heads": 128, "rotary": True}, "the width of a head must be even, got width 384 / heads 128 = 3"),
        (
            {"heads": 6, "dtype": "float23"},
            "dtype must be one of float32, bfloat16, float64, got 'float23': did you mean 'float32'?",
        ),
        ({"heads": 6, "param_dtype": "int8"}, "param_dtype must be one of float32, bfloat16, float64, got 'int8'$"),
    ],
)
def test_impossible_attention_is_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        MultiHeadAttention(384, **settings)
