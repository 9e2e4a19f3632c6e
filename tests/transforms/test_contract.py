"""What every block keeps: wherever optax's transforms work, so does it."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

import optlab

BLOCKS = {
    "scale_by_sign": optlab.scale_by_sign,
    "scale_by_softsign": optlab.scale_by_softsign,
    "momentum": functools.partial(optlab.momentum, 0.9, nesterov=True),
    "momentum ema": functools.partial(optlab.momentum, 0.9, style="ema", start="first_gradient"),
    "scale_by_adam": optlab.scale_by_adam,
    "scale_by_adam first": functools.partial(optlab.scale_by_adam, bias_correction=False, start="first_gradient"),
    "scale_by_rms": optlab.scale_by_rms,
    "scale_by_rms centered": functools.partial(optlab.scale_by_rms, centered=True, eps_in_sqrt=False),
    "scale_by_adagrad": optlab.scale_by_adagrad,
    "decay_weights": functools.partial(optlab.decay_weights, 0.1),
    "decay_weights roles": functools.partial(optlab.decay_weights, 0.1, roles=["matrix"]),
    "orthogonalize": optlab.orthogonalize,
    "orthogonalize svd": functools.partial(optlab.orthogonalize, "svd"),
    "scale_by_matrix_shape": optlab.scale_by_matrix_shape,
}
every_block = pytest.mark.parametrize("block", BLOCKS.values(), ids=BLOCKS.keys())


def tree(dtype=jnp.float32, seed=0):
    """Matrices in a dict, a list and a tuple."""
    keys = iter(jax.random.split(jax.random.key(seed), 4))
    normal = lambda *shape: jax.random.normal(next(keys), shape).astype(dtype)
    return {"a": normal(4, 6), "list": [normal(6, 4), (normal(4, 4),)], "none": None}


def same(left, right):
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=2e-5, atol=1e-6), left, right)


def types(tree):
    return jax.tree.structure(tree), [(x.shape, x.dtype) for x in jax.tree.leaves(tree)]


@every_block
@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_zero_gradients_stay_finite_and_types_stay_what_they_are(block, dtype):
    tx, params = block(), tree(dtype)
    zero, step = jax.tree.map(jnp.zeros_like, params), jax.jit(block().update)
    state = first = tx.init(params)
    for grads in (zero, zero, params, zero):
        update, state = step(grads, state, zero)
        assert all(jnp.isfinite(x).all() for x in jax.tree.leaves(update))
        assert types(update) == types(params)
    assert types(state) == types(first)


@every_block
def test_inside_jit_chain_masked_multisteps_and_a_population(block):
    params, grads = tree(), tree(seed=1)
    bare, _ = block().update(grads, block().init(params), params)

    @jax.jit
    def wrapped(params, grads):
        first = lambda tx: tx.update(grads, tx.init(params), params)
        chained, _ = first(optax.chain(optax.clip_by_global_norm(1e9), block(), optax.identity()))
        masked, _ = first(optax.masked(block(), {"a": True, "list": False, "none": None}))
        twice = optax.MultiSteps(block(), 2)
        second, _ = twice.update(grads, first(twice)[1], params)
        two = jax.tree.map(lambda x: jnp.stack([x, x]), (params, grads))
        many = jax.vmap(lambda params, grads: block().update(grads, block().init(params), params)[0])(*two)
        return chained, masked, second, jax.tree.map(lambda x: x[1], many)

    chained, masked, second, of_many = wrapped(params, grads)
    same(chained, bare)
    same(masked, {"a": bare["a"], "list": grads["list"], "none": None})
    same(second, bare)
    same(of_many, bare)


@every_block
def test_inside_an_nnx_optimizer(block):
    class Model(nnx.Module):
        def __init__(self):
            self.a, self.layers = nnx.Param(tree()["a"]), nnx.List([nnx.Param(tree()["list"][0])])

    model, tx = Model(), block()
    optimizer = nnx.Optimizer(model, tx, wrt=nnx.Param)
    grads = nnx.grad(lambda model: jnp.sum(model.a[...] ** 2) + jnp.sum(model.layers[0][...] ** 3))(model)
    before = jax.tree.leaves(nnx.state(model))
    expected, _ = tx.update(jax.tree.leaves(grads), tx.init(before), before)
    optimizer.update(model, grads)
    same(jax.tree.leaves(nnx.state(model)), [x + u for x, u in zip(before, expected, strict=True)])


@pytest.mark.parametrize(
    ("factory", "settings"),
    [
        (optlab.momentum, {"decay": 0.9}),
        (optlab.scale_by_softsign, {"eps": 1e-3}),
        (optlab.scale_by_adam, {"b1": 0.9, "b2": 0.99}),
        (optlab.scale_by_rms, {"decay": 0.9}),
        (optlab.scale_by_adagrad, {"eps": 1e-3}),
        (optlab.decay_weights, {"weight_decay": 0.1}),
    ],
)
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_injected_hyperparameters_count_and_leave_types_alone(factory, settings, dtype):
    params, grads = tree(dtype), tree(dtype, seed=1)
    tx = optax.inject_hyperparams(factory, hyperparam_dtype=jnp.float32)(**settings)
    state = tx.init(params)
    update, after = jax.jit(tx.update)(grads, state, params)
    bare, _ = factory(**settings).update(grads, factory(**settings).init(params), params)
    rtol = 1e-5 if dtype == "float32" else 0.01
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=rtol), update, bare)
    assert types(after) == types(state)
    assert types(update) == types(grads)
    before, _ = tx.update(params, after, params)
    after.hyperparams[next(iter(settings))] = jnp.float32(0.5)
    changed, _ = tx.update(params, after, params)
    assert not all(jnp.array_equal(x, y) for x, y in zip(*map(jax.tree.leaves, (before, changed)), strict=True))


def test_clipping_stands_before_any_block():  # A23
    grads = {"a": jnp.array([3.0, 4.0]), "b": jnp.array([12.0])}
    by_norm = optax.chain(optax.clip_by_global_norm(1.3), optlab.momentum(0.9))
    by_value = optax.chain(optax.clip(3.5), optlab.momentum(0.9))
    same(by_norm.update(grads, by_norm.init(grads))[0], {"a": jnp.array([0.3, 0.4]), "b": jnp.array([1.2])})
    same(by_value.update(grads, by_value.init(grads))[0], {"a": jnp.array([3.0, 3.5]), "b": jnp.array([3.5])})
