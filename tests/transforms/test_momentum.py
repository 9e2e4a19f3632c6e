import jax.numpy as jnp
import numpy as np
import optax
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import optlab

from .runs import gradients, in_float64, ravine, scan_iterates, updates, weighted

BETA = 0.8


def unrolled(c: float, steps: int) -> list[list[float]]:
    """The weights c·β^k of the gradient that is k steps old."""
    return [[c * BETA ** (t - k) for k in range(t + 1)] for t in range(steps)]


@pytest.mark.parametrize(("style", "c"), [("heavy_ball", 1.0), ("ema", 1 - BETA)])
@pytest.mark.parametrize("nesterov", [False, True])
def test_momentum_is_its_unrolled_sum(style, c, nesterov):  # A3, A4, A5
    g = gradients()
    m = weighted(unrolled(c, len(g)), g)
    expected = BETA * m + c * g if nesterov else m
    np.testing.assert_allclose(updates(optlab.momentum(BETA, style=style, nesterov=nesterov), g), expected, rtol=1e-12)


def test_an_average_that_starts_at_the_first_gradient_is_a_convex_combination():  # A3
    g = gradients()
    weights = unrolled(1 - BETA, len(g))
    for t, row in enumerate(weights):
        row[0] += BETA ** (t + 1)
        assert sum(row) == pytest.approx(1)
        assert min(row) >= 0
    tx = optlab.momentum(BETA, style="ema", start="first_gradient")
    np.testing.assert_allclose(updates(tx, g), weighted(weights, g), rtol=1e-12)


GRADIENT, START, _ = ravine()


def path(style, nesterov, beta, rate, start):
    tx = optax.chain(optlab.momentum(beta, nesterov=nesterov, style=style), optax.scale(-rate))
    return scan_iterates(tx, GRADIENT, start, 50)


paths = {
    (style, nesterov): in_float64(path, style, nesterov)
    for style in ("heavy_ball", "ema")
    for nesterov in (False, True)
}


@pytest.mark.parametrize("nesterov", [False, True])
@settings(max_examples=20, deadline=None)
@given(beta=st.floats(0, 0.99), rate=st.floats(1e-3, 0.5))
def test_heavy_ball_goes_the_averages_path_with_the_rate_scaled(nesterov, beta, rate):  # A4 is A3 rescaled
    ball, average = paths["heavy_ball", nesterov], paths["ema", nesterov]
    np.testing.assert_allclose(ball(beta, (1 - beta) * rate, START), average(beta, rate, START), rtol=1e-9, atol=1e-12)


def test_the_rate_may_stand_inside_the_heavy_ball():  # A4: v ← βv − ηg, θ ← θ + v
    theta, v, path = START, 0.0, [START]
    for _ in range(50):
        v = BETA * v - 0.3 * GRADIENT(theta)
        theta = theta + v
        path.append(theta)
    np.testing.assert_allclose(paths["heavy_ball", False](BETA, 0.3, START), path, rtol=1e-9, atol=1e-12)


@settings(max_examples=20, deadline=None)
@given(beta=st.floats(0, 0.95), rate=st.floats(1e-3, 0.5), start=st.floats(-10, 10))
def test_nesterov_is_the_look_ahead_after_a_change_of_variables(beta, rate, start):  # A6 is A5
    gradient, start = GRADIENT, start * START
    theta, v, looked_ahead = start, np.zeros_like(start), [start]
    for _ in range(50):
        v = beta * v - rate * gradient(theta + beta * v)
        theta = theta + v
        looked_ahead.append(theta + beta * v)
    np.testing.assert_allclose(paths["heavy_ball", True](beta, rate, start), looked_ahead, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("nesterov", [False, True])
def test_heavy_ball_is_optax_trace(nesterov):
    g = gradients(100)
    np.testing.assert_allclose(
        updates(optlab.momentum(0.9, nesterov=nesterov), g), updates(optax.trace(0.9, nesterov), g)
    )


def test_average_is_optax_ema():
    g = gradients(100)
    np.testing.assert_allclose(updates(optlab.momentum(0.9, style="ema"), g), updates(optax.ema(0.9, debias=False), g))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"decay": 1.0}, r"decay must lie in \[0, 1\), got 1\.0"),
        ({"decay": 0.9, "style": "average"}, "style must be one of 'heavy_ball', 'ema', got 'average'"),
        ({"decay": 0.9, "start": "first"}, "start must be one of 'zero', 'first_gradient', got 'first'"),
        ({"decay": 0.9, "start": "first_gradient"}, "start='first_gradient' needs style='ema'"),
    ],
)
def test_momentum_refuses(arguments, message):
    with pytest.raises(ValueError, match=message):
        optlab.momentum(**arguments)


# A26: Nesterov's combination with a coefficient of its own.


def own_average(gradients, beta, alpha):
    m, found = 0.0, []
    for g in gradients:
        m = beta * m + (1 - beta) * g
        found.append(alpha * m + (1 - alpha) * g)
    return np.array(found)


def updates_of(tx, gradients):
    state, found = tx.init(jnp.zeros(())), []
    for g in gradients:
        update, state = tx.update(jnp.asarray(g), state)
        found.append(update)
    return np.array(found)


@pytest.mark.parametrize("alpha", [0.0, 0.3, 0.9, 1.0])
def test_a_coefficient_of_its_own(alpha):
    gradients = np.random.default_rng(0).normal(size=12).astype(np.float32)
    expected = own_average(gradients, 0.8, alpha)
    average = updates_of(optlab.momentum(0.8, nesterov=alpha, style="ema"), gradients)
    np.testing.assert_allclose(average, expected, rtol=1e-5, atol=1e-6)
    ball = updates_of(optlab.momentum(0.8, nesterov=alpha), gradients)
    np.testing.assert_allclose(ball, expected / 0.2, rtol=1e-5, atol=1e-5)  # the same path, the rate scaled


@pytest.mark.parametrize("style", ["ema", "heavy_ball"])
def test_the_coefficient_beta_is_nesterovs_and_one_is_plain_momentum(style):
    gradients = np.random.default_rng(1).normal(size=12).astype(np.float32)
    of = lambda nesterov: updates_of(optlab.momentum(0.8, nesterov=nesterov, style=style), gradients)
    np.testing.assert_allclose(of(0.8), of(True), rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(of(1.0), of(False), rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(
        updates_of(optlab.sgd(1.0, momentum=0.8, nesterov=0.5), gradients),
        -updates_of(optlab.momentum(0.8, nesterov=0.5), gradients),
    )


@pytest.mark.parametrize(
    ("nesterov", "message"),
    [(1, "nesterov must be True, False or a coefficient"), (1.5, r"nesterov must lie in \[0, 1\], got 1.5")],
)
def test_what_is_no_coefficient_is_named(nesterov, message):
    with pytest.raises(ValueError, match=message):
        optlab.momentum(0.9, nesterov=nesterov)
