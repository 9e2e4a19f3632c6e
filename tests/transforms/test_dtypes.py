"""Dtypes are policies, each apart: of momenta, second moments and hyperparameters. Nothing is computed in 16 bits."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import optlab
from optlab import optimizers
from optlab.transforms import _cautious
from optlab.transforms.matrices import _norms

NARROW = ["bfloat16", "float16"]
BLOCKS = {
    "momentum": functools.partial(optlab.momentum, 0.9, nesterov=True),
    "scale_by_adam": optlab.scale_by_adam,
    "scale_by_adam narrow": functools.partial(optlab.scale_by_adam, nu_dtype="bfloat16", mu_dtype="bfloat16"),
    "scale_by_rms": functools.partial(optlab.scale_by_rms, bias_correction=True),
    "scale_by_rms narrow": functools.partial(optlab.scale_by_rms, nu_dtype="bfloat16"),
    "scale_by_adagrad": optlab.scale_by_adagrad,
    "scale_by_sign": optlab.scale_by_sign,
    "scale_by_softsign": optlab.scale_by_softsign,
    "decay_weights cautious": functools.partial(optlab.decay_weights, 0.1, cautious=True),
    "cautious": lambda: _cautious.cautious(optlab.momentum(0.9)),
    "scale_by_neuron_rms": _norms.scale_by_neuron_rms,
    "scale_by_neuron_rms narrow": functools.partial(_norms.scale_by_neuron_rms, nu_dtype="bfloat16"),
    "scale_to_rms": _norms.scale_to_rms,
    "scale_to_weight_norm": _norms.scale_to_weight_norm,
    "keep_weight_norm": _norms.keep_weight_norm,
}
OPTIMIZERS = {name: functools.partial(getattr(optimizers, name), 0.01) for name in optimizers.__all__}
KINDS = [*BLOCKS, "adamw", "muon", "soap"]  # the other optimizers are chains of the same blocks
everything = pytest.mark.parametrize(
    "factory",
    [
        pytest.param(make, id=name, marks=[] if name in KINDS else pytest.mark.slow)
        for name, make in {**BLOCKS, **OPTIMIZERS}.items()
    ],
)


def tree(seed=0, size=1.0):
    """Matrices alone, which every block accepts."""
    keys = jax.random.split(jax.random.key(seed), 2)
    return {"a": size * jax.random.normal(keys[0], (4, 6)), "b": [size * jax.random.normal(keys[1], (6, 4))]}


def cast(tree, dtype):
    return jax.tree.map(lambda x: x.astype(dtype), tree)


def types(tree):
    return [(x.shape, x.dtype) for x in jax.tree.leaves(tree)]


def trajectory(tx, grads, params):
    """All updates, and the last state."""

    @jax.jit
    def run(grads, params):
        step = lambda state, g: tx.update(g, state, params)[::-1]
        return jax.lax.scan(step, tx.init(params), grads)

    return run(grads, params)


@pytest.mark.thinned
@everything
@pytest.mark.parametrize("dtype", NARROW)
def test_sixteen_bits_come_to_what_float32_comes_to(factory, dtype):
    """And zero gradients, which come first and last, give finite updates; no dtype of update or state changes."""
    tx, params = factory(), cast(tree(), dtype)
    grads = [tree(seed=i, size=1e-3) for i in range(1, 5)]
    zero = jax.tree.map(jnp.zeros_like, grads[0])
    grads = cast(jax.tree.map(lambda *g: jnp.stack(g), zero, *grads, zero), dtype)
    state, got = trajectory(tx, grads, params)
    assert types(state) == types(tx.init(params))
    assert types(got) == types(grads)
    _, expected = trajectory(tx, cast(grads, "float32"), cast(params, "float32"))
    for x, y in zip(jax.tree.leaves(got), jax.tree.leaves(expected), strict=True):
        assert jnp.isfinite(x).all()
        for narrow, wide in zip(x.astype("float32"), y, strict=True):
            assert jnp.linalg.norm(narrow - wide) <= 0.05 * jnp.linalg.norm(wide) + 1e-6


@pytest.mark.parametrize(
    ("factory", "momenta", "second"),
    [
        (optlab.scale_by_adam, "mu_dtype", "nu_dtype"),
        (functools.partial(optlab.momentum, 0.9), "accumulator_dtype", None),
        (optlab.scale_by_rms, None, "nu_dtype"),
        (_norms.scale_by_neuron_rms, None, "nu_dtype"),
        (functools.partial(optimizers.adam, 0.1), "mu_dtype", "nu_dtype"),
        (functools.partial(optimizers.adamw, 0.1), "mu_dtype", "nu_dtype"),
        (functools.partial(optimizers.nadam, 0.1), "mu_dtype", "nu_dtype"),
        (functools.partial(optimizers.lion, 0.1), "mu_dtype", None),
        (functools.partial(optimizers.normuon, 0.1), "mu_dtype", "nu_dtype"),
        (functools.partial(optimizers.adamuon, 0.1), "mu_dtype", "nu_dtype"),
    ],
)
def test_each_policy_is_its_own(factory, momenta, second):
    params = cast(tree(), "bfloat16")
    kept = lambda **settings: [x.dtype for x in jax.tree.leaves(factory(**settings).init(params)) if x.ndim]
    plain = kept()
    assert plain.count(jnp.bfloat16) == (2 if momenta else 0)  # momenta are stored as the parameters are
    assert plain.count(jnp.float32) == (2 if second else 0)  # second moments in at least float32
    if momenta:
        assert set(kept(**{momenta: "float32"})) == {jnp.dtype("float32")}
    if second:
        assert set(kept(**{second: "bfloat16"})) == {jnp.dtype("bfloat16")}


def test_a_wide_second_moment_moves_where_a_narrow_one_stands_still():
    """What nu_dtype costs: in bfloat16 a change by a thousandth is less than half of the last bit."""
    forgets = {}
    for dtype in (None, "bfloat16"):
        tx, ones = optlab.scale_by_adam(nu_dtype=dtype), jnp.ones((500, 3))
        state, _ = trajectory(tx, ones, ones[0])
        later, _ = jax.lax.scan(lambda state, g, tx=tx: (tx.update(g, state)[1], None), state, 0 * ones)
        forgets[dtype] = later.nu / state.nu
    np.testing.assert_allclose(forgets[None], 0.999**500, rtol=1e-3)
    np.testing.assert_array_equal(forgets["bfloat16"], 1)


@pytest.mark.parametrize("factory", [optlab.scale_by_adam, optlab.scale_by_rms, _norms.scale_by_neuron_rms])
def test_a_narrow_second_moment_is_rounded_once_a_step(factory):
    """Were it computed in bfloat16, a decay of 0.97 would be 0.9688, and each product rounded too."""
    decay = {"b2": 0.97} if factory is optlab.scale_by_adam else {"decay": 0.97}
    tx, g = factory(**decay, nu_dtype="bfloat16"), jnp.linspace(0.5, 4, 64)[None]
    v = jnp.zeros((1, 64), "bfloat16")
    for _ in range(40):
        v = (0.97 * v.astype("float32") + 0.03 * g**2).astype("bfloat16")
    state, _ = trajectory(tx, jnp.stack([g] * 40), g)
    np.testing.assert_allclose(state.nu.astype("float32"), v.astype("float32"), rtol=1e-3)


# Hyperparameters.

INJECTED = [optimizers.adamw, optimizers.adam, optimizers.rmsprop, optimizers.lion, optimizers.muon, optimizers.adamuon]


@pytest.mark.parametrize("optimizer", INJECTED)
def test_an_injected_b2_is_never_one(optimizer):
    """With 16-bit parameters optax injects 16-bit arrays, in which 0.999 is 1 before any transform sees it."""
    params, grads = cast(tree(), "bfloat16"), cast(tree(seed=1), "bfloat16")
    with pytest.raises(
        ValueError, match=r"bfloat16, in which 0\.999 or 1e-8 rounds to .* hyperparam_dtype=jnp\.float32"
    ):
        optax.inject_hyperparams(optimizer)(0.1).init(params)
    tx = optax.inject_hyperparams(optimizer, hyperparam_dtype=jnp.float32)(0.1)
    state = tx.init(params)
    update, after = jax.jit(tx.update)(grads, state, params)
    assert types(update) == types(grads)
    assert types(after) == types(state)
    bare, _ = jax.jit(optimizer(0.1).update)(grads, optimizer(0.1).init(params), params)
    jax.tree.map(
        lambda x, y: np.testing.assert_allclose(x, y, rtol=0.01), cast(update, "float32"), cast(bare, "float32")
    )


@pytest.mark.parametrize(
    ("factory", "name"),
    [
        (optlab.scale_by_adam, "b2"),
        (optlab.scale_by_adam, "eps"),
        (optlab.scale_by_rms, "decay"),
        (optlab.scale_by_adagrad, "eps"),
        (optlab.scale_by_softsign, "eps"),
        (optlab.momentum, "decay"),
        (_norms.scale_by_neuron_rms, "decay"),
        (_norms.scale_to_rms, "rms"),
    ],
)
@pytest.mark.parametrize("dtype", NARROW)
def test_hyperparameters_of_sixteen_bits_are_refused(factory, name, dtype):
    with pytest.raises(ValueError, match=f"{name} must be a number or at least float32, got {dtype}"):
        factory(**{name: jnp.asarray(0.5, dtype)})
    for value in (0.5, np.float32(0.5), jnp.float32(0.5), np.float64(0.5)):
        factory(**{name: value})


@pytest.mark.parametrize("rate", [0.0123, lambda step: 0.0123 + 0 * step])
def test_the_learning_rate_isnt_rounded(rate):
    """In bfloat16 0.0123 is 0.01233; the update is the exact product, rounded once."""
    g = jnp.linspace(1, 2, 100).astype("bfloat16")
    tx = optimizers.sgd(rate)
    update, _ = tx.update(g, tx.init(g))
    np.testing.assert_array_equal(update, (-0.0123 * g.astype("float32")).astype("bfloat16"))


@pytest.mark.parametrize(
    "tx",
    [optlab.muon(1e-3), optlab.muon(1e-3, mu_dtype=jnp.float32), optlab.muonh(1e-3), optlab.sgd(0.1, momentum=0.95)],
)
def test_large_gradients_in_float16_give_finite_updates(tx):
    """A heavy ball comes to 20 times the gradient, beyond float16."""
    params = {"w": jnp.ones((8, 6), jnp.float16)}
    grads, state = {"w": jnp.full((8, 6), 6e3, jnp.float16)}, tx.init(params)
    update = jax.jit(tx.update)
    for _ in range(60):
        updates, state = update(grads, state, params)
    assert jnp.isfinite(updates["w"]).all()
    infinite = update({"w": grads["w"].at[0, 0].set(jnp.inf)}, state, params)[0]
    assert not jnp.isfinite(infinite["w"]).all()


@pytest.mark.parametrize(
    "make",
    [
        lambda dtype: optlab.momentum(0.9, accumulator_dtype=dtype),
        lambda dtype: optlab.adamw(0.1, mu_dtype=dtype),
        lambda dtype: optlab.adamw(0.1, nu_dtype=dtype),
        lambda dtype: optlab.scale_by_rms(nu_dtype=dtype),
        lambda dtype: optlab.normuon(0.1, nu_dtype=dtype),
    ],
)
@pytest.mark.parametrize("dtype", ["int32", jnp.int8, "float8", bool])
def test_moments_are_floating_point_numbers(make, dtype):
    with pytest.raises(ValueError, match="_dtype must be a floating-point dtype, such as"):
        make(dtype)


@pytest.mark.parametrize(
    ("ours", "theirs"),
    [
        (
            lambda: optlab.adagrad(0.3, initial_accumulator_value=0.0),
            lambda: optax.adagrad(0.3, initial_accumulator_value=0.0),
        ),
        (lambda: optlab.rmsprop(0.03, centered=True), lambda: optax.rmsprop(0.03, centered=True)),
    ],
)
def test_second_moments_of_complex_parameters_are_those_of_their_size(ours, theirs):
    ends = []
    for tx in (ours(), theirs()):
        z = jnp.asarray([1j, 1 + 1j], jnp.complex64)
        state = tx.init(z)
        for _ in range(30):
            updates, state = tx.update(jnp.conj(jax.grad(lambda z: jnp.sum(jnp.abs(z) ** 2))(z)), state, z)
            z = optax.apply_updates(z, updates)
        ends.append(z)
    np.testing.assert_allclose(*ends, atol=2e-3)
