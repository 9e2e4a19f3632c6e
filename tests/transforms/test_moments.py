import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import optlab

from .runs import gradients, in_float64, scan_updates, updates, weighted

B1, B2, EPS = 0.8, 0.95, 1e-3


def average(beta, x, corrected=False, first=False):
    """Σ(1 − β)β^k x_{t−k}, divided by the sum of the weights, or begun at x₁."""
    weights = [[(1 - beta) * beta ** (t - k) for k in range(t + 1)] for t in range(len(x))]
    if corrected:
        weights = [[w / sum(row) for w in row] for row in weights]
    if first:
        weights = [[row[0] + beta ** (t + 1), *row[1:]] for t, row in enumerate(weights)]
    return weighted(weights, x)


@pytest.mark.parametrize(
    ("settings_", "oracle"),
    [
        ({"bias_correction": False}, {}),  # A11
        ({}, {"corrected": True}),  # A12
        ({"bias_correction": False, "start": "first_gradient"}, {"first": True}),  # A13
    ],
)
def test_adam_formula(settings_, oracle):
    g = gradients()
    expected = average(B1, g, **oracle) / (np.sqrt(average(B2, g**2, **oracle)) + EPS)
    np.testing.assert_allclose(updates(optlab.scale_by_adam(B1, B2, EPS, **settings_), g), expected, rtol=1e-10)


def test_adam_nesterov_without_correction_takes_the_new_average():
    g = gradients()
    tx = optlab.scale_by_adam(B1, B2, EPS, nesterov=True, bias_correction=False)
    expected = (B1 * average(B1, g) + (1 - B1) * g) / (np.sqrt(average(B2, g**2)) + EPS)
    np.testing.assert_allclose(updates(tx, g), expected, rtol=1e-12)


@pytest.mark.parametrize(
    "settings_", [{}, {"nesterov": True}, {"b1": 0.5, "b2": 0.9, "eps": 0.1, "eps_root": 1e-3}, {"mu_dtype": "float32"}]
)
def test_adam_is_optax_adam(settings_):
    g = gradients(100)
    ours, theirs = optlab.scale_by_adam(**settings_), optax.scale_by_adam(**settings_)
    np.testing.assert_allclose(updates(ours, g), updates(theirs, g), rtol=1e-12)
    shapes = [jax.eval_shape(tx.init, jnp.ones(3)) for tx in (ours, theirs)]
    assert shapes[0] == shapes[1]


adam_updates = in_float64(lambda b1, b2, g: scan_updates(optlab.scale_by_adam(b1, b2, eps=0.0), g))


@settings(max_examples=20, deadline=None)
@given(scale=st.floats(1e-6, 1e6), b1=st.floats(0, 0.95), b2=st.floats(0, 0.999))
def test_corrected_adam_doesnt_see_the_scale_of_the_gradients(scale, b1, b2):
    g = gradients(10)
    np.testing.assert_allclose(adam_updates(b1, b2, scale * g), adam_updates(b1, b2, g), rtol=1e-9)


@settings(max_examples=20, deadline=None)
@given(b1=st.floats(0, 0.99), b2=st.floats(0, 0.9999), g=st.floats(1e-3, 1e3))
def test_equal_gradients_have_themselves_as_corrected_average(b1, b2, g):  # A12: m̂ = g, so the update is sign(g)
    np.testing.assert_allclose(adam_updates(b1, b2, np.full((10, 5), -g)), -1, rtol=1e-9)


started = in_float64(
    lambda b1, b2, g: scan_updates(optlab.scale_by_adam(b1, b2, 1e-8, bias_correction=False, start="first_gradient"), g)
)
corrected = in_float64(lambda b1, b2, g: scan_updates(optlab.scale_by_adam(b1, b2, 1e-8), g))


@settings(max_examples=20, deadline=None)
@given(b1=st.floats(0, 0.9), b2=st.floats(0, 0.9), scale=st.floats(1e-2, 1e2))
def test_a_start_at_the_first_gradient_against_bias_correction(b1, b2, scale):  # A13 against A12
    """Both are weighted means: the same at the first step and under equal gradients, and after many steps. Between
    them the start gives the first gradient βᵗ⁻¹ of the weight, the correction (1 − β)βᵗ⁻¹ / (1 − βᵗ)."""
    g = scale * gradients(150, seed=3)
    start, correction = started(b1, b2, g), corrected(b1, b2, g)
    np.testing.assert_allclose(start[0], correction[0], rtol=1e-9)
    np.testing.assert_allclose(start[-1], correction[-1], rtol=1e-3)
    equal = np.broadcast_to(g[0], g.shape)
    np.testing.assert_allclose(started(b1, b2, equal), corrected(b1, b2, equal), rtol=1e-9)
    first = lambda weight: (weight * g[0] + (1 - weight) * g[1], weight * g[0] ** 2 + (1 - weight) * g[1] ** 2)
    for rule, weight in ((start, lambda b: b), (correction, lambda b: (1 - b) * b / (1 - b**2))):
        m, v = first(weight(b1))[0], first(weight(b2))[1]
        np.testing.assert_allclose(rule[1], m / (np.sqrt(v) + 1e-8), rtol=1e-6, atol=1e-9)


def test_adam_is_softsign_momentum_times_the_agreement_of_the_gradients():  # A15
    steps = 400
    g = np.stack([np.ones(steps), (-1.0) ** np.arange(steps)], axis=1)  # one coordinate agrees, one flips
    adam = updates(optlab.scale_by_adam(0.9, 0.999, 1e-12, bias_correction=False), g)
    softsign = updates(optax.chain(optlab.momentum(0.9, style="ema"), optlab.scale_by_softsign(1e-12)), g)
    agreement = np.abs(average(0.9, g)) / np.sqrt(average(0.999, g**2))
    np.testing.assert_allclose(adam, agreement * softsign, rtol=1e-9)
    assert agreement[-1, 1] < 0.1 * agreement[-1, 0]


@pytest.mark.parametrize("inside", [True, False])
@pytest.mark.parametrize("corrected", [False, True])
def test_rms_formula(inside, corrected):  # A10
    g = gradients()
    v = average(0.9, g**2, corrected)
    expected = g / np.sqrt(v + EPS) if inside else g / (np.sqrt(v) + EPS)
    tx = optlab.scale_by_rms(0.9, EPS, eps_in_sqrt=inside, bias_correction=corrected)
    np.testing.assert_allclose(updates(tx, g), expected, rtol=1e-12)


@pytest.mark.parametrize("centered", [False, True])
@pytest.mark.parametrize("settings_", [{}, {"eps_in_sqrt": False}, {"bias_correction": True}, {"initial_scale": 1.0}])
def test_rms_is_optax_rms(centered, settings_):
    g = gradients(100)
    theirs = (optax.scale_by_stddev if centered else optax.scale_by_rms)(eps=EPS, **settings_)
    ours = optlab.scale_by_rms(eps=EPS, centered=centered, **settings_)
    np.testing.assert_allclose(updates(ours, g), updates(theirs, g), rtol=1e-9)


def test_centered_rms_is_finite_where_the_variance_rounds_below_zero():
    """Under equal gradients v − m² is nothing but rounding; `optax.scale_by_stddev` gives NaN here."""
    tx, g = optlab.scale_by_rms(0.5, centered=True), jnp.linspace(1, 1000, 64)
    finite = jax.lax.scan(lambda s, _: (tx.update(g, s)[1], jnp.isfinite(tx.update(g, s)[0])), tx.init(g), None, 100)[1]
    assert finite.all()


@pytest.mark.parametrize("inside", [True, False])
def test_adagrad_formula(inside):  # A9
    g = gradients()
    s = 0.5 + np.cumsum(g**2, axis=0)
    expected = g / np.sqrt(s + EPS) if inside else g / (np.sqrt(s) + EPS)
    np.testing.assert_allclose(updates(optlab.scale_by_adagrad(0.5, EPS, eps_in_sqrt=inside), g), expected, rtol=1e-12)


def test_adagrad_is_optax_rss():
    g = gradients(100)
    np.testing.assert_allclose(updates(optlab.scale_by_adagrad(), g), updates(optax.scale_by_rss(), g), rtol=1e-12)


def test_adagrad_from_zero_leaves_what_has_no_gradient():
    np.testing.assert_array_equal(updates(optlab.scale_by_adagrad(0.0, 0.0), np.zeros((2, 3))), 0)


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16])
def test_second_moments_forget_in_sixteen_bits(dtype):
    """In bfloat16 0.999 is 1 and a change by a thousandth is lost: v would stay where it is."""
    tx = optlab.scale_by_adam(b2=0.999)
    params = jnp.ones(3, dtype)
    grads = jnp.repeat(jnp.array([1.0, 0.0], dtype), 300)[:, None] * params[None]
    state, _ = jax.lax.scan(lambda state, g: (tx.update(g, state)[1], None), tx.init(params), grads)
    np.testing.assert_allclose(state.nu, (1 - 0.999**300) * 0.999**300, rtol=1e-3)


@pytest.mark.parametrize(
    ("factory", "arguments", "message"),
    [
        ("scale_by_adam", {"b1": 1.5}, r"b1 must lie in \[0, 1\), got 1\.5"),
        ("scale_by_adam", {"b2": 1}, r"b2 must lie in \[0, 1\), got 1"),
        ("scale_by_adam", {"eps": -1e-8}, r"eps must not be negative, got -1e-08"),
        ("scale_by_adam", {"start": "first_gradient"}, "pass bias_correction=False with it"),
        ("scale_by_rms", {"decay": -0.1}, r"decay must lie in \[0, 1\), got -0\.1"),
        (
            "scale_by_adagrad",
            {"initial_accumulator_value": -1},
            "initial_accumulator_value must not be negative, got -1",
        ),
    ],
)
def test_moments_refuse(factory, arguments, message):
    with pytest.raises(ValueError, match=message):
        getattr(optlab, factory)(**arguments)
