"""torch.optim's paths, where torch is installed: 100 steps in float64. What differs is said where it arises.

torch keeps a linear layer's weight as (out, in): the transpose of a Flax kernel.
"""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from optlab import optimizers
from optlab.transforms import momentum, orthogonalize

torch = pytest.importorskip("torch")

RATE = 0.01
RNG = np.random.default_rng(0)
START, TARGET = RNG.standard_normal((2, 6, 4))  # a kernel (in, out)
CURVATURE = np.exp(RNG.standard_normal((6, 4)))


def ours(tx):
    with jax.enable_x64(True):

        def step(carry, _):
            theta, state = carry
            update, state = tx.update(CURVATURE * (theta - TARGET), state, theta)
            return (theta + update, state), theta + update

        start = jnp.asarray(START)
        return np.asarray(jax.jit(lambda: jax.lax.scan(step, (start, tx.init(start)), None, 100)[1])())


def theirs(factory, **settings):
    weight = torch.nn.Parameter(torch.tensor(START.T))
    optimizer = factory([weight], lr=RATE, **settings)
    curvature, target, path = torch.tensor(CURVATURE.T), torch.tensor(TARGET.T), []
    for _ in range(100):
        optimizer.zero_grad()
        (curvature * (weight - target) ** 2).sum().mul(0.5).backward()
        optimizer.step()
        path.append(weight.detach().numpy().T.copy())
    return np.stack(path)


def same(tx, factory, atol=1e-9, **settings):
    np.testing.assert_allclose(ours(tx), theirs(factory, **settings), rtol=1e-6, atol=atol)


@pytest.mark.parametrize(
    ("here", "there"),
    [
        ({}, {}),
        ({"momentum": 0.9}, {"momentum": 0.9}),
        ({"momentum": 0.9, "nesterov": True}, {"momentum": 0.9, "nesterov": True}),
        ({"momentum": 0.9, "weight_decay": 0.1}, {"momentum": 0.9, "weight_decay": 0.1}),
    ],
)
def test_sgd(here, there):
    same(optimizers.sgd(RATE, **here), torch.optim.SGD, **there)


def test_sgd_with_dampening_is_the_average_form():
    """torch's v ← βv + (1 − dampening)g; but its first v is g, whole, which is `start="first_gradient"`."""
    tx = optax.chain(momentum(0.9, style="ema", start="first_gradient"), optax.scale(-RATE))
    same(tx, torch.optim.SGD, momentum=0.9, dampening=0.9)


def test_adamw():
    """The defaults differ in the decay alone: 1e-2 there, 1e-4 here and in optax."""
    same(optimizers.adamw(RATE, weight_decay=1e-2), torch.optim.AdamW)


def test_adam_with_l2():
    same(optimizers.adam_l2(RATE, weight_decay=0.1), torch.optim.Adam, weight_decay=0.1)


def test_nadam():
    """torch's β₁ at step t is β₁(1 − ½·0.96^(tψ)), ψ = 0.004. A large ψ makes it constant, as ours and optax's is."""
    same(optimizers.nadam(RATE), torch.optim.NAdam, atol=1e-7, momentum_decay=1e4)  # it keeps ∏β₁ in float32
    assert np.abs(ours(optimizers.nadam(RATE)) - theirs(torch.optim.NAdam)).max() > 1e-3


@pytest.mark.parametrize(
    ("here", "there"),
    [
        ({"scale": "spectral"}, {}),
        ({"scale": "spectral"}, {"adjust_lr_fn": "original"}),
        ({"scale": "rms"}, {"adjust_lr_fn": "match_rms_adamw"}),
        ({"scale": "spectral", "nesterov": False, "beta": 0.8}, {"nesterov": False, "momentum": 0.8}),
        (
            {"scale": "spectral", "orthogonalizer": orthogonalize(steps=3), "weight_decay": 0.3},
            {"ns_steps": 3, "weight_decay": 0.3},
        ),
    ],
)
def test_muon(here, there, monkeypatch):
    """torch's Newton–Schulz is always in bfloat16, which is taken out here; `test_muon_in_bfloat16` has it.

    What remains: torch divides by max(‖X‖, ε) and we, as Jordan, by ‖X‖ + ε, a relative 1e-7 / ‖X‖; and its momentum is
    the average form, so that its ‖X‖ is 1 − β of ours. Its default factor is √max(1, out / in), and none of its
    options moves anything but matrices.
    """
    monkeypatch.setattr(torch.Tensor, "bfloat16", lambda self: self.clone())
    same(optimizers.muon(RATE, **here), torch.optim.Muon, atol=1e-6, **there)


def test_muon_in_bfloat16():
    """A step, not a path: what is rounded to 2⁻⁸ grows as small singular values do, and differently in each."""
    tx = optimizers.muon(RATE, scale="spectral", orthogonalizer=orthogonalize(dtype="bfloat16"), weight_decay=0.1)
    here, there = ours(tx)[0] - START, theirs(torch.optim.Muon)[0] - START
    assert np.linalg.norm(here - there) < 0.1 * np.linalg.norm(there)
