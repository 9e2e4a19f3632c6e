"""The tangent of a network: its kernel, its training, and how lazy a wide network is."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import optlab
from optlab.theory import linearize as lin

same = np.testing.assert_allclose


def network():
    """Two outputs, a hidden layer, examples."""
    keys = jax.random.split(jax.random.key(0), 5)
    params = {"W": jax.random.normal(keys[0], (3, 8), float), "b": jax.random.normal(keys[1], (8,), float)}
    params["A"] = jax.random.normal(keys[2], (8, 2), float)
    f = lambda p, x: jnp.tanh(x @ p["W"] + p["b"][None]) @ p["A"]
    x, y = jax.random.normal(keys[3], (6, 3), float), jax.random.normal(keys[4], (6, 2), float)
    return f, params, x, y


def jacobian(f, params, x):
    """(N, k, parameters)"""
    leaves = jax.tree.leaves(jax.jit(jax.jacobian(lambda p: f(p, x)))(params))
    return np.concatenate([np.asarray(leaf).reshape(*leaf.shape[:2], -1) for leaf in leaves], axis=-1)


def test_the_tangent_is_the_first_order_expansion():
    f, params, x, _ = network()
    tangent = lin.linearize(f, params)
    same(tangent(params, x), f(params, x), rtol=1e-12)
    away = jax.tree.map(lambda p: p + 0.3, params)
    flat = np.concatenate([np.full(np.size(p), 0.3) for p in jax.tree.leaves(params)])
    same(tangent(away, x), f(params, x) + jacobian(f, params, x) @ flat, rtol=1e-10)
    gaps = [
        np.abs(tangent(near, x) - f(near, x)).max()
        for h in (1e-3, 1e-4)
        for near in [jax.tree.map(lambda p, h=h: p + h, params)]
    ]
    same(gaps[0] / gaps[1], 100, rtol=0.02)  # second order


def test_the_kernel_is_that_of_the_jacobian():
    f, params, x, _ = network()
    J = jacobian(f, params, x)
    same(lin.ntk(f, params, x), np.einsum("iap,jbp->iajb", J, J), rtol=1e-10, atol=1e-12)
    same(lin.ntk(f, params, x, x[:2]), np.einsum("iap,jbp->iajb", J, J[:2]), rtol=1e-10, atol=1e-12)


def test_kernel_regression_is_where_training_the_tangent_ends():
    f, params, x, y = network()
    x_test = jax.random.normal(jax.random.key(7), (4, 3), float)
    K, K_test = lin.ntk(f, params, x), lin.ntk(f, params, x_test, x)
    K_flat = np.asarray(K).reshape(12, 12)
    penalty = 0.1
    loss = lambda theta: jnp.sum((lin.linearize(f, params)(theta, x) - y) ** 2)
    # gradient descent with weight decay towards θ₀ is the penalty λ‖θ − θ₀‖²
    moved = lambda theta: (
        penalty
        * sum(jnp.sum((a - b) ** 2) for a, b in zip(jax.tree.leaves(theta), jax.tree.leaves(params), strict=True))
    )
    rate = 0.9 / (float(np.linalg.eigvalsh(K_flat)[-1]) + penalty)
    path = optlab.minimize(
        lambda t: loss(t) + moved(t), optlab.sgd(rate, momentum=0.9), params, steps=8000, tolerance=1e-9, record=None
    )
    predicted = lin.kernel_regression(K, y, K_test, f0=f(params, x), f0_test=f(params, x_test), penalty=penalty)
    same(lin.linearize(f, params)(path.final, x_test), predicted, atol=1e-6)
    direct = f(params, x_test) + (
        np.asarray(K_test).reshape(8, 12) @ np.linalg.solve(K_flat + penalty * np.eye(12), np.ravel(y - f(params, x)))
    ).reshape(4, 2)
    same(predicted, direct, rtol=1e-9)


def test_without_a_penalty_it_interpolates():
    f, params, x, y = network()
    K = lin.ntk(f, params, x)
    same(lin.kernel_regression(K, y, f0=f(params, x)), y, atol=1e-8)


def test_on_the_training_examples_it_is_where_the_steps_end():
    K, y, f0 = np.array([[2.0, 1.0, 0.0], [1.0, 2.0, 0.0], [0.0, 0.0, 0.0]]), np.ones(3), np.array([5.0, 6.0, 7.0])
    end = lin.kernel_descent(K, y, learning_rate=0.1, steps=1000, f0=f0)
    same(end, [1, 1, 7], rtol=1e-10)  # the kernel doesn't see the last example: its output stays
    same(lin.kernel_regression(K, y, f0=f0), end, rtol=1e-10)
    same(lin.kernel_regression(K, y, K[:2], f0=f0, f0_test=f0[:2]), end[:2], rtol=1e-10)


def test_every_step_on_the_tangent_is_predicted():
    f, params, x, y = network()
    K, tangent = lin.ntk(f, params, x), lin.linearize(f, params)
    rate = 0.5 / float(np.linalg.eigvalsh(np.asarray(K).reshape(12, 12))[-1])
    loss = lambda theta: jnp.sum((tangent(theta, x) - y) ** 2)
    path = optlab.minimize(loss, optlab.sgd(rate), params, steps=40, record=lambda theta: tangent(theta, x))
    for t in (0, 1, 10, 40):
        same(path.x[t], lin.kernel_descent(K, y, learning_rate=rate, steps=t, f0=f(params, x)), atol=1e-10)


WIDTHS, SEEDS = (64, 256, 1024), 12


@pytest.fixture(scope="module")
def lazy():
    """`laziness` by activation and width, each field (seeds, widths)."""
    x = np.linspace(-1.5, 1.5, 8)[:, None]
    x = np.concatenate([x, np.ones_like(x)], axis=1)  # a bias by augmentation
    y, tests = np.sin(2 * x[:, :1]), (x[:-1] + x[1:]) / 2

    def at(width, activation):
        init, f = lin.shallow(width, 2, activation=activation)
        run = lambda key: lin.laziness(f, init(key), x, y, tests, tx=optlab.sgd(0.5), steps=100)
        return jax.jit(jax.vmap(run))(jax.random.split(jax.random.key(0), SEEDS))

    with jax.enable_x64(True):
        by_width = {a.__name__: [at(width, a) for width in WIDTHS] for a in (jax.nn.relu, jnp.tanh)}
        return {a: jax.tree.map(lambda *w: np.stack(w, axis=1), *fields) for a, fields in by_width.items()}


@pytest.mark.slow
def test_the_gap_to_the_tangent_falls_like_one_over_the_root_of_the_width(lazy):
    slope = lin.slope_with_width(WIDTHS, lazy["relu"].gap)
    assert slope.low < -0.5 < slope.high, slope
    assert slope.high - slope.low < 0.25, slope


@pytest.mark.slow
def test_and_faster_where_the_activation_is_smooth(lazy):
    slope = lin.slope_with_width(WIDTHS, lazy["tanh"].gap)
    assert slope.low < -1 < slope.high < -0.5, slope


@pytest.mark.slow
@pytest.mark.parametrize("activation", ["relu", "tanh"])
def test_wide_networks_move_little_beside_what_they_are(lazy, activation):
    fields = lazy[activation]
    slope = lin.slope_with_width(WIDTHS, fields.relative)
    assert slope.low < -0.5 < slope.high, slope
    same(fields.moved[:, 0].mean() / fields.moved[:, -1].mean(), 1, rtol=0.2)  # ‖θ − θ₀‖ itself has a limit
    assert (fields.loss < 0.3).all()


def test_a_slope_has_students_interval():
    rng = np.random.default_rng(0)
    widths = np.array([10, 100, 1000])
    inside = 0
    for _ in range(400):
        told = lin.slope_with_width(widths, widths**-0.5 * np.exp(0.3 * rng.normal(size=(4, 3))))
        inside += told.low <= -0.5 <= told.high
    assert 0.92 < inside / 400 < 0.98


# Probing.


@pytest.mark.slow
def test_a_linear_probe_is_the_one_minimum():
    features = jax.random.normal(jax.random.key(0), (60, 4), float)
    labels = jnp.argmax(features[:, :3] + 0.5 * jax.random.normal(jax.random.key(1), (60, 3), float), axis=1)
    head = lin.linear_probe(features, labels, classes=3, penalty=0.01)

    def loss(head):
        log_p = jax.nn.log_softmax(features @ head["W"] + head["b"][None])
        return -jnp.mean(log_p[jnp.arange(60), labels]) + 0.005 * (jnp.sum(head["W"] ** 2) + jnp.sum(head["b"] ** 2))

    assert max(np.abs(g).max() for g in jax.tree.leaves(jax.grad(loss)(head))) < 1e-10
    flat, unravel = jax.flatten_util.ravel_pytree(head)
    assert np.linalg.eigvalsh(jax.hessian(lambda v: loss(unravel(v)))(flat))[0] >= 0.0099
    far = jax.tree.map(lambda p: p + 3.0, head)
    other = optlab.minimize(loss, optlab.sgd(1.0, momentum=0.9), far, steps=6000, tolerance=1e-9, record=None)
    jax.tree.map(lambda a, b: same(a, b, atol=1e-6), other.final, head)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: lin.kernel_regression(np.ones((2, 3)), np.ones(2)), r"kernel must have the shape \(N, N\) or"),
        (
            lambda: lin.kernel_regression(np.array([[1.0, 2], [0, 1]]), np.ones(2)),
            "kernel must be symmetric, but differs",
        ),
        (lambda: lin.kernel_regression(np.eye(2), np.ones(3)), "y must have 2 entries, one a row of the kernel"),
        (lambda: lin.kernel_regression(np.eye(2), np.ones(2), np.eye(2), f0=1.0), "f0_test must be given with f0"),
        (lambda: lin.kernel_regression(np.eye(2), np.ones(2), f0_test=1.0), "f0 must be given with f0_test"),
        (lambda: lin.kernel_regression(np.eye(2), np.ones(2), penalty=-1.0), "penalty must not be negative"),
        (
            lambda: lin.ntk(lambda p, x: p * x, 1.0, jnp.ones(3)),
            r"outputs of the shape \(examples, outputs\), got \(3,\)",
        ),
        (lambda: lin.linear_probe(np.ones((3, 2)), np.ones(2, int), classes=2), "must fit, got the shapes"),
        (
            lambda: lin.linear_probe(np.ones((3, 2)), np.ones(3, int), classes=2, penalty=0.0),
            "penalty must be positive",
        ),
        (lambda: lin.slope_with_width([1, 2], np.ones((1, 2))), "two repetitions or more"),
    ],
)
def test_what_does_not_fit_is_named(call, message):
    with pytest.raises(ValueError, match=message):
        call()
