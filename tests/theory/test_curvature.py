"""Curvature by products, beside dense matrices; what descent does at the edge of stability."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.flatten_util import ravel_pytree

import optlab
from optlab.theory import curvature

same = np.testing.assert_allclose
KEY = jax.random.key(0)


@functools.cache
def network():
    keys = jax.random.split(KEY, 4)
    params = {"W": jax.random.normal(keys[0], (4, 6), float), "A": jax.random.normal(keys[1], (6, 3), float)}
    x, labels = jax.random.normal(keys[2], (20, 4), float), jax.random.randint(keys[3], (20,), 0, 3)
    outputs = lambda p: jnp.tanh(x @ p["W"]) @ p["A"]
    loss = lambda z: optax.softmax_cross_entropy_with_integer_labels(z, labels).mean()
    return params, outputs, loss


def dense(product, like):
    """The matrix of a product."""
    flat, unravel = ravel_pytree(like)
    columns = jax.vmap(lambda v: ravel_pytree(product(unravel(v)))[0], out_axes=1)
    return np.asarray(jax.jit(columns)(jnp.eye(len(flat), dtype=flat.dtype)))


@functools.cache
def hessian_and_matrix():
    params, outputs, loss = network()
    product = curvature.hessian(lambda p: loss(outputs(p)), params)
    flat, unravel = ravel_pytree(params)
    return params, product, np.asarray(jax.jit(jax.hessian(lambda v: loss(outputs(unravel(v)))))(flat))


def test_the_product_is_that_of_the_dense_hessian():
    params, product, H = hessian_and_matrix()
    same(dense(product, params), H, atol=1e-12)


def test_gauss_newton_is_its_definition_and_has_no_negative_eigenvalue():
    params, outputs, loss = network()
    flat, unravel = ravel_pytree(params)
    J = np.asarray(jax.jit(jax.jacobian(lambda v: outputs(unravel(v)).ravel()))(flat))
    at = outputs(params)
    of_loss = np.asarray(jax.jit(jax.hessian(lambda z: loss(z.reshape(at.shape))))(at.ravel()))
    G = dense(curvature.gauss_newton(outputs, loss, params), params)
    same(G, J.T @ of_loss @ J, atol=1e-12)
    assert np.linalg.eigvalsh(G)[0] > -1e-12


def test_the_largest_eigenvalues_are_the_dense_matrixs():
    params, product, H = hessian_and_matrix()
    found = curvature.eigenvalues(product, params, 3, key=KEY, matvecs=24)
    same(found.values, np.linalg.eigvalsh(H)[::-1][:3], rtol=0.01)
    vector = ravel_pytree(jax.tree.map(lambda v: v[0], found.vectors))[0]
    assert abs(vector @ np.linalg.eigh(H)[1][:, -1]) == pytest.approx(1, abs=1e-3)
    exact = curvature.eigenvalues(product, params, 3, key=KEY, matvecs=1000)
    same(exact.values, np.linalg.eigvalsh(H)[::-1][:3], rtol=1e-9)
    assert (exact.residuals < 1e-8).all()


@pytest.mark.slow
def test_a_few_steps_from_the_gradient_find_the_sharpness():
    params, outputs, loss = network()
    _, product, H = hessian_and_matrix()
    gradient = jax.grad(lambda p: loss(outputs(p)))(params)
    same(curvature.largest_eigenvalue(product, gradient, matvecs=8), np.linalg.eigvalsh(H)[-1], rtol=0.01)


@pytest.mark.parametrize("dtype", [np.float32, pytest.param(np.float64, marks=pytest.mark.slow)])
def test_a_matrix_of_low_rank_ends_the_search_and_says_so(dtype):
    A = np.diag([3.0, 1.0, *[0.0] * 10]).astype(dtype)
    found = curvature.eigenvalues(curvature.product(A), jnp.zeros(12, dtype), 5, key=KEY)
    same(found.values[:3], [3, 1, 0], atol=1e-5)
    assert np.isnan(found.values[3:]).all()  # the other zeros are that one's twins


def test_nan_stays_nan():
    product = lambda v: v * jnp.nan
    assert np.isnan(curvature.largest_eigenvalue(product, jnp.ones(5)))


@pytest.mark.slow
def test_the_trace_has_its_standard_error():
    params, product, H = hessian_and_matrix()
    means, errors = jax.vmap(lambda key: jnp.stack(curvature.trace(product, params, key=key, samples=16)))(
        jax.random.split(KEY, 200)
    ).T
    same(means.mean(), np.trace(H), atol=4 * means.std() / 200**0.5)
    same(np.sqrt(np.mean(np.square(errors))), means.std(), rtol=0.15)


def test_the_density_integrates_what_the_eigenvalues_do():
    params, product, H = hessian_and_matrix()
    found = curvature.density(product, params, key=KEY, matvecs=42, probes=200)
    values = np.linalg.eigvalsh(H)
    same(found.weights.sum(), 1, rtol=1e-9)
    for g in (lambda x: x, lambda x: x**2, lambda x: np.exp(-((x - values[-1]) ** 2) / 0.02)):
        per_probe = 200 * (np.asarray(found.weights) * g(np.asarray(found.nodes))).sum(axis=1)
        assert abs(per_probe.mean() - g(values).mean()) < 4 * per_probe.std() / 200**0.5


# Metrics.


def test_adams_metric_is_that_of_its_state():
    params, product, H = hessian_and_matrix()
    tx = optlab.adam(1e-3)
    _, state = tx.update(jax.tree.map(lambda p: 0.1 * p, params), tx.init(params), params)
    P = np.abs(0.1 * ravel_pytree(params)[0]) + 1e-8  # after one step v̂ = g²
    seen = curvature.preconditioned(product, curvature.adam_metric(state))
    same(dense(seen, params), H / np.sqrt(np.outer(P, P)), rtol=1e-6, atol=1e-9)
    with pytest.raises(ValueError, match="one of Adam's in it, found 0"):
        curvature.adam_metric(optlab.sgd(0.1).init(params))


def test_muons_metric_turns_the_momentum_into_muons_update():
    """P^(−½) twice on the momentum is UVᵀ: what Muon steps along."""
    momentum = {
        "tall": jax.random.normal(KEY, (5, 3), float),
        "wide": jax.random.normal(KEY, (3, 5), float),
        "b": jnp.ones(4),
    }
    root = curvature.muon_metric(momentum)
    twice = root(root(momentum))
    tx = optlab.orthogonalize(method="svd")
    matrices = {name: momentum[name] for name in ("tall", "wide")}
    orthogonal, _ = tx.update(matrices, tx.init(matrices), matrices)
    same(twice["tall"], orthogonal["tall"], rtol=1e-6)
    same(twice["wide"], orthogonal["wide"], rtol=1e-6)
    same(twice["b"], momentum["b"])


def test_the_metrics_of_muon_and_of_adams_rest_are_applied_one_after_the_other():
    params = {"w": jax.random.normal(KEY, (4, 3), float), "b": jnp.arange(1.0, 4.0)}
    tx = optlab.muon(0.02)
    _, state = tx.update(params, tx.init(params), params)
    trace = optax.tree.get(state.rules.inner_states["matrix"], "trace")
    of_adam, of_muon = curvature.adam_metric(state, b2=0.95), curvature.muon_metric(trace)
    both = of_adam(of_muon(params))
    same(of_adam(params)["w"], params["w"])
    same(both["w"], of_muon(params)["w"])
    same(both["w"], curvature.muon_metric(trace["w"])(params["w"]))
    same(both["b"], params["b"] / np.sqrt(np.abs(params["b"]) + 1e-8), rtol=1e-6)


def test_epsilon_may_stand_inside_the_root():
    tx = optlab.adam(1e-3)
    g = jnp.array([0.0, 0.3])
    _, state = tx.update(g, tx.init(g), g)
    found = curvature.adam_metric(state, eps=0.0, eps_root=1e-2)(jnp.ones(2))
    same(found, (g**2 + 1e-2) ** -0.25, rtol=1e-6)
    with pytest.raises(ValueError, match="eps or eps_root must be positive"):
        curvature.adam_metric(state, eps=0.0)


@pytest.mark.slow
def test_parameters_of_16_bits_have_their_spectrum_in_float32():
    dtype = jnp.bfloat16
    scales = jnp.array([3.0, 2.0, 1.0], dtype)
    f = lambda p: 0.5 * jnp.sum(scales * p["x"] ** 2)
    params = {"x": jnp.array([0.5, 0.5, 0.5], dtype)}
    A = curvature.hessian(f, params)
    same(curvature.largest_eigenvalue(A, params), 3, rtol=0.02)
    found = curvature.eigenvalues(A, params, 3, key=KEY)
    same(found.values, [3, 2, 1], rtol=0.02)
    assert found.values.dtype == found.vectors["x"].dtype == jnp.float32
    density = curvature.density(A, params, key=KEY, matvecs=3, probes=1)
    same(np.sort(density.nodes[0]), [1, 2, 3], rtol=0.02)
    same(curvature.trace(A, params, key=KEY)[0], 6, rtol=0.02)
    curvature.check_product(A, params, key=KEY)
    with pytest.raises(ValueError, match="must be that of a symmetric"):
        curvature.check_product(lambda v: {"x": jnp.roll(v["x"], 1)}, params, key=KEY)
    tx = optlab.adam(1e-3)
    _, state = tx.update(params, tx.init(params), params)
    seen = curvature.preconditioned(A, curvature.adam_metric(state))
    same(curvature.largest_eigenvalue(seen, params), 6, rtol=0.02)
    M = jnp.array([[2.0, 0.0], [0.0, 0.5]], dtype)
    twice = (root := curvature.muon_metric(M))(root(M))
    assert twice.dtype == dtype
    same(twice.astype(float), np.eye(2), atol=0.02)


# The edge of stability.


@pytest.mark.parametrize("momentum", [None, 0.5])
@pytest.mark.parametrize("nesterov", [False, True])
def test_the_edge_parts_what_converges_from_what_explodes(momentum, nesterov):
    rate = 0.1
    edge = float(
        curvature.edge_of_stability(rate, momentum=momentum or 0.0, nesterov=nesterov and momentum is not None)
    )
    for scale, is_stable in ((0.97, True), (1.03, False)):
        tx = optlab.sgd(rate, momentum=momentum, nesterov=nesterov)
        path = optlab.minimize(lambda x, h=scale * edge: 0.5 * h * x**2, tx, 1.0, steps=400)
        assert (abs(path.final) < 1) == is_stable


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (
            lambda: curvature.product(np.array([[1.0, 2.0], [0.0, 1.0]])),
            "A must be symmetric, but differs from its tran",
        ),
        (
            lambda: curvature.check_product(lambda v: jnp.roll(v, 1), jnp.zeros(5), key=KEY),
            "must be that of a symmetric",
        ),
        (
            lambda: curvature.eigenvalues(lambda v: v, jnp.zeros(3), 4, key=KEY),
            r"k must be at most the number of parameters \(3\), got 4",
        ),
        (
            lambda: curvature.eigenvalues(lambda v: v, jnp.zeros(9), 4, key=KEY, matvecs=2),
            "matvecs must be a whole number of at least 4",
        ),
        (
            lambda: curvature.trace(lambda v: v, jnp.zeros(9), key=KEY, samples=1),
            "samples must be a whole number of at",
        ),
        (lambda: curvature.edge_of_stability(0.0), "learning_rate must be positive, got 0"),
    ],
)
def test_what_cannot_be_is_named(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def test_a_symmetric_product_passes():
    params, product, _ = hessian_and_matrix()
    curvature.check_product(product, params, key=KEY)


def test_smaller_batches_stay_in_flatter_minima_only():
    """E[x²] of SGD without replacement shrinks below the predicted sharpness and grows above it."""
    curvatures = 1 + 0.8 * np.array([-1.5, -0.5, 0.0, 0.5, 1.5])
    spread, eta = curvatures.std() / curvatures.mean(), 0.1

    def growth(scale, batch_size):
        draws = jax.vmap(lambda key: jax.random.permutation(key, 5)[:batch_size])(jax.random.split(KEY, 20_000))
        means = scale * curvatures[np.asarray(draws)].mean(axis=1)
        return np.mean((1 - eta * means) ** 2)

    edges = []
    for size in (1, 2, 5):
        edge = float(curvature.edge_of_sgd(eta, size, examples=5, spread=spread)) / curvatures.mean()
        assert growth(0.95 * edge, size) < 1 < growth(1.05 * edge, size)
        edges.append(edge)
    assert edges == sorted(edges)
    same(curvature.edge_of_sgd(eta, 5, examples=5, spread=spread), curvature.edge_of_stability(eta), rtol=1e-12)


@pytest.mark.slow
def test_full_batch_descent_ends_at_the_edge_of_stability():
    """optlab's MLP on 200 digits, squared errors: the sharpness rises to 2/η and stays there, while the loss falls."""
    from optlab.data import digits
    from optlab.models import mlp

    with jax.enable_x64(False):
        batch = digits().train.take(np.arange(200))
        model = mlp(outputs=10, widths=(32,), activation="tanh")
        params = model.init(KEY, batch["inputs"])["params"]
        targets = jax.nn.one_hot(batch["labels"], 10)
        loss = lambda p: jnp.mean(jnp.sum((model.apply({"params": p}, batch["inputs"]) - targets) ** 2, axis=1))

        def sharpness(p):
            return curvature.largest_eigenvalue(curvature.hessian(loss, p), jax.grad(loss)(p), matvecs=12)

        edge = float(curvature.edge_of_stability(0.05))
        path = optlab.minimize(loss, optlab.sgd(0.05), params, steps=1600)
        some = jax.tree.map(lambda p: p[jnp.array([200, 800, 1400, 1500, 1600])], path.x)
        seen = np.asarray(jax.jit(lambda some: jax.lax.map(sharpness, some))(some))
    assert seen[0] < 0.92 * edge < seen[1] < seen[2]
    same(seen[2:], edge, rtol=0.1)
    assert path.values[1600] < 0.5 * path.values[200]
