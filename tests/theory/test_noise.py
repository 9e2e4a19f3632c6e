"""Gradient noise: unbiased, ∝ 1/B, its scale, and the steps that go uphill."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

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
    same(flat(found).mean(axis=0), flat(jax.tree.map(lambda g: g[None], jax.grad(loss)(params, batch)))[0], rtol=1e-10)
    alone = jax.grad(loss)(params, jax.tree.map(lambda x: x[7:8], batch))
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
        seen = np.asarray(jax.vmap(lambda key, size=size: drawn(key, size))(jax.random.split(KEY, 4000)))
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


def test_steps_to_a_target_are_those_that_sgd_takes():
    """On a noisy quadratic with the best rate of each batch size: η = η_max/(1 + B_noise/B)."""
    scale, eta = 8.0, 0.02  # far from the minimum: G hardly changes, and neither does the noise scale
    G = jnp.ones(4)
    taken = []
    for size in (2, 8, 32):
        f = lambda x, key, size=size: (G + jnp.sqrt(scale * 4.0 / size / 4) * jax.random.normal(key, (4,))) @ x
        rate = eta / (1 + scale / size)
        ends = jax.vmap(
            lambda key, f=f, rate=rate: optlab.minimize(
                f, optlab.sgd(rate), jnp.zeros(4), steps=200, key=key
            ).final.sum()
        )(jax.random.split(KEY, 50))
        taken.append(200 / float(-ends.mean()))
    predicted = noise.steps_to_target(np.array([2, 8, 32]), scale=scale, least=1.0)
    same(np.array(taken) / taken[-1], predicted / predicted[-1], rtol=0.05)


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
