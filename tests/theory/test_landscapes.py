"""Landscapes: their minima, what is convex, and what GD and noise do at saddles and among several minima."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import optlab
from optlab.theory import landscapes
from optlab.theory import least_squares as ls

same = np.testing.assert_allclose
ALL = {
    name: getattr(landscapes, name)()
    for name in landscapes.__all__
    if name in ("beale", "himmelblau", "plateau", "ravine", "rosenbrock", "saddle", "several_minima")
}
ALL["quadratic"] = landscapes.quadratic(np.array([[2.0, 0.5], [0.5, 1.0]]), np.array([1.0, -1.0]))


@pytest.mark.parametrize("name", ALL)
def test_the_minima_are_minima(name):
    f = ALL[name]
    at = jax.jit(lambda x: (f(x), jax.grad(f.f)(x), jax.hessian(f.f)(x)))
    for place in f.minima:
        value, gradient, hessian = at(jnp.array(place))
        same(value, f.value, atol=1e-12)
        assert np.linalg.norm(gradient) < 1e-8
        assert np.linalg.eigvalsh(hessian)[0] > 0
    low, high = jnp.array(f.low), jnp.array(f.high)
    samples = jax.random.uniform(jax.random.key(0), (5000, len(low)), float, low, high)
    assert jax.jit(jax.vmap(f.f))(samples).min() >= f.value - 1e-12


def test_a_quadratic_needs_a_symmetric_positive_definite_matrix():
    with pytest.raises(ValueError, match="A must be symmetric, but differs from its transpose by up to 1: give"):
        landscapes.quadratic(np.array([[1.0, 1.0], [0.0, 1.0]]))
    with pytest.raises(ValueError, match="A must be positive definite, but its least eigenvalue is -1"):
        landscapes.quadratic(np.diag([1.0, -1.0]))
    with pytest.raises(ValueError, match=r"A must be symmetric, got the shape \(2, 3\)"):
        landscapes.quadratic(np.ones((2, 3)))
    with pytest.raises(ValueError, match=r"minimum must have the shape \(2,\)"):
        landscapes.quadratic(np.eye(2), np.ones(3))


def test_gradient_descent_zigzags_in_the_ravine_and_momentum_does_not():
    f = landscapes.ravine(25.0)
    turns = lambda tx: np.sum(np.diff(np.sign(optlab.minimize(f, tx, jnp.array(f.start), steps=40).x[:, 1])) != 0)
    assert turns(optlab.sgd(0.075)) >= 39
    assert turns(optlab.sgd(0.02, momentum=0.7)) < 20


# Convexity.


@pytest.mark.parametrize("name", ["ravine", "quadratic"])
def test_a_convex_function_has_no_counterexample(name):
    f = ALL[name]
    told = landscapes.check_convexity(f, f.low, f.high, key=jax.random.key(0))
    assert told.holds
    assert told.strict


def test_least_squares_is_convex_and_strictly_where_columns_are_independent():
    X = np.random.default_rng(0).normal(size=(5, 3))
    blind = jnp.array([1.0, 0.0, -1.0])  # the direction that dependent columns don't see
    for matrix, is_strict in [(X, True), (np.c_[X[:, :2], X[:, 0]], False)]:
        along = lambda t, matrix=matrix: ls.loss(matrix, np.ones(5), blind * t[0])
        told = landscapes.check_convexity(along, [-1.0], [1.0], key=jax.random.key(0))
        assert told.holds
        assert bool(told.strict) == is_strict


ROUNDED = {  # convex, and equal to its chords over much of the box: every gap there is rounding
    "a difference": (lambda x: x[0] - x[1], -1.0, 1.0),
    "affine": (lambda x: 2 * x[0] - x[1] + 0.1, -2.0, 2.0),
    "a kink": (lambda x: jnp.abs(x[0] - x[1]), -1.0, 1.0),
    "relu": (lambda x: jax.nn.relu(3 * x[0] - 2 * x[1] + 0.1), -1.0, 1.0),
    "far from 0": (lambda x: jnp.abs(x[0] - 1000), 999.0, 1001.0),
    "a branch without a slope": (lambda x: jnp.where(x[0] > 0, jnp.sqrt(x[0]) ** 2, 0.0), -1.0, 1.0),
}


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("name", ROUNDED)
def test_rounding_is_no_counterexample(name, dtype):
    f, low, high = ROUNDED[name]
    told = landscapes.check_convexity(f, np.full(2, low, dtype), np.full(2, high, dtype), key=jax.random.key(0))
    assert told.holds, told.gap
    assert not told.strict


def test_a_small_counterexample_is_found_in_single_precision():
    f = lambda x: 1e-4 * jnp.sin(20 * x[0]) + x[0]
    told = landscapes.check_convexity(f, np.zeros(1, np.float32), np.ones(1, np.float32), key=jax.random.key(0))
    assert not told.holds


@pytest.mark.parametrize("name", ["beale", "himmelblau", "plateau", "rosenbrock", "saddle", "several_minima"])
def test_a_counterexample_is_one(name):
    f = ALL[name]
    told = landscapes.check_convexity(f, f.low, f.high, key=jax.random.key(0))
    assert not told.holds
    x, y, t = told.x, told.y, told.t
    assert f(t * x + (1 - t) * y) > t * f(x) + (1 - t) * f(y)


def test_a_box_that_does_not_fit_is_named():
    with pytest.raises(ValueError, match="high must have the shape"):
        landscapes.check_convexity(landscapes.ravine(), [0.0], [1.0, 1.0], key=jax.random.key(0))


# Saddles.


def test_gradient_descent_ends_on_a_saddle_and_noise_drives_it_off():
    f = landscapes.saddle()
    exact = optlab.minimize(f, optlab.sgd(0.1), jnp.array(f.start), steps=500)
    same(exact.final, [0, 0], atol=1e-12)
    noisy = lambda x, key: f(x) + 0.01 * jax.random.normal(key, (2,)) @ x
    run = lambda key: optlab.minimize(noisy, optlab.sgd(0.1), jnp.array(f.start), steps=500, key=key).final
    ends = jax.vmap(run)(jax.random.split(jax.random.key(0), 20))
    same(jnp.abs(ends), np.tile([0.0, 1.0], (20, 1)), atol=0.05)


def test_how_long_the_escape_takes():
    """The root mean square over seeds crosses the distance at the predicted step."""
    eta, noise, distance = 0.1, 1e-3, 0.05
    quadratic = lambda x, key: -0.5 * x**2 + noise * jax.random.normal(key) * x
    predicted = float(landscapes.escape_steps(1.0, learning_rate=eta, noise=noise, distance=distance))
    run = lambda key: optlab.minimize(quadratic, optlab.sgd(eta), 0.0, steps=80, key=key).x
    rms = np.sqrt(np.mean(jax.vmap(run)(jax.random.split(jax.random.key(0), 2000)) ** 2, axis=0))
    assert abs(int(np.argmax(rms >= distance)) - predicted) < 1.5


# Several minima.


def test_where_gd_ends_depends_on_where_it_starts():
    f = landscapes.several_minima()
    run = lambda x0: optlab.minimize(f, optlab.sgd(0.05), x0, steps=300, tolerance=1e-9)
    paths = jax.vmap(run)(jnp.linspace(-1.8, 1.8, 12)[:, None])
    ends = np.unique(np.round(paths.final, 5))
    same(ends, [-1.03558, 0.96015], atol=1e-5)
    assert (paths.gradient_norms[:, -1] <= 1e-9).all()


def test_a_plateau_holds_gradient_descent_and_not_a_normalized_step():
    f = landscapes.plateau()
    x0 = jnp.array(f.start)
    assert optlab.minimize(f, optlab.sgd(0.5), x0, steps=50).values[-1] > 0.99
    assert optlab.minimize(f, optlab.adam(0.2), x0, steps=50).values[-1] < 0.1


def test_four_minima_of_himmelblau_are_all_reached():
    f = landscapes.himmelblau()
    starts = jax.random.uniform(jax.random.key(1), (64, 2), float, -5, 5)
    ends = jax.vmap(lambda x0: optlab.minimize(f, optlab.adam(0.1), x0, steps=600).final)(starts)
    gaps = np.linalg.norm(np.asarray(ends)[:, None] - np.array(f.minima)[None], axis=-1)
    assert gaps.min(axis=1).max() < 1e-3
    assert set(gaps.argmin(axis=1)) == {0, 1, 2, 3}


# Critical points.


def indices(dimension, functions=8, starts=40):
    """The index of every critical point that is found, over several random functions."""

    def search(key):
        for_f, for_starts = jax.random.split(key)
        f = landscapes.random_function(for_f, dimension, waves=60)
        return landscapes.critical_points(f, 2 * jax.random.normal(for_starts, (starts, dimension), float), steps=30)

    points = jax.jit(jax.vmap(search))(jax.random.split(jax.random.key(0), functions))
    return np.asarray(points.index)[np.asarray(points.found)]


def test_newton_finds_critical_points_of_every_kind():
    f = landscapes.saddle()
    points = landscapes.critical_points(f, jax.random.uniform(jax.random.key(0), (40, 2), float, -1.5, 1.5))
    ends, index = np.asarray(points.x)[np.asarray(points.found)], np.asarray(points.index)[np.asarray(points.found)]
    same(np.abs(ends[index == 0]), np.tile([0.0, 1.0], (np.sum(index == 0), 1)), atol=1e-6)
    same(ends[index == 1], 0, atol=1e-6)
    assert len(ends) >= 35
    assert set(index) == {0, 1}


@pytest.mark.slow
def test_saddles_outnumber_minima_more_and_more():
    found = {d: indices(d) for d in (1, 2, 5)}
    minima = {d: np.mean(index == 0) for d, index in found.items()}
    saddles = {d: np.mean((index > 0) & (index < d)) for d, index in found.items()}
    assert saddles[1] == 0
    assert 0.35 < minima[1] < 0.65  # in one dimension minima and maxima take turns
    assert minima[1] > minima[2] > minima[5]
    assert saddles[5] > saddles[2] > minima[2]
    assert minima[5] < 0.05


def test_the_random_function_has_the_covariance_that_is_told():
    x = jnp.array([[0.0, 0.0], [0.5, 0.5]])
    values = jax.vmap(lambda key: jax.vmap(landscapes.random_function(key, 2))(x))(
        jax.random.split(jax.random.key(0), 4000)
    )
    same(np.mean(values[:, 0] * values[:, 1]), np.exp(-0.25), atol=0.06)
    same(np.mean(values[:, 0] ** 2), 1, atol=0.08)


def test_optax_agrees_on_the_start_of_rosenbrock():
    f = landscapes.rosenbrock()
    path = optlab.minimize(f, optax.lbfgs(), jnp.array(f.start), steps=100, tolerance=1e-9)
    same(path.final, [1, 1], atol=1e-8)
