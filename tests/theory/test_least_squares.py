"""Least squares: every prediction beside what optlab's own optimizers do in float64."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import optlab
from optlab.theory import least_squares as ls

same = np.testing.assert_allclose


def problem(n=12, d=4, seed=0, noise=0.5):
    rng = np.random.default_rng(seed)
    X = rng.normal(size=(n, d)) * np.linspace(1, 2, d)
    return X, X @ rng.normal(size=d) + noise * rng.normal(size=n)


def trained(tx, X, y, w0=None, steps=2000, **settings):
    """gradient descent on ‖Xw − y‖² by optlab's own optimizers."""
    w0 = np.zeros(X.shape[1]) if w0 is None else w0
    return optlab.minimize(lambda w: ls.loss(X, y, w), tx, jnp.asarray(w0), steps=steps, **settings)


# Where it ends.


def test_closed_form_is_numpys():
    X, y = problem()
    same(ls.closed_form(X, y), np.linalg.lstsq(X, y)[0], rtol=1e-10)


def test_a_bias_is_a_column_of_ones():
    X, y = problem()
    w = ls.closed_form(ls.with_bias(X), y)
    same(w, np.linalg.lstsq(np.c_[X, np.ones(12)], y)[0], rtol=1e-10)


@pytest.mark.parametrize("shape", [(4, 9), (9, 4)])
def test_where_it_is_singular_the_solution_is_the_least_one(shape):
    X, y = problem(*shape)
    X[:, -1] = X[:, 0] - X[:, 1]  # more unknowns than equations, and dependent columns
    same(ls.closed_form(X, y), np.linalg.pinv(X, rcond=1e-12) @ y, rtol=1e-9)
    assert np.linalg.cond(X.T @ X) > 1e14  # the normal equations have no digit left


def test_ridge_is_the_minimum_that_weight_decay_finds():
    X, y = problem()
    penalty = 0.7
    same(ls.ridge(X, y, penalty), np.linalg.solve(X.T @ X + penalty * np.eye(4), X.T @ y), rtol=1e-10)
    rate = float(ls.best_learning_rate(X))
    found = trained(optlab.sgd(rate, weight_decay=2 * penalty), X, y)
    same(found.final, ls.ridge(X, y, penalty), rtol=1e-10)


def test_no_penalty_is_the_closed_form():
    X, y = problem(4, 9)
    same(ls.ridge(X, y, 0.0), ls.closed_form(X, y), rtol=1e-12)


def test_newtons_step_ends_at_the_solution_from_anywhere():
    X, y = problem()
    w0 = np.full(4, 100.0)
    same(ls.newton_step(X, y, w0), ls.closed_form(X, y), rtol=1e-10)
    X, y = problem(4, 9)
    w = ls.newton_step(X, y, np.ones(9))
    same(X @ w, y, rtol=1e-10)
    beside = np.ones(9) - w  # what it moved by lies in the row space: the nearest solution
    same(X.T @ np.linalg.lstsq(X.T, beside)[0], beside, rtol=1e-9)


def test_costs_of_a_step():
    assert ls.costs(1000, 10, 8) == {
        "newton_hessian": 100_000,
        "newton_solve": 1000,
        "gradient_descent": 10_000,
        "sgd": 80,
    }


def test_the_hessian_is_semi_definite_and_definite_where_columns_are_independent():
    X, y = problem()
    same(ls.hessian(X), jax.jit(jax.hessian(lambda w: ls.loss(X, y, w)))(jnp.ones(4)), rtol=1e-12)
    assert np.linalg.eigvalsh(ls.hessian(X))[0] > 1e-3
    X, _ = problem(4, 9)
    values = np.linalg.eigvalsh(ls.hessian(X))
    same(values[:5], 0, atol=1e-10)
    assert values[5] > 1e-3


# How gradient descent gets there.


@pytest.mark.parametrize("shape", [(12, 4), (4, 9)])
def test_the_path_is_the_one_that_sgd_goes(shape):
    X, y = problem(*shape)
    w0, rate = np.linspace(-1, 1, shape[1]), 0.8 * float(ls.stability_bound(X))
    predicted = ls.gradient_descent_path(X, y, w0, learning_rate=rate, steps=200)
    same(trained(optlab.sgd(rate), X, y, w0, steps=200).x, predicted, atol=1e-10)


def test_the_bound_parts_what_converges_from_what_explodes():
    X, y = problem()
    bound = float(ls.stability_bound(X))
    below, above = (trained(optlab.sgd(c * bound), X, y, steps=3000).values for c in (0.99, 1.01))
    same(below[-1], ls.loss(X, y, ls.closed_form(X, y)), rtol=1e-8)
    assert above[-1] > 1e6
    told = ls.gradient_descent(X, learning_rate=1.01 * bound)
    assert told.diverges
    same(told.rate, 1.02, rtol=1e-10)
    assert not ls.gradient_descent(X, learning_rate=0.99 * bound).diverges


def test_the_best_rate_is_reached_and_no_other_learning_rate_is_faster():
    X, y = problem()
    told = ls.gradient_descent(X, learning_rate=ls.best_learning_rate(X))
    kappa = np.linalg.cond(X) ** 2
    same(told.condition, kappa, rtol=1e-10)
    same([told.rate, told.best_rate], (kappa - 1) / (kappa + 1), rtol=1e-10)
    solution = np.asarray(ls.closed_form(X, y))
    errors = np.linalg.norm(np.asarray(trained(optlab.sgd(told.best), X, y, steps=60).x) - solution, axis=1)
    same(errors[60] / errors[40], told.best_rate**20, rtol=1e-3)
    for scale in (0.9, 1.1):
        assert ls.gradient_descent(X, learning_rate=scale * told.best).rate > told.best_rate


@pytest.mark.parametrize("shape", [(12, 4), (4, 9)])
def test_early_stopping_is_a_filter_beside_ridges(shape):
    X, y = problem(*shape)
    rate = 0.5 * float(ls.stability_bound(X))
    path = trained(optlab.sgd(rate), X, y, steps=50).x
    for t in (0, 1, 7, 50):
        same(path[t], ls.early_stopping(X, y, learning_rate=rate, steps=t), atol=1e-10)


def test_filter_factors():
    sigma = np.array([0.0, 0.1, 1.0, 2.0])
    same(ls.ridge_filter(sigma, 0.5), [0, 0.01 / 0.51, 1 / 1.5, 4 / 4.5], rtol=1e-12)
    same(ls.early_stopping_filter(sigma, learning_rate=0.1, steps=3), 1 - (1 - 0.2 * sigma**2) ** 3, rtol=1e-12)


@given(log_sigma=st.floats(-3, 0), log_strength=st.floats(-2, 2))
def test_stopping_early_is_about_as_much_as_a_penalty(log_sigma, log_strength):
    """1 − e^(−x) lies between x/(1 + x) and 1.3 times that, x = σ²/λ, where η is small (λ = 1/(2ηt))."""
    with jax.enable_x64(True):
        sigma, penalty, steps = 10.0**log_sigma, 10.0**log_strength, 10_000
        stopped = ls.early_stopping_filter(sigma, learning_rate=1 / (2 * penalty * steps), steps=steps)
        shrunk = ls.ridge_filter(sigma, penalty)
        assert 0.99 <= stopped / shrunk <= 1.3


@pytest.mark.parametrize("momentum", [None, 0.5])
def test_from_zero_gd_and_sgd_end_at_the_least_solution(momentum):
    X, y = problem(4, 9)
    rate = 0.4 * float(ls.stability_bound(X))
    least = ls.closed_form(X, y)
    same(trained(optlab.sgd(rate, momentum=momentum), X, y).final, least, atol=1e-9)
    X, y = jnp.asarray(X), jnp.asarray(y)

    def one(w, key):
        i = jax.random.randint(key, (), 0, 4)
        return jnp.square(X[i] @ w - y[i])

    path = optlab.minimize(one, optlab.sgd(rate), jnp.zeros(9), steps=6000, key=jax.random.key(0), record=None)
    same(path.final, least, atol=1e-8)


# Momentum.


def test_heavy_ball_has_the_rate_of_the_root_of_kappa():
    X, y = problem(d=3)
    told = ls.gradient_descent(X, learning_rate=0.0)
    sigma = np.linalg.svd(X, compute_uv=False)
    best = ls.heavy_ball(2 * sigma[0] ** 2, 2 * sigma[-1] ** 2)
    root = np.sqrt(told.condition)
    same(best.rate, (root - 1) / (root + 1), rtol=1e-10)
    tx = optlab.sgd(best.learning_rate, momentum=best.momentum)
    errors = np.linalg.norm(np.asarray(trained(tx, X, y, steps=30).x) - np.asarray(ls.closed_form(X, y)), axis=1)
    seen = (errors[30] / 30 / (errors[15] / 15)) ** (1 / 15)  # t·ρᵗ, and what of it goes faster
    same(seen, best.rate, rtol=0.05)
    assert best.rate < told.best_rate


def test_no_other_heavy_ball_is_faster():
    largest, smallest = 20.0, 1.0
    best = ls.heavy_ball(largest, smallest)

    def radius(eta, beta):
        step = lambda h: np.array([[1 - eta * h, -eta * beta], [h, beta]])
        return max(abs(np.linalg.eigvals(step(h))).max() for h in (largest, smallest))

    same(radius(float(best.learning_rate), float(best.momentum)), best.rate, rtol=1e-6)
    for a, b in [(0.9, 1), (1.1, 1), (1, 0.9), (1, 1.1), (0.9, 0.9), (1.1, 1.1)]:
        assert radius(a * float(best.learning_rate), b * float(best.momentum)) > float(best.rate)


@pytest.mark.parametrize("nesterov", [False, True])
@pytest.mark.parametrize("omega", [0.0, 0.3, 1.5, np.pi])
def test_momentum_is_the_filter_that_its_response_says(nesterov, omega):
    tx = optlab.momentum(0.9, style="ema", nesterov=nesterov)
    gradients = np.cos(omega * np.arange(400))
    _, updates = jax.lax.scan(lambda s, g: tx.update(g, s)[::-1], tx.init(jnp.zeros(())), jnp.asarray(gradients))
    response = ls.frequency_response(0.9, omega, nesterov=nesterov)
    expected = np.real(response * np.exp(1j * omega * np.arange(400)))
    same(updates[300:], expected[300:], atol=1e-12)


def test_the_filter_lets_the_slow_through_and_stops_the_zigzag():
    gain = np.abs(ls.frequency_response(0.9, np.linspace(0, np.pi, 50)))
    same(gain[[0, -1]], [1, 0.1 / 1.9], rtol=1e-12)
    assert (np.diff(gain) < 0).all()


@pytest.mark.parametrize("friction", [0.3, 2.0, 5.0])  # swings, is critically damped, creeps (h = 1)
def test_small_steps_make_a_ball_with_friction(friction):
    gaps = []
    for delta in (0.02, 0.01):
        steps = round(4 / delta)
        tx = optlab.sgd(delta**2, momentum=1 - friction * delta)
        path = optlab.minimize(lambda x: 0.5 * x**2, tx, 1.0, steps=steps)
        gaps.append(
            np.max(abs(path.x - ls.ball_with_friction(1.0, 1.0, delta * np.arange(steps + 1), friction=friction)))
        )
    assert gaps[0] < 0.05
    same(gaps[0] / gaps[1], 2, rtol=0.1)  # first order in the step


# What cannot be asked.


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: ls.closed_form(np.ones(3), np.ones(3)), r"X must be a matrix, got the shape \(3,\)"),
        (lambda: ls.closed_form(np.ones((3, 2)), np.ones(2)), r"y must have one entry for each of the 3 rows"),
        (lambda: ls.loss(np.ones((3, 2)), np.ones(3), np.ones(3)), r"w must have the shape \(2,\), got \(3,\)"),
        (lambda: ls.ridge(np.ones((3, 2)), np.ones(3), -1.0), r"penalty must not be negative, got -1"),
        (lambda: ls.heavy_ball(1.0, 2.0), r"largest must be at least smallest \(2.0\), got 1.0"),
        (lambda: ls.frequency_response(1.0, 0.1), r"decay must lie in \[0, 1\), got 1.0"),
    ],
)
def test_what_does_not_fit_is_named(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def test_everything_traces():
    X, y = problem()
    stacked = jnp.stack([X, 2 * X])
    same(jax.jit(jax.vmap(lambda X: ls.closed_form(X, y)))(stacked)[1], ls.closed_form(X, y) / 2, rtol=1e-10)
    jax.jit(lambda X, rate: ls.gradient_descent(X, learning_rate=rate))(X, 0.1)
