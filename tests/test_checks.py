"""Numbers out of range are refused by name in whatever type they come; what has no value yet passes."""

import decimal
import math

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import optlab
from optlab import schedules

KINDS = [float, np.float32, np.float64, np.array, jnp.asarray]
SETTINGS = {
    "adamw learning_rate": (lambda x: optlab.adamw(x), "learning_rate", (-1e-3, math.inf, math.nan)),
    "muon learning_rate": (lambda x: optlab.muon(x), "learning_rate", (-1e-3, math.nan)),
    "adamw weight_decay": (lambda x: optlab.adamw(0.1, weight_decay=x), "weight_decay", (-1.0, math.inf)),
    "lion b1": (lambda x: optlab.lion(0.1, b1=x), "b1", (1.0, 1.5, -0.5, math.nan)),
    "momentum decay": (optlab.momentum, "decay", (1.0, -0.1)),
    "rmsprop eps": (lambda x: optlab.rmsprop(0.1, eps=x), "eps", (-1e-8, math.inf)),
    "softsign eps": (optlab.scale_by_softsign, "eps", (0.0, math.inf)),
    "scale_to_rms": (optlab.scale_to_rms, "rms", (0.0, math.nan)),
    "adagrad start": (optlab.scale_by_adagrad, "initial_accumulator_value", (-1.0,)),
    "cosine peak": (lambda x: schedules.cosine(x, 10), "peak", (-1e-3, math.nan)),
    "step_decay peak": (lambda x: schedules.step_decay(x, every=3), "peak", (-1e-3,)),
    "step_decay factor": (lambda x: schedules.step_decay(0.1, every=3, factor=x), "factor", (0.0, 1.5)),
    "cosine end": (lambda x: schedules.cosine(0.1, 10, end=x), "end", (-0.1, 1.1, math.nan)),
}


@pytest.mark.parametrize(("make", "name", "values"), SETTINGS.values(), ids=SETTINGS)
def test_values_out_of_range_are_refused_in_every_type(make, name, values):
    for kind in KINDS:
        for value in values:
            with pytest.raises(ValueError, match=rf"^{name} .*must .*got "):
                make(kind(value))
        make(kind(0.25))


@pytest.mark.parametrize(("make", "name", "values"), SETTINGS.values(), ids=SETTINGS)
def test_what_is_no_real_number_is_refused(make, name, values):
    for value in ("1e-3", True, np.bool_(True), 0.1j, np.complex64(0.1), jnp.asarray(0.1j), np.ones(2), jnp.ones(2)):
        with pytest.raises(ValueError, match=f"{name} must be a number"):
            make(value)
    for value in ([0.1], decimal.Decimal("0.1"), jax.random.key(0)):
        with pytest.raises(ValueError, match=f"{name} must be a number"):
            make(value)


def test_none_is_no_learning_rate():
    with pytest.raises(ValueError, match="learning_rate must be a number or a schedule, got None"):
        optlab.adamw(None)


def test_a_schedule_is_for_rates_and_decays_alone():
    optlab.adamw(lambda step: 0.1, weight_decay=lambda step: 0.1)
    with pytest.raises(ValueError, match="b2 must be a number, got <function"):
        optlab.adam(0.1, b2=lambda step: 0.9)


def test_traced_and_abstract_values_pass():
    g = jnp.ones(3)
    rate = lambda r: optlab.adam(r, b1=r, eps=r).update(g, optlab.adam(r).init(g))[0]
    assert jnp.isfinite(jax.jit(rate)(0.5)).all()
    assert jax.vmap(rate)(jnp.array([0.1, 0.2])).shape == (2, 3)
    assert jax.eval_shape(rate, jnp.float32(0)).shape == (3,)


def test_an_injected_rate_that_goes_uphill_is_refused():
    tx, g = optax.inject_hyperparams(optlab.sgd)(0.1), jnp.ones(3)
    state = tx.init(g)
    state.hyperparams["learning_rate"] = jnp.float32(-0.1)
    with pytest.raises(ValueError, match=r"learning_rate must not be negative, got -0\.1"):
        tx.update(g, state, g)
