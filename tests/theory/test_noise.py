"""Gradient noise: unbiased, ∝ 1/B, its scale, and the steps that go uphill."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

import optlab
from optlab.theory import noise

same = np.testing.assert_allclose
KEY = jax.random.key(0)


def problem(examples=64):
    keys = jax.random.split(KEY, 3)
    batch = {
        "inputs": jax.random.normal(keys[0], (examples, 3), float),
        "labels": jax.random.normal(keys[1], (examples,), float),
    }
    params = {"W": jax.random.normal(keys[2], (3,), float), "b": jnp.zeros(())}
    loss = lambda p, batch: jnp.mean((jnp.tanh(batch["inputs"] @ p["W"]) + p["b"] - batch["labels"]) ** 2)
    return loss, params, batch


def flat(gradients):
    return np.concatenate([np.asarray(g).reshape(len(g), -1) for g in jax.tree.leaves(gradients)], axis=1)


def per_example(examples=64):
    loss, params, batch = problem(examples)
    return flat(noise.per_example_gradients(noise.of_examples(loss), params, {}, batch, KEY))


def test_their_mean_is_the_batchs_gradient_and_each_is_an_examples():
    loss, params, batch = problem()
    found = noise.per_example_gradients(noise.of_examples(loss), params, {}, batch, KEY)
    gradient = jax.jit(jax.grad(loss))
    same(flat(found).mean(axis=0), flat(jax.tree.map(lambda g: g[None], gradient(params, batch)))[0], rtol=1e-10)
    alone = gradient(params, jax.tree.map(lambda x: x[7:8], batch))
    jax.tree.map(lambda a, b: same(a[7], b, rtol=1e-10), found, alone)


@pytest.mark.slow
def test_a_workloads_loss_works_as_it_is():
    from optlab.training import Workload

    with jax.enable_x64(False):
        workload = Workload.digits()
        params, model_state = workload.init(KEY)
        batch = workload.data.train.take(np.arange(6))
        found = noise.per_example_gradients(workload.loss, params, model_state, batch, KEY)
        whole = jax.grad(lambda p: workload.loss(p, model_state, batch, KEY, True)[0])(params)
        jax.tree.map(lambda a, b: same(a.mean(axis=0), b, atol=1e-6), found, whole)


@pytest.mark.parametrize("replacement", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_a_batchs_gradient_is_unbiased_and_its_variance_is_one_over_b(replacement):
    loss, params, batch = problem()
    g = per_example()
    variance = g.var(axis=0).sum()

    def drawn(key, size):
        rows = jax.random.choice(key, 64, (size,), replace=replacement)
        found = jax.grad(loss)(params, jax.tree.map(lambda x: x[rows], batch))
        return jnp.append(found["W"], found["b"])

    for size in (1, 4, 16):
        many = jax.jit(jax.vmap(lambda key, size=size: drawn(key, size)))
        seen = np.asarray(many(jax.random.split(KEY, 4000)))
        mean, error = seen.mean(axis=0), seen.std(axis=0) / 4000**0.5
        assert (np.abs(mean - g.mean(axis=0)) < 4 * error).all()
        predicted = noise.gradient_variance(variance, size, examples=None if replacement else 64)
        same(seen.var(axis=0).sum(), predicted, rtol=0.08)


def test_the_noise_scale_is_unbiased_in_its_parts():
    """Gaussian gradients about a known mean with a known covariance."""
    G, sigma = np.array([1.0, -2.0, 0.5]), np.array([0.5, 1.0, 3.0])
    draw = lambda key: noise.gradient_noise(G[None] + sigma[None] * jax.random.normal(key, (10, 3), float))
    found = jax.vmap(draw)(jax.random.split(KEY, 4000))
    for seen, true in ((found.signal, np.sum(G**2)), (found.variance, np.sum(sigma**2))):
        assert abs(seen.mean() - true) < 4 * seen.std() / 4000**0.5
    same(found.scale[0], found.variance[0] / found.signal[0], rtol=1e-10)


@pytest.mark.slow
def test_parts_of_a_batch_say_the_same_as_its_examples():
    loss, params, batch = problem(4096)
    cheap = noise.noise_scale(noise.of_examples(loss), params, {}, batch, KEY)
    g = per_example(4096)
    exact = noise.gradient_noise(g)
    same(exact.variance, g.var(axis=0, ddof=1).sum(), rtol=1e-10)
    same(cheap.signal, exact.signal, rtol=0.05)
    order = jax.vmap(lambda key: jax.random.permutation(key, 4096))(jax.random.split(KEY, 30))
    mixed = lambda rows: noise.noise_scale(
        noise.of_examples(loss), params, {}, jax.tree.map(lambda x: x[rows], batch), KEY
    )
    many = jax.vmap(mixed)(order).variance
    assert abs(many.mean() - exact.variance) < 4 * many.std() / 30**0.5


def test_steps_and_examples_to_a_target():
    steps = noise.steps_to_target(np.array([1, 100, 10_000]), scale=100.0, least=50.0)
    same(steps, [50 * 101, 100, 50.5], rtol=1e-12)
    same(noise.examples_to_target(100, scale=100.0, least=50.0), 2 * 50 * 100)  # twice the fewest, at B = B_noise


@pytest.mark.parametrize("sizes", [2**31, [2**31], np.array([2**31])], ids=["number", "list", "array"])
def test_large_batch_sizes_have_predictions(sizes):
    with jax.enable_x64(False):
        same(noise.steps_to_target(sizes, scale=2.0**31, least=5.0), np.broadcast_to(10, np.shape(sizes)))


@pytest.mark.slow
def test_the_best_step_gains_as_much_as_the_noise_scale_predicts():
    """Least squares with XᵀX/N = I: the rate is searched for each batch size, and the noise is that of its examples.

    Steps to a target are the distance over the gain of a step, 1/(1 + B_noise/B) of the whole gradient's.
    """
    _, params, batch = problem()
    X, y = jnp.linalg.qr(batch["inputs"])[0] * 8, batch["labels"]
    loss = lambda w, rows: jnp.mean((X[rows] @ w - y[rows]) ** 2)
    g = jax.vmap(lambda row: jax.grad(loss)(params["W"], row[None]))(jnp.arange(64))
    scale = float(noise.gradient_noise(g).scale)
    rates, keys, whole = jnp.linspace(0.04, 0.48, 12), jax.random.split(KEY, 1000), jnp.arange(64)

    def gain(size):
        """Of the rate that is best on the average."""
        drawn = lambda w, key: loss(w, jax.random.randint(key, (size,), 0, 64))
        after = lambda rate, key: optlab.minimize(drawn, optlab.sgd(rate), params["W"], steps=1, key=key).final
        ends = jax.vmap(lambda rate: jnp.mean(jax.vmap(lambda key: loss(after(rate, key), whole))(keys)))(rates)
        return float(loss(params["W"], whole) - jnp.min(ends))

    most = float(jnp.sum(g.mean(axis=0) ** 2)) / 4  # ‖G‖²/(2h), h = 2
    sizes = np.array([2, 16])
    assert scale > 2
    same(
        most / np.array([gain(int(size)) for size in sizes]),
        noise.steps_to_target(sizes, scale=scale, least=1.0),
        rtol=0.08,
    )


# Uphill.


@pytest.mark.parametrize("distance", [0.3, 1.0, 5.0])
@pytest.mark.parametrize("batch_size", [1, 16])
def test_unbiased_is_not_monotone(distance, batch_size):
    """The share of uphill steps is the noncentral χ²'s, within its standard error."""
    h, eta, variance, d, tries = 2.0, 0.1, 9.0, 3, 20_000
    x0 = jnp.array([distance, 0.0, 0.0])
    f = lambda x, key: (
        0.5 * h * jnp.sum(x**2) + x @ (jnp.sqrt(variance / batch_size / d) * jax.random.normal(key, (d,)))
    )
    after = jax.vmap(lambda key: optlab.minimize(f, optlab.sgd(eta), x0, steps=1, key=key).final)(
        jax.random.split(KEY, tries)
    )
    share = float(jnp.mean(jnp.sum(after**2, axis=1) > distance**2))
    told = float(noise.uphill_share(h**2 * distance**2, variance, batch_size, learning_rate=eta, curvature=h, size=d))
    assert abs(share - told) < 4 * (told * (1 - told) / tries) ** 0.5 + 1e-9


def test_near_the_minimum_and_with_small_batches_more_steps_go_uphill():
    share = lambda distance, size: noise.uphill_share(distance**2, 4.0, size, learning_rate=0.1, curvature=1.0, size=10)
    by_distance = [share(r, 1) for r in (0.01, 0.1, 1.0, 10.0)]
    assert by_distance == sorted(by_distance, reverse=True)
    assert by_distance[0] > 0.9
    assert by_distance[-1] < 1e-3
    assert share(1.0, 1) > share(1.0, 16) > share(1.0, 256)


@pytest.mark.parametrize("size", [1, 1000])
@pytest.mark.parametrize("signal", [0.1, 4.0])
def test_small_rates_have_the_normal_limit(signal, size):
    """−G·ξ > ½ηh‖g‖²: as ηh → 0 the share is that of a standard normal variable beyond ‖G‖/σ."""
    rates = 10.0 ** np.arange(-200, 0, 4)
    share = noise.uphill_share(signal, 1.0 * size, 1, learning_rate=rates, curvature=1.0, size=size)
    same(share[rates < 1e-12], stats.norm.sf(signal**0.5), rtol=1e-8)
    with_curvature = stats.norm.sf(signal**0.5 - (size - 1) / 2 * 1e-8 / signal**0.5)
    same(share[rates == 1e-8], with_curvature, rtol=1e-6)


def test_where_the_methods_meet_they_agree():
    over, center = np.array([-1e4, 0.0, 1e4, 3e4]), 2e7
    for size in (1, 10, 1000):
        same(noise._far_tail(over, size, center), stats.ncx2.sf(center + over, size, center), rtol=1e-6)


def test_a_share_is_never_nan():
    share = lambda signal, rate, size: float(
        noise.uphill_share(signal, 1e-3, 4, learning_rate=rate, curvature=1.7, size=size)
    )
    assert share(1e8, 1e-4, 5) == 0
    assert share(1e8, 1.3, 5) == 1  # beyond ηh = 2
    assert share(0.0, 1e-4, 5) == share(0.0, 1e-4, 10**8) == 1  # at the minimum


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: noise.gradient_noise(np.ones((1, 3))), "gradients must be of two examples or more, got 1"),
        (
            lambda: noise.gradient_noise({"a": np.ones((2, 3)), "b": np.ones(3)}),
            "must have one first axis, the example",
        ),
        (
            lambda: noise.noise_scale(max, np.ones(3), {}, np.ones((7, 3)), KEY),
            "an even number of examples, to be cut into parts, got 7",
        ),
        (lambda: noise.gradient_variance(1.0, 0), "batch_size must be a whole number of at least 1, got 0"),
    ],
)
def test_what_cannot_be_is_named(call, message):
    with pytest.raises(ValueError, match=message):
        call()
