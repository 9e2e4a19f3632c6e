"""SGD on least squares: exact expectations beside means over a thousand seeds of optlab's own optimizers."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import optlab
from optlab.theory import least_squares as ls

same = np.testing.assert_allclose
N, D, SEEDS = 10, 3, 1000


def problem(n=N, d=D, noise=0.5):
    rng = np.random.default_rng(0)
    X = rng.normal(size=(n, d)) * np.linspace(0.5, 1, d)
    return jnp.asarray(X), jnp.asarray(X @ rng.normal(size=d) + noise * rng.normal(size=n))


def over_seeds(X, y, tx, w0, steps, batch_size=1, average=None, seeds=SEEDS):
    """‖Xw − y‖²/N along SGD with replacement, (seeds, steps + 1); of the moving average, if its decay is given."""

    def batch_loss(w, key):
        rows = jax.random.randint(key, (batch_size,), 0, len(y))
        return jnp.mean((X[rows] @ w - y[rows]) ** 2)

    def run(key):
        ws = optlab.minimize(batch_loss, tx, w0, steps=steps, key=key).x
        if average is not None:

            def blend(a, item):
                t, w = item
                a = a + (1 - average(t)) * (w - a)
                return a, a

            _, means = jax.lax.scan(blend, ws[0], (jnp.arange(steps), ws[1:]))
            ws = jnp.concatenate([ws[:1], means])
        return jnp.mean((ws @ X.T - y[None]) ** 2, axis=1)

    return np.asarray(jax.jit(jax.vmap(run))(jax.random.split(jax.random.key(0), seeds)))


def agrees(seen, predicted, at=(1, 2, 5, 20, 60)):
    """Within 3.5 standard errors at every one of those steps (five of them: 0.3 % false alarms)."""
    mean, error = seen.mean(axis=0), seen.std(axis=0, ddof=1) / np.sqrt(len(seen))
    z = (mean - np.asarray(predicted))[list(at)] / error[list(at)]
    assert np.abs(z).max() < 3.5, z
    same(seen[:, 0], predicted[0], rtol=1e-10)


CURES = {
    "as it is": {},
    "a larger batch": {"batch_size": 4},
    "a decaying rate": {"learning_rate": optlab.schedules.inverse(0.1, timescale=10)},
    "momentum": {"learning_rate": 0.02, "momentum": 0.8},
    "an average": {"average_from": 15},
}


@pytest.mark.parametrize("cure", CURES)
def test_the_expected_risk_is_the_mean_over_seeds(cure):
    X, y = problem()
    settings = {"learning_rate": 0.1, **CURES[cure]}
    predicted = ls.sgd_risk(X, y, jnp.ones(D), steps=60, **settings)
    start = settings.pop("average_from", None)
    average = None if start is None else optlab.schedules.tail_average(start)
    tx = optlab.sgd(settings["learning_rate"], momentum=settings.get("momentum"))
    agrees(over_seeds(X, y, tx, jnp.ones(D), 60, settings.get("batch_size", 1), average), predicted)


def test_a_batch_of_everything_without_noise_in_it_is_gradient_descent():
    """B → ∞ is the full gradient; one example is it exactly."""
    X, y = problem(1, 3)
    w0 = jnp.ones(3)
    path = ls.gradient_descent_path(X, y, w0, learning_rate=0.1, steps=20)
    same(ls.sgd_risk(X, y, w0, learning_rate=0.1, steps=20), jnp.mean((path @ X.T - y[None]) ** 2, axis=1), atol=1e-12)


@pytest.mark.parametrize("settings", [{}, {"batch_size": 4}, {"learning_rate": 0.02, "momentum": 0.8}])
def test_the_floor_is_where_the_recursion_ends(settings):
    X, y = problem()
    settings = {"learning_rate": 0.1, **settings}
    risk = ls.sgd_risk(X, y, jnp.ones(D), steps=3000, **settings)
    least = ls.loss(X, y, ls.closed_form(X, y)) / N
    same(ls.noise_floor(X, y, **settings), risk[-1] - least, rtol=1e-8)


def test_training_hovers_at_the_floor():
    """The mean over the last 400 of 600 steps and 200 seeds, within 3 standard errors over seeds."""
    X, y = problem()
    seen = over_seeds(X, y, optlab.sgd(0.05), ls.closed_form(X, y), 600, seeds=200)[:, 200:].mean(axis=1)
    floor = ls.noise_floor(X, y, learning_rate=0.05) + ls.loss(X, y, ls.closed_form(X, y)) / N
    assert abs(seen.mean() - floor) < 3 * seen.std(ddof=1) / np.sqrt(200)


def test_the_floor_is_proportional_to_the_rate_and_to_one_over_the_batch():
    X, y = problem()
    floor = lambda eta, batch=1: float(ls.noise_floor(X, y, learning_rate=eta, batch_size=batch))
    same(floor(2e-4) / floor(1e-4), 2, rtol=1e-3)
    same(floor(1e-4, 8) / floor(1e-4), 1 / 8, rtol=1e-3)
    r = y - X @ ls.closed_form(X, y)
    trace = 4 * jnp.mean(jnp.sum((X * r[:, None]) ** 2, axis=1))
    same(floor(1e-4), 1e-4 * trace / 4, rtol=1e-3)


@pytest.mark.parametrize(("eta", "beta"), [(0.02, 0.9), (0.4, 0.9)])
def test_momentum_is_a_weak_cure(eta, beta):
    """At the same effective rate it removes only what is of second order in η."""
    X, y = problem(d=1)
    h = float(ls.hessian(X)[0, 0]) / N
    plain = ls.noise_floor(X, y, learning_rate=eta)
    slow = ls.noise_floor(X, y, learning_rate=eta * (1 - beta), momentum=beta)
    # the gradient's noise is multiplicative too, which the formula with a constant s² leaves out: 5 %
    same(slow / plain, (2 - eta * h) / (2 - eta * h * (1 - beta) / (1 + beta)), rtol=0.05 + eta)
    assert slow < plain
    assert ls.noise_floor(X, y, learning_rate=eta, momentum=beta) > 5 * plain


def test_beyond_the_bound_there_is_no_floor():
    X, y = problem()
    assert np.isinf(ls.noise_floor(X, y, learning_rate=2.0))


# Interpolation: d > N.


def test_where_a_solution_fits_everything_sgd_finds_it_at_the_rate_that_is_told():
    X, y = problem(4, 8)
    eta = 0.9 * float(ls.interpolation(X, learning_rate=0.0).bound)
    told = ls.interpolation(X, learning_rate=eta)
    w0 = jnp.zeros(8)
    risk = np.asarray(ls.sgd_risk(X, y, w0, learning_rate=eta, steps=200))
    same((risk[200] / risk[120]) ** (1 / 80), told.rho, rtol=1e-3)
    kappa = np.linalg.cond(X) ** 2
    assert (risk <= kappa * float(told.guarantee) ** np.arange(201) * risk[0]).all()
    assert told.rho <= told.guarantee < 1
    seen = over_seeds(X, y, optlab.sgd(eta), w0, 40, seeds=400)
    agrees(seen, risk[:41], at=(1, 5, 10, 15))  # later a few seeds make the mean


@pytest.mark.parametrize("batch_size", [2, 5])
def test_the_rate_with_batches(batch_size):
    X, y = problem(4, 8)
    told = ls.interpolation(X, learning_rate=0.05, batch_size=batch_size)
    risk = ls.sgd_risk(X, y, jnp.zeros(8), learning_rate=0.05, batch_size=batch_size, steps=400)
    same((risk[400] / risk[300]) ** 0.01, told.rho, rtol=1e-3)
    assert told.rho <= told.guarantee < 1


def test_one_example_is_gradient_descent_and_the_bound_its_bound():
    X = jnp.array([[1.0, 2.0, 0.5]])
    bound = ls.interpolation(X, learning_rate=0.1).bound
    same(bound, ls.stability_bound(X), rtol=1e-12)
    assert not ls.interpolation(X, learning_rate=0.99 * bound).diverges
    assert ls.interpolation(X, learning_rate=1.01 * bound).diverges


def test_below_the_bound_v_itself_may_rise_but_the_distance_does_not():
    """The one-step argument for V = ‖Xz‖² that some courses give doesn't hold; that for ‖z‖² does."""
    X = jnp.array([[1.0, 0.0], [0.99, np.sqrt(1 - 0.99**2)]])  # two examples, nearly parallel
    z = jnp.linalg.solve(X, jnp.array([1.0, -1.0]))
    told = ls.interpolation(X, learning_rate=0.6)
    assert told.bound > 0.6
    after = [z - 2 * 0.6 * x * (x @ z) for x in X]
    expected = lambda f: np.mean([f(v) for v in after])
    assert expected(lambda v: jnp.sum((X @ v) ** 2)) > 1.2 * jnp.sum((X @ z) ** 2)
    assert expected(lambda v: v @ v) < z @ z
    assert told.rho < 1


@pytest.mark.parametrize("momentum", [0.0, 0.5])
def test_a_traced_matrix_of_any_rank_has_the_same_floor(momentum):
    X, y = jnp.array([[1.0, 2.0], [2.0, 4.0], [3.0, 6.0]]), jnp.array([1.0, 0.0, 1.0])
    floor = lambda X, y: ls.noise_floor(X, y, learning_rate=0.01, momentum=momentum)
    assert np.isfinite(floor(X, y))
    same(jax.jit(floor)(X, y), floor(X, y), rtol=1e-9)
    same(jax.jit(lambda y: floor(X, y))(y), floor(X, y), rtol=1e-9)


def test_a_traced_matrix_of_any_rank_interpolates_as_fast():
    predict = lambda X: ls.interpolation(X, learning_rate=0.01)
    for X in (np.array([[1.0, 2.0, 3.0], [2.0, 4.0, 6.0]]), np.array([[1.0, 2.0, 3.0], [2.0, 4.0, 5.0]])):
        told = predict(X)
        assert not told.diverges
        jax.tree.map(lambda a, b: same(a, b, rtol=1e-8), jax.jit(predict)(X), told)


# The rates of the theorems.


def test_convex_rate_bounds_what_one_over_root_t_reaches():
    """|x| with noise in its slope, from 1: no iterate is further than D = 1.5 away, G² = 1 + σ²."""
    noise, distance, lengths = 0.5, 1.5, [10, 100, 1000]
    bound = np.sqrt(1 + noise**2)
    f = lambda x, key: jnp.abs(x) + noise * jax.random.normal(key) * x
    tx = optlab.sgd(optlab.schedules.inverse_sqrt(distance / bound))

    def gap(key):
        xs = optlab.minimize(f, tx, 1.0, steps=1000, key=key).x
        return jnp.stack([jnp.abs(jnp.mean(xs[:T])) for T in lengths]), jnp.max(jnp.abs(xs))

    gaps, furthest = jax.jit(jax.vmap(gap))(jax.random.split(jax.random.key(0), 300))
    near = np.asarray(gaps)[np.asarray(furthest) <= distance]  # the theorem's condition
    assert len(near) > 100
    assert (near.mean(axis=0) <= ls.convex_rate(distance, bound, np.array(lengths))).all()
    same(ls.convex_rate(1.0, 2.0, 400) / ls.convex_rate(1.0, 2.0, 100), 1 / 2, rtol=1e-12)


@pytest.mark.parametrize("steps", [10, 1000])
def test_strongly_convex_rate_is_what_one_over_t_reaches(steps):
    noise, mu = 0.7, 2.0
    f = lambda x, key: 0.5 * mu * (x - 3) ** 2 + noise * jax.random.normal(key) * x
    run = lambda key: (
        optlab.minimize(f, optlab.sgd(optlab.schedules.inverse(1 / mu)), 100.0, steps=steps, key=key).final
    )
    gaps = 0.5 * mu * (jax.vmap(run)(jax.random.split(jax.random.key(0), SEEDS)) - 3) ** 2
    error = gaps.std(ddof=1) / np.sqrt(SEEDS)
    assert abs(gaps.mean() - ls.strongly_convex_rate(noise, mu, steps)) < 3 * error


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda X, y: ls.sgd_risk(X, y, np.ones(2), learning_rate=0.1, steps=3), r"w0 must have the shape \(3,\)"),
        (lambda X, y: ls.sgd_risk(X, y, np.ones(3), learning_rate=np.ones(2), steps=3), "a schedule or 3 numbers"),
        (lambda X, y: ls.noise_floor(X, y, learning_rate=0.1, batch_size=0), "batch_size must be a whole number"),
        (lambda X, y: ls.noise_floor(X, y, learning_rate=0.1, momentum=1.0), r"momentum must lie in \[0, 1\), got 1"),
        (lambda X, y: ls.strongly_convex_rate(1.0, 0.0, 5), "convexity must be positive, got 0"),
    ],
)
def test_what_does_not_fit_is_named(call, message):
    with pytest.raises(ValueError, match=message):
        call(*problem())
