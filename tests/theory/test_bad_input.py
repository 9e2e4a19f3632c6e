"""Bad input of the predictions: answered by name, where it would otherwise give a plausible wrong number or NaN."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import optlab
from optlab.theory import adam, approximation, attention, curvature, landscapes, linearize, measures, noise
from optlab.theory import least_squares as ls

X, y, zero = np.eye(3)[:, :2], np.ones(3), np.zeros(2)
init, net = linearize.shallow(4, 2)
f = lambda x: jnp.sum(x**2)
key = jax.random.key(0)
double = lambda v: 2 * v
mean = noise.of_examples(lambda params, batch: jnp.mean(batch @ params))

REFUSED = [
    (lambda: ls.gradient_descent(X, learning_rate=-1.0), "learning_rate must not be negative, got -1.0"),
    (lambda: ls.gradient_descent(X, learning_rate=np.nan), "learning_rate must .*finite, got nan"),
    (lambda: ls.gradient_descent(X, learning_rate="a"), "learning_rate must be a number, got 'a'"),
    (lambda: ls.gradient_descent(X, learning_rate=[0.1, 0.2]), r"learning_rate must be a number, got \[0.1, 0.2\]"),
    (lambda: ls.gradient_descent(np.where(X, np.nan, 0), learning_rate=0.1), "X must be finite, got nan among 6"),
    (lambda: ls.gradient_descent(0 * X, learning_rate=0.1), "X must have an entry whose square isn't 0 in float64"),
    (lambda: ls.stability_bound(0 * X), "X must have an entry whose square isn't 0"),
    (lambda: ls.interpolation(0 * X, learning_rate=0.1), "X must have an entry whose square isn't 0"),
    (lambda: ls.closed_form(1j * X, y), "X must be of real numbers, got complex128"),
    (lambda: ls.closed_form(np.zeros((0, 2)), np.zeros(0)), r"X must not be empty, got the shape \(0, 2\)"),
    (lambda: ls.sgd_risk(X[:0], y[:0], zero, learning_rate=0.1, steps=1), "X must not be empty"),
    (lambda: ls.closed_form(X, [1, np.inf, 0]), "y must be finite, got inf among 3 numbers"),
    (lambda: ls.closed_form("X", y), "X must be a number or an array of numbers, got 'X'"),
    (lambda: ls.newton_step(X, y, [np.nan, 0]), "w must be finite"),
    (lambda: ls.costs(10, 2, 11), "batch_size must be at most the 10 examples, got 11"),
    (lambda: ls.costs(10, 1.5, 1), "features must be a whole number of at least 1, got 1.5"),
    (lambda: ls.ridge_filter(-1.0, 1.0), "sigma must not be negative, got -1.0"),
    (lambda: ls.ridge_filter([1.0, 2.0], [1.0, 2.0, 3.0]), r"shapes that broadcast, got sigma \(2,\), penalty \(3,\)"),
    (lambda: ls.heavy_ball(jnp.ones(2), jnp.array([1.0, 2.0])), r"largest must be at least smallest \(Array"),
    (lambda: ls.heavy_ball(jnp.float32(1), jnp.float32(2)), "largest must be at least smallest"),
    (lambda: ls.frequency_response(0.9, np.nan), "omega must be finite, got nan"),
    (lambda: ls.convex_rate(1.0, -1.0, 3), "gradient_bound must not be negative, got -1.0"),
    (lambda: ls.convex_rate(-1.0, 1.0, 3), "distance must not be negative, got -1.0"),
    (lambda: ls.convex_rate(1.0, 1.0, 2.5), "steps must be a whole number of at least 1, got 2.5"),
    (lambda: ls.strongly_convex_rate(-1.0, 1.0, 3), "noise must not be negative, got -1.0"),
    (lambda: ls.strongly_convex_rate(1.0, 1.0, 0), "steps must be a whole number of at least 1, got 0"),
    (lambda: ls.noise_floor(X, y, learning_rate=0.1, batch_size=0), "batch_size must be a whole number of at least 1"),
    (
        lambda: ls.sgd_risk(X, y, zero, learning_rate=lambda t: 0.1 - t, steps=3),
        "learning_rate must not be negative, got -0.9 among 3 numbers",
    ),
    (lambda: ls.ridge(X, y, None), "penalty must be a number, got None"),
    (lambda: ls.early_stopping(X, y, learning_rate=-1, steps=3), "learning_rate must not be negative"),
    (
        lambda: ls.early_stopping(X, y, learning_rate=0.1, steps=-3),
        "steps must be a whole number of at least 0, got -3",
    ),
    (lambda: ls.early_stopping_filter(X, learning_rate=0.9, steps=2.5), "steps must be a whole number"),
    (lambda: ls.gradient_descent_path(X, y, zero, learning_rate=-0.1, steps=1), "learning_rate must not be negative"),
    (lambda: ls.gradient_descent_path(X, y, zero, learning_rate=0.1, steps=-1), "steps must be a whole number"),
    (lambda: ls.sgd_risk(X, y, zero, learning_rate=-0.1, steps=1), "learning_rate must not be negative"),
    (lambda: ls.sgd_risk(X, y, zero, learning_rate=0.1, steps=2.0), "steps must be a whole number of at least 0"),
    (lambda: ls.sgd_risk(X, y, zero, learning_rate=0.1, steps=2, average_from=1.5), "average_from must be a whole"),
    (lambda: ls.noise_floor(X, y, learning_rate=0.0), "learning_rate must be positive, got 0.0"),
    (lambda: ls.interpolation(X, learning_rate=-0.1), "learning_rate must not be negative"),
    (lambda: ls.ball_with_friction(-1.0, 1.0, 2.0, friction=1.0), "curvature must be positive"),
    (lambda: ls.ball_with_friction(1.0, 1.0, 2.0, friction=-1.0), "friction must not be negative"),
    (lambda: linearize.kernel_regression(np.eye(4), np.ones(4), np.ones((4, 6))), "kernel_test must have the shape"),
    (
        lambda: linearize.kernel_regression(np.eye(2), np.ones(2), f0=np.ones((2, 1))),
        "f0 must have the shape",
    ),
    (
        lambda: linearize.kernel_regression(np.eye(6).reshape(3, 2, 3, 2), np.ones((2, 3))),
        "y must have 6 entries, one a row of the kernel, and 3 rows",
    ),
    (
        lambda: linearize.kernel_descent(np.eye(2), np.ones(2), learning_rate=-1, steps=2),
        "learning_rate must not be negative",
    ),
    (
        lambda: linearize.laziness(net, init(jax.random.key(0)), X, y, X, tx=optlab.sgd(0.1), steps=1),
        r"y must have the outputs' shape \(3, 1\), got \(3,\)",
    ),
    (lambda: linearize.slope_with_width([1, 2], [[1, -1], [1, 2]]), "values must be positive"),
    (lambda: linearize.slope_with_width([2, 2], [[1, 2], [1, 2]]), "widths must be a vector of two different numbers"),
    (lambda: linearize.slope_with_width([1, 2], [[1, 2], [1, 3]], confidence=95), "confidence must lie in"),
    (lambda: linearize.linear_probe(X, [0, 1, 5], classes=2), "labels must be whole numbers from 0 to 1"),
    (lambda: linearize.linear_probe(X, [0.0, 1.0, 1.0], classes=2), "labels must be whole numbers from 0 to 1"),
    (lambda: linearize.linear_probe(np.nan * X, [0, 1, 1], classes=2), "features must be finite, got nan among 6"),
    (lambda: linearize.linear_probe(X, [0, 1, 1], classes=2, penalty=0.0), "penalty must be positive, got 0.0"),
    (
        lambda: linearize.kernel_regression(np.eye(2), np.ones(2), f0=np.ones(2), f0_test=np.ones(3)),
        "f0_test must have the shape",
    ),
    (
        lambda: linearize.kernel_regression(-np.eye(2), np.ones(2)),
        "kernel must be positive semi-definite",
    ),
    (lambda: linearize.shallow(0, 2), "width must be a whole number of at least 1, got 0"),
    (lambda: linearize.shallow(4, 1.5), "inputs must be a whole number of at least 1, got 1.5"),
    (lambda: curvature.density(double, zero, key=key, matvecs=0), "matvecs must be a whole number of at least 1"),
    (lambda: curvature.density(double, zero, key=key, probes=0), "probes must be a whole number of at least 1, got 0"),
    (lambda: curvature.largest_eigenvalue(double, zero, matvecs=0), "matvecs must be a whole number of at least 1"),
    (lambda: curvature.largest_eigenvalue(double, {}), "start must hold an array that isn't empty, got {}"),
    (lambda: curvature.trace(double, [1, 2], key=key), r"like\[0\] must be an array of floating-point numbers, got 1"),
    (lambda: curvature.largest_eigenvalue(lambda v: v[:1], zero), "the product must return arrays of its argument"),
    (
        lambda: curvature.edge_of_sgd(0.1, 6, examples=5, spread=1.0),
        r"examples must be at least batch_size \(6\)",
    ),
    (lambda: curvature.edge_of_sgd(0.1, 1, examples=5, spread=-1.0), "spread must not be negative, got -1.0"),
    (lambda: curvature.adam_metric(optlab.adam(0.1).init(zero)), "adam_metric needs a state that has seen a gradient"),
    (lambda: curvature.muon_metric({"W": 0 * X}), r"momentum\['W'\] must not be 0: its metric has no inverse"),
    (lambda: noise.gradient_variance(1.0, 3, examples=2), r"examples must be at least batch_size \(3\), got 2"),
    (lambda: noise.gradient_variance(-1.0, 3), "variance must not be negative, got -1.0"),
    (lambda: noise.steps_to_target(0, scale=1.0, least=1.0), "batch_size must be a whole number of at least 1, got 0"),
    (lambda: noise.steps_to_target(1, scale=-1.0, least=1.0), "scale must not be negative, got -1.0"),
    (
        lambda: noise.uphill_share(1.0, 0.0, 1, learning_rate=0.1, curvature=1.0, size=2),
        "variance must be positive, got 0.0",
    ),
    (
        lambda: noise.uphill_share(1.0, 1.0, 1, learning_rate=-0.1, curvature=1.0, size=2),
        "learning_rate must be positive, got -0.1",
    ),
    (lambda: noise.noise_scale(mean, zero, {}, X[:0], key), "a batch must hold an example at least"),
    (lambda: noise.per_example_gradients(mean, zero, {}, X[:0], key), "a batch must hold an example at least"),
    (lambda: measures.agreement(b2=1.0), r"b2 must lie in \[0, 1\), got 1.0"),
    (lambda: attention.attention(X, X, X, mask=np.zeros((3, 3))), "mask must be an array of booleans"),
    (lambda: attention.attention(X[:, :0], X[:, :0], X), r"Q must not be empty, got the shape \(3, 0\)"),
    (lambda: attention.cross_attention(X, X, np.eye(2), np.eye(3), np.eye(2)), "WK must have 2 rows, one a feature"),
    (lambda: attention.causal_mask(-1), "tokens must be a whole number of at least 1, got -1"),
    (lambda: adam.first_step(1.5), "t must be a whole number of at least 1, got 1.5"),
    (lambda: adam.first_step(0), "t must be a whole number of at least 1, got 0"),
    (lambda: adam.decay_gap(-0.1, 0.1, 1.0), "learning_rate must not be negative, got -0.1"),
    (lambda: adam.decay_gap(0.1, 0.1, np.nan), "update must be finite, got nan"),
    (lambda: adam.agreement(optlab.adam(0.1).init(zero), b1=1.0), r"b1 must lie in \[0, 1\), got 1.0"),
    (lambda: approximation.network([], 1.0), r"layers must have at least one pair \(W, b\), got none"),
    (lambda: approximation.network([(np.eye(2), zero)], zero), r"layer 0 must be a pair .* \(1, inputs\) and \(1,\)"),
    (lambda: approximation.hat(0.0, np.nan, 1.0), "top must be finite, got nan"),
    (lambda: approximation.interpolant(jnp.sin, 3, 1.0, 0.0), r"high must be above low \(1.0\), got 0.0"),
    (lambda: approximation.interpolation_error(1.0, 1, 0, 1), "width must be a whole number of at least 2, got 1"),
    (lambda: approximation.bend(f, zero, zero, step=0), "step must be positive, got 0"),
    (lambda: approximation.widths_of_sawtooth(-1), "depth must be a whole number of at least 1, got -1"),
    (lambda: approximation.count_pieces(jnp.sin, 0, 1, cells=0), "cells must be a whole number of at least 1, got 0"),
    (lambda: approximation.best_error(lambda x: x, jnp.sin, y), r"features\(x\) must be a matrix"),
    (lambda: landscapes.beale()(np.ones(3)), r"x must have the shape \(2,\), got \(3,\): jax.vmap has many points"),
    (lambda: landscapes.quadratic(3.0), r"A must be a matrix, got the shape \(\)"),
    (lambda: landscapes.quadratic(np.eye(2), [0.0, np.nan]), "minimum must be finite"),
    (
        lambda: landscapes.check_convexity(lambda x: x, zero, zero + 1, key=jax.random.key(0)),
        r"f must return one real number, got float64\[2\]",
    ),
    (
        lambda: landscapes.check_convexity(lambda x: jnp.log(x[0]), zero - 1, zero + 1, key=jax.random.key(0)),
        "f must be finite between low and high, but isn't between",
    ),
    (lambda: landscapes.check_convexity(f, zero + 1, zero, key=jax.random.key(0)), "high must be above low"),
    (lambda: landscapes.critical_points(f, X, steps=2.5), "steps must be a whole number of at least 0, got 2.5"),
    (lambda: landscapes.critical_points(f, np.nan * X), "starts must be finite, got nan"),
    (lambda: landscapes.random_function(jax.random.key(0), 2, waves=0), "waves must be a whole number of at least 1"),
    (lambda: landscapes.escape_steps(1.0, learning_rate=-1.0, noise=1.0, distance=1.0), "learning_rate must be posi"),
    (lambda: landscapes.escape_steps(1.0, learning_rate=0.1, noise=1.0, distance=-1.0), "distance must be positive"),
]


@pytest.mark.parametrize(("ask", "message"), REFUSED)
def test_bad_input_is_answered_by_name(ask, message):
    with pytest.raises(ValueError, match=message):
        ask()


@pytest.mark.parametrize(
    ("ask", "message"),
    [
        (lambda: curvature.hessian(3, zero), "f must be a function, got 3"),
        (lambda: curvature.trace(np.eye(2), zero, key=key), r"A must be a function, got array\(\["),
        (lambda: noise.of_examples(None), "loss must be a function, got None"),
        (
            lambda: curvature.trace(double, zero, key=0),
            "key must be a JAX random key, such as",
        ),
        (lambda: optlab.minimize(f, optlab.sgd, jnp.ones(2), steps=1), "tx must be an optax transformation"),
        (
            lambda: optlab.minimize(lambda x, key: f(x), optlab.sgd(0.1), jnp.ones(2), steps=1, key=0),
            "key must be a JAX random key, such as jax.random.key",
        ),
    ],
)
def test_a_function_transformation_or_key_that_is_none_is_named(ask, message):
    with pytest.raises(TypeError, match=message):
        ask()


@pytest.mark.parametrize("landscape", [landscapes.quadratic(np.eye(2)), landscapes.plateau(), landscapes.beale()])
def test_a_landscape_is_descended_from_its_own_start(landscape):
    path = optlab.minimize(landscape, optlab.sgd(1e-3), landscape.start, steps=1)
    assert path.values[1] < path.values[0]


def test_the_ball_with_much_friction_creeps_however_long_it_takes():
    slow = 15 - np.sqrt(15**2 - 1)
    at = ls.ball_with_friction(1.0, 1.0, np.array([10.0, 1000.0]), friction=30.0)
    np.testing.assert_allclose(at, np.exp(-slow * np.array([10.0, 1000.0])), rtol=2e-2)


def test_the_ball_at_critical_damping_has_its_value_and_gradient():
    """x(τ) = (1 + γτ/2)e^(−γτ/2) at γ = 2√h; dx/dγ is the limit of difference quotients on both sides."""
    at = lambda friction: ls.ball_with_friction(4.0, 1.0, 1.3, friction=friction)
    same = np.testing.assert_allclose
    same(at(4.0), 3.6 * np.exp(-2.6), rtol=1e-12)
    same(jax.grad(at)(4.0), (at(4.1) - at(3.9)) / 0.2, rtol=1e-3)


def test_half_precision_is_decomposed_in_single():
    found = ls.closed_form(jnp.asarray(X, jnp.bfloat16), jnp.asarray(y, jnp.bfloat16))
    assert found.dtype == jnp.float32
    np.testing.assert_allclose(found, [1, 1], rtol=1e-6)


def test_values_are_checked_as_they_are_rounded():
    with jax.enable_x64(False):
        with pytest.raises(ValueError, match=r"b2 must lie in \[0, 1\), got 1.0"):
            adam.first_step(1, 0.9, 1 - 1e-9)
        with pytest.raises(ValueError, match="y must be finite, got inf among 3 numbers"):
            ls.closed_form(X, [1, 1e200, 0])
    assert ls.closed_form(X.astype(np.float32), y).dtype == jnp.float64


def test_what_is_traced_passes():
    """Where a value isn't known its shape alone is checked: the hat under jit, quadratics under vmap."""
    at = jax.jit(lambda top: approximation.network(approximation.hat(0.0, top, 2.0), 0.5))
    np.testing.assert_allclose(at(1.0), 0.5)
    values = jax.vmap(lambda A: landscapes.quadratic(A)(jnp.ones(2)))(jnp.stack([jnp.eye(2), 3 * jnp.eye(2)]))
    np.testing.assert_allclose(values, [1, 3])
    ends = jax.vmap(lambda x: landscapes.quadratic(np.eye(2), x)(jnp.zeros(2)))(jnp.eye(2))
    np.testing.assert_allclose(ends, 0.5)
    predicted = jax.jit(lambda rate: ls.gradient_descent(X, learning_rate=rate).rate)
    np.testing.assert_allclose(predicted(0.25), 0.5)
    with pytest.raises(ValueError, match="X must be finite"):
        jax.jit(lambda rate: ls.gradient_descent(X * np.nan, learning_rate=rate).rate)(0.25)


def test_where_there_is_no_direction_or_no_noise_there_is_an_answer():
    """Lanczos starts somewhere else than at 0, where a gradient may be; a batch of the only example has no variance."""
    A = curvature.product(np.diag([3.0, 1.0, -2.0]))
    np.testing.assert_allclose(curvature.largest_eigenvalue(A, jnp.zeros(3)), 3)
    assert noise.gradient_variance(1.0, 1, examples=1) == 0


def test_a_point_that_newton_lost_is_no_critical_point():
    assert not landscapes.critical_points(lambda x: 0 * x[0], np.ones((1, 2)), steps=2).found.any()
