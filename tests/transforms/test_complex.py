"""Complex numbers: right in every block and optimizer, by an oracle in complex128, or refused by name.

A complex coordinate is one coordinate: |g|² in every average of squares, g / |g| as its sign, Re(u·ḡ) where two agree.
"""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import optlab
from optlab import optimizers, transforms
from optlab.optimizers import _coordinates as coordinates
from optlab.testing import check_transform

STEPS, SHAPE = 5, (4, 6)
RNG = np.random.default_rng(0)
normal = lambda *shape: RNG.normal(size=shape) + 1j * RNG.normal(size=shape)
GRADS, WEIGHTS = normal(STEPS, *SHAPE), normal(*SHAPE)
GRADS[2, 0, 0] = 0
sign = lambda g: np.where(g == 0, 0, g / np.where(g == 0, 1, np.abs(g)))
square = lambda g: np.abs(g) ** 2
norm = lambda x: np.sqrt(np.sum(square(x)))
rms = lambda u: 0.2 * u * np.sqrt(u.size) / norm(u)


def polar(X):
    U, _, Vh = np.linalg.svd(X, full_matrices=False)
    return U @ Vh


def average(x, decay):
    """m ← βm + (1 − β)x."""
    m, found = 0.0, []
    for each in x:
        m = decay * m + (1 - decay) * each
        found.append(m)
    return np.stack(found)


def nesterov(g, decay=0.95, fresh=1.0):
    m, found = 0.0, []
    for each in g:
        m = decay * m + fresh * each
        found.append(decay * m + fresh * each)
    return np.stack(found)


def adam(g, b1=0.9, b2=0.999, eps=1e-8):
    t = np.arange(1, STEPS + 1)[:, None, None]
    return average(g, b1) / (1 - b1**t) / (np.sqrt(average(square(g), b2) / (1 - b2**t)) + eps)


def centred(g, decay=0.9, eps=1e-8):
    return g / np.sqrt(np.maximum(average(square(g), decay) - square(average(g, decay)), 0) + eps)


def lion(g):
    m = np.concatenate([np.zeros((1, *SHAPE)), average(g, 0.99)[:-1]])
    return sign(0.9 * m + 0.1 * g)


def agreeing(u, g):
    agree = (u * g.conj()).real > 0
    return np.stack([each * a / max(a.mean(), 1e-3) for each, a in zip(u, agree, strict=True)])


def neurons(o):
    return o / (np.sqrt(average(np.mean(square(o), axis=1, keepdims=True), 0.95)) + 1e-8)


each = lambda f, x: np.stack([f(e) for e in x])
orthogonal = lambda g: each(polar, g)
kept = lambda u: norm(WEIGHTS) * (WEIGHTS + u) / norm(WEIGHTS + u) - WEIGHTS
BLOCKS = {
    "cautious": (lambda: optlab.cautious(optlab.momentum(0.9)), lambda g: agreeing(sums(g), g)),
    "decay_weights": (lambda: optlab.decay_weights(0.1), lambda g: g + 0.1 * WEIGHTS),
    "decay_weights cautious": (
        lambda: optlab.decay_weights(0.1, cautious=True),
        lambda g: g + 0.1 * WEIGHTS * ((g * WEIGHTS.conj()).real >= 0),
    ),
    "decay_after_step": (lambda: optlab.decay_after_step(0.1), lambda g: g - 0.1 * (WEIGHTS + g)),
    "keep_weight_norm": (optlab.keep_weight_norm, lambda g: each(kept, g)),
    "momentum": (lambda: optlab.momentum(0.9), lambda g: sums(g)),
    "normalize": (optlab.normalize, lambda g: each(lambda u: u / norm(u), g)),
    "orthogonalize": (lambda: optlab.orthogonalize("svd"), orthogonal),
    "probe": (lambda: optlab.probe("u"), lambda g: g),
    "scale_by_adagrad": (
        lambda: optlab.scale_by_adagrad(0.0, eps=1e-12),
        lambda g: g / np.sqrt(np.cumsum(square(g), axis=0)),
    ),
    "scale_by_adam": (optlab.scale_by_adam, adam),
    "scale_by_learning_rate": (lambda: optlab.scale_by_learning_rate(0.1), lambda g: -0.1 * g),
    "scale_by_matrix_shape": (optlab.scale_by_matrix_shape, lambda g: 0.2 * np.sqrt(6) * g),
    "scale_by_neuron_rms": (optlab.scale_by_neuron_rms, neurons),
    "scale_by_rms": (optlab.scale_by_rms, lambda g: g / np.sqrt(average(square(g), 0.9) + 1e-8)),
    "scale_by_rms centered": (lambda: optlab.scale_by_rms(centered=True), centred),
    "scale_by_sign": (optlab.scale_by_sign, sign),
    "scale_by_softsign": (lambda: optlab.scale_by_softsign(0.1), lambda g: g / (np.abs(g) + 0.1)),
    "scale_to_rms": (optlab.scale_to_rms, lambda g: each(rms, g)),
    "scale_to_weight_norm": (optlab.scale_to_weight_norm, lambda g: each(lambda u: norm(WEIGHTS) * u / norm(u), g)),
}
OPTIMIZERS = {  # at the rate 1, without decay
    "adagrad": (lambda: optlab.adagrad(1.0), lambda g: g / np.sqrt(0.1 + np.cumsum(square(g), axis=0) + 1e-7)),
    "adam": (lambda: optlab.adam(1.0), adam),
    "adam_l2": (lambda: optlab.adam_l2(1.0, weight_decay=0.1), lambda g: adam(g + 0.1 * WEIGHTS)),
    "adamuon": (
        lambda: optlab.adamuon(1.0, orthogonalizer=optlab.orthogonalize("svd"), weight_decay=0.0),
        lambda g: each(rms, (o := orthogonal(sign(nesterov(g)))) / (np.sqrt(average(square(o), 0.95)) + 1e-8)),
    ),
    "adamw": (lambda: optlab.adamw(1.0, weight_decay=0.1), lambda g: adam(g) + 0.1 * WEIGHTS),
    "lion": (lambda: optlab.lion(1.0, weight_decay=0.1), lambda g: lion(g) + 0.1 * WEIGHTS),
    "muon": (
        lambda: optlab.muon(1.0, orthogonalizer=optlab.orthogonalize("svd"), weight_decay=0.0),
        lambda g: 0.2 * np.sqrt(6) * orthogonal(nesterov(g)),
    ),
    "muonh": (
        lambda: optlab.muonh(0.1, orthogonalizer=optlab.orthogonalize("svd")),
        lambda g: each(lambda o: -kept(-0.1 * norm(WEIGHTS) * o / norm(o)), orthogonal(nesterov(g))),
    ),
    "nadam": (lambda: optlab.nadam(1.0), None),
    "normuon": (
        lambda: optlab.normuon(1.0, orthogonalizer=optlab.orthogonalize("svd"), weight_decay=0.0),
        lambda g: each(rms, neurons(orthogonal(nesterov(g, 0.95, 0.05)))),
    ),
    "rmsprop": (lambda: optlab.rmsprop(1.0), lambda g: g / np.sqrt(average(square(g), 0.9) + 1e-8)),
    "sgd": (lambda: optlab.sgd(1.0, weight_decay=0.1), lambda g: g + 0.1 * WEIGHTS),
    "signsgd": (lambda: optlab.signsgd(1.0), sign),
    "signum": (lambda: optlab.signum(1.0), lambda g: sign(average(g, 0.9))),
    "softsign_sgd": (lambda: optlab.softsign_sgd(1.0, eps=0.1), lambda g: g / (np.abs(g) + 0.1)),
}


def sums(g, decay=0.9):
    return average(g, decay) / (1 - decay)


def updates(tx, dtype):
    """All updates and the last state. The parameters stay in place."""
    g, p = ({"dense": {"kernel": jnp.asarray(x, dtype)}} for x in (GRADS, WEIGHTS))
    step = lambda state, g: tx.update(g, state, p)[::-1]
    state, found = jax.jit(lambda: jax.lax.scan(step, tx.init(p), g))()
    return found["dense"]["kernel"], state


@pytest.mark.parametrize(("make", "oracle"), BLOCKS.values(), ids=BLOCKS)
def test_a_block_moves_complex_matrices(make, oracle):
    found, _ = updates(make(), "complex64")
    np.testing.assert_allclose(found, oracle(GRADS), rtol=2e-4, atol=2e-5)
    assert found.dtype == "complex64"


@pytest.mark.parametrize(("make", "oracle"), OPTIMIZERS.values(), ids=OPTIMIZERS)
def test_an_optimizer_moves_complex_matrices(make, oracle):
    found, state = updates(make(), "complex64")
    expected = -oracle(GRADS) if oracle else updates(optax.nadam(1.0), "complex64")[0]
    np.testing.assert_allclose(found, expected, rtol=3e-4, atol=3e-5)
    for path, x in jax.tree_util.tree_leaves_with_path(state):
        assert "nu" not in jax.tree_util.keystr(path) or x.dtype == "float32"  # |g|² is real


def test_no_block_and_no_optimizer_is_forgotten():
    assert {name.split()[0] for name in BLOCKS} | {"scale_by_soap", "scale_by_shampoo"} == set(transforms.__all__)
    assert {*OPTIMIZERS, "soap", "shampoo"} == set(optimizers.__all__)


@pytest.mark.parametrize("name", ["soap", "shampoo"])
def test_eigenbases_refuse_them_by_name(name):
    with pytest.raises(ValueError, match=f"scale_by_{name} needs real matrices, and 'dense/kernel' is complex64"):
        updates(getattr(optlab, name)(0.1), "complex64")


@pytest.mark.parametrize("name", ["muon", "normuon", "adamuon", "muonh"])
def test_newton_schulz_refuses_them_by_name(name):
    with pytest.raises(ValueError, match="'dense/kernel' is complex64: take method='svd'"):
        updates(getattr(optlab, name)(0.1), "complex64")


@pytest.mark.parametrize(
    ("make", "name"),
    [
        (lambda d: optlab.momentum(0.9, accumulator_dtype=d), "accumulator_dtype"),
        (lambda d: optlab.sgd(0.1, momentum=0.9, accumulator_dtype=d), "accumulator_dtype"),
        (lambda d: optlab.scale_by_adam(mu_dtype=d), "mu_dtype"),
        (lambda d: optlab.lion(0.1, mu_dtype=d), "mu_dtype"),
        (lambda d: optlab.muon(0.1, orthogonalizer=optlab.orthogonalize("svd"), mu_dtype=d), "accumulator_dtype"),
    ],
)
def test_a_real_momentum_of_complex_numbers_is_refused(make, name):
    p = {"dense": {"kernel": jnp.ones((4, 6), "complex64")}}
    with pytest.raises(ValueError, match=f"{name}='bfloat16' can't hold .* 'dense/kernel', which is complex64"):
        make("bfloat16").init(p)
    make("complex64").init(p)


def test_the_first_gradients_square_is_real():
    tx = optlab.scale_by_adam(bias_correction=False, start="first_gradient", eps=0.0)
    found, _ = updates(tx, "complex64")
    np.testing.assert_allclose(np.abs(found[0]), 1, rtol=1e-5)


def test_lions_momentum_is_a_floating_point_number():
    with pytest.raises(ValueError, match="mu_dtype must be a floating-point dtype"):
        coordinates.lion(0.1, mu_dtype="int8")


def test_the_contract_is_for_real_parameters():
    with pytest.raises(ValueError, match="params must be floating-point arrays, and 'w' is complex64"):
        check_transform(optlab.sgd, {"learning_rate": 0.1}, params={"w": jnp.ones(3, "complex64")})
