"""Every block and every optimizer keeps the contract of `optlab.testing`; and what that doesn't look at."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

import optlab
from optlab import optimizers, transforms
from optlab.testing import check_transform

MATRICES = {"a": np.zeros((4, 6)), "list": [np.zeros((6, 4))]}  # for blocks that move nothing else
UNBIASED = ["bias_correction"]
# Gradients of one direction are diagonal in their own eigenbasis, and what Adam makes of the other entries is rounding.
ONE_DIRECTION = ["bfloat16", "float16"]
BLOCKS = {  # the factory, its arguments, what check_transform is to know
    "cautious": (functools.partial(optlab.cautious, optlab.momentum(0.9)), {}, {}),
    "decay_after_step": (optlab.decay_after_step, {"rate": 0.1}, {}),
    "decay_weights": (optlab.decay_weights, {"weight_decay": 0.1}, {}),
    "decay_weights roles": (optlab.decay_weights, {"weight_decay": 0.1, "roles": ["matrix"]}, {}),
    "keep_weight_norm": (optlab.keep_weight_norm, {}, {"params": MATRICES}),
    "momentum": (optlab.momentum, {"decay": 0.9, "nesterov": True}, {}),
    "momentum ema": (optlab.momentum, {"decay": 0.9, "style": "ema", "start": "first_gradient"}, {"laws": UNBIASED}),
    "momentum own": (optlab.momentum, {"decay": 0.9, "nesterov": 0.8}, {}),
    "normalize": (optlab.normalize, {}, {}),
    "orthogonalize": (optlab.orthogonalize, {}, {"params": MATRICES}),
    "orthogonalize svd": (optlab.orthogonalize, {"method": "svd"}, {"params": MATRICES}),
    "probe": (optlab.probe, {"name": "here", "every": 2}, {}),
    "scale_by_adagrad": (optlab.scale_by_adagrad, {"eps": 1e-7}, {}),
    "scale_by_adam": (optlab.scale_by_adam, {"b1": 0.9, "b2": 0.999}, {"laws": UNBIASED}),
    "scale_by_adam first": (optlab.scale_by_adam, {"bias_correction": False, "start": "first_gradient"}, {}),
    "scale_by_learning_rate": (optlab.scale_by_learning_rate, {"learning_rate": 0.1}, {}),
    "scale_by_matrix_shape": (optlab.scale_by_matrix_shape, {}, {"params": MATRICES}),
    "scale_by_neuron_rms": (optlab.scale_by_neuron_rms, {"decay": 0.95}, {"params": MATRICES}),
    "scale_by_rms": (optlab.scale_by_rms, {"decay": 0.9, "bias_correction": True}, {"laws": UNBIASED}),
    "scale_by_rms centered": (optlab.scale_by_rms, {"decay": 0.9, "centered": True, "eps_in_sqrt": False}, {}),
    "scale_by_shampoo": (optlab.scale_by_shampoo, {"b1": 0.9, "b2": 0.99}, {"params": MATRICES}),
    "scale_by_sign": (optlab.scale_by_sign, {}, {}),
    "scale_by_soap": (optlab.scale_by_soap, {"b1": 0.9, "b2": 0.9}, {"params": MATRICES, "skip": ONE_DIRECTION}),
    "scale_by_softsign": (optlab.scale_by_softsign, {"eps": 1e-8}, {}),
    "scale_to_rms": (optlab.scale_to_rms, {"rms": 0.2}, {"params": MATRICES}),
    "scale_to_weight_norm": (optlab.scale_to_weight_norm, {}, {"params": MATRICES}),
}
# One of each kind: stateless, with one average, and a chain of two blocks, with two averages and with parameters.
KINDS = ["momentum", "scale_by_sign", "adamw"]
CHAINS = ["adamw", "lion", "muon", "muonh", "soap"]  # of each kind one: what every block keeps alone, chains keep
kinds_first = lambda names: [name if name in KINDS else pytest.param(name, marks=pytest.mark.slow) for name in names]


@pytest.mark.parametrize("block", kinds_first(BLOCKS))
def test_a_block_keeps_the_contract(block):
    factory, hyperparams, known = BLOCKS[block]
    check_transform(factory, hyperparams, **known).check()


@pytest.mark.parametrize("name", kinds_first(CHAINS))
def test_an_optimizer_keeps_the_contract(name):
    report = check_transform(
        getattr(optimizers, name),
        {"learning_rate": 0.1},
        laws=UNBIASED if name == "adamw" else [],
        skip=ONE_DIRECTION if name == "soap" else [],
    ).check()
    assert set(report.skipped) <= {"bias_correction", "weight_decay", *ONE_DIRECTION * (name == "soap")}


def test_no_block_is_forgotten():
    assert {name.split()[0] for name in BLOCKS} == set(transforms.__all__)


def same(left, right):
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=2e-5, atol=1e-6), left, right)


@pytest.mark.parametrize("block", BLOCKS)
def test_inside_an_nnx_optimizer(block):
    factory, hyperparams, _ = BLOCKS[block]
    normal = lambda seed, *shape: nnx.Param(jax.random.normal(jax.random.key(seed), shape))

    class Model(nnx.Module):
        def __init__(self):
            self.a, self.layers = normal(0, 4, 6), nnx.List([normal(1, 6, 4)])

    model, tx = Model(), optax.with_extra_args_support(factory(**hyperparams))
    optimizer = nnx.Optimizer(model, tx, wrt=nnx.Param)
    grads = nnx.grad(lambda model: jnp.sum(model.a[...] ** 2) + jnp.sum(model.layers[0][...] ** 3))(model)
    before = jax.tree.leaves(nnx.state(model))
    expected, _ = tx.update(jax.tree.leaves(grads), tx.init(before), before)
    optimizer.update(model, grads)
    same(jax.tree.leaves(nnx.state(model)), [x + u for x, u in zip(before, expected, strict=True)])


@pytest.mark.parametrize(
    ("factory", "settings", "changed"),
    [
        (optlab.momentum, {"decay": 0.9}, 0.5),
        (optlab.scale_by_softsign, {"eps": 1e-3}, 0.5),
        (optlab.scale_by_adam, {"b1": 0.9, "b2": 0.99}, 0.5),
        (optlab.scale_by_rms, {"decay": 0.9}, 0.5),
        (optlab.scale_by_adagrad, {"eps": 1e-3}, 0.5),
        (optlab.decay_weights, {"weight_decay": 0.1}, 0.5),
    ],
)
def test_an_injected_hyperparameter_is_heard(factory, settings, changed):
    params = {"a": jnp.linspace(-1.0, 2.0, 6)}
    tx = optax.inject_hyperparams(factory)(**settings)
    _, state = tx.update(params, tx.init(params), params)
    before, _ = tx.update(scaled := {"a": 2 * params["a"]}, state, params)
    state.hyperparams[next(iter(settings))] = jnp.float32(changed)
    after, _ = tx.update(scaled, state, params)
    assert not jnp.allclose(before["a"], after["a"])


def test_clipping_stands_before_any_block():  # A23
    grads = {"a": jnp.array([3.0, 4.0]), "b": jnp.array([12.0])}
    by_norm = optax.chain(optax.clip_by_global_norm(1.3), optlab.momentum(0.9))
    by_value = optax.chain(optax.clip(3.5), optlab.momentum(0.9))
    same(by_norm.update(grads, by_norm.init(grads))[0], {"a": jnp.array([0.3, 0.4]), "b": jnp.array([1.2])})
    same(by_value.update(grads, by_value.init(grads))[0], {"a": jnp.array([3.0, 3.5]), "b": jnp.array([3.5])})
