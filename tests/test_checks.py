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
from optlab.training import cross_entropy, make_step

BRIEF = lambda x: np.asarray(x, jnp.bfloat16)[()]  # a NumPy scalar that is none of NumPy's own floats
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


@pytest.mark.parametrize("make", [optlab.sgd, optlab.muon, schedules.constant, optlab.decay_weights])
def test_a_numpy_scalar_in_bfloat16_is_a_number(make):
    for value in (-1.0, math.nan, math.inf):
        with pytest.raises(ValueError, match="must not be negative"):
            make(BRIEF(value))
    make(BRIEF(0.25))


def test_a_number_of_another_library_is_refused_by_name():
    class Foreign:
        """As torch's: its dtype is unknown to NumPy."""

        dtype, shape = object(), ()

    with pytest.raises(ValueError, match="learning_rate must be a number or a schedule, got "):
        optlab.sgd(Foreign())


@pytest.mark.parametrize("kind", [np.array, jnp.asarray, np.float32, jnp.float32])
@pytest.mark.parametrize("method", ["newton_schulz", "svd"])
def test_orthogonalize_takes_its_eps_in_every_type(method, kind):
    x = {"w": jnp.eye(3, 4)}
    got = [tx.update(x, tx.init(x))[0] for tx in (optlab.orthogonalize(method, eps=e) for e in (kind(1e-7), 1e-7))]
    np.testing.assert_allclose(got[0]["w"], got[1]["w"], rtol=1e-6)


def test_orthogonalize_refuses_an_eps_that_is_traced():
    with pytest.raises(ValueError, match="eps must be known when the transform is made, got a traced value"):
        jax.jit(lambda eps: optlab.orthogonalize(eps=eps).init(jnp.eye(2)))(1e-7)


def test_a_probe_measures_every_whole_number_of_updates():
    for every in (jnp.int32(0), jnp.float32(2), jnp.ones(1, int), jnp.asarray(True)):
        with pytest.raises(ValueError, match=r"every must be (a whole number of at least 1|positive)"):
            optlab.probe("u", every=every)
    optlab.probe("u", every=jnp.int32(2))


STEPPED = {
    "cosine": lambda steps: schedules.cosine(0.1, steps),
    "linear_to_zero": lambda steps: schedules.linear_to_zero(0.1, steps),
    "one_cycle": lambda steps: schedules.one_cycle(0.1, steps),
    "warmup_cosine": lambda steps: schedules.warmup_cosine(0.1, steps),
    "warmup_stable_decay": lambda steps: schedules.warmup_stable_decay(0.1, steps),
}


@pytest.mark.parametrize("make", STEPPED.values(), ids=STEPPED)
def test_a_schedule_names_the_steps_that_are_no_number(make):
    for steps in ("100", None, [100], 100j):
        with pytest.raises(ValueError, match="steps must be a number, got "):
            make(steps)


def test_warmup_stable_decay_names_what_is_no_number():
    make = schedules.warmup_stable_decay
    for value in ("0.1", None, [0.1], -0.1):
        with pytest.raises(ValueError, match="peak must "):
            make(value, 100)
    for value in ("10", True, 10j, np.ones(1), jnp.ones(1), -1, math.nan):
        with pytest.raises(ValueError, match="decay must "):
            make(0.1, 100, decay=value)


@pytest.mark.parametrize("kind", [float, np.float32, np.array, jnp.asarray, BRIEF])
def test_training_checks_numbers_of_every_type(kind):
    for value in (1.5, -0.5, math.nan):
        with pytest.raises(ValueError, match="ema must lie in"):
            make_step(None, optlab.sgd(0.1), ema=kind(value))
        with pytest.raises(ValueError, match="label_smoothing must lie in"):
            cross_entropy(jnp.zeros((1, 2)), {"labels": np.zeros(1, int)}, label_smoothing=kind(value))


def test_training_refuses_what_is_no_number():
    for value in ("0.9", True, 0.5j, np.ones(2)):
        with pytest.raises(ValueError, match="ema must be a number"):
            make_step(None, optlab.sgd(0.1), ema=value)
    for value in ("2", True, 1.5, np.float32(1.5), 0):
        with pytest.raises(ValueError, match="accumulate must be "):
            make_step(None, optlab.sgd(0.1), accumulate=value)


@pytest.mark.parametrize("make", [optlab.sgd, optlab.adamw, optlab.lion])
def test_numbers_injected_beside_complex_parameters_have_a_real_dtype(make):
    """`inject_hyperparams` gives numbers the dtype of the first parameter."""
    x = {"w": jnp.ones(3, "complex64")}
    with pytest.raises(ValueError, match=r"give hyperparam_dtype=jnp\.float32"):
        optax.inject_hyperparams(make)(0.1).init(x)
    tx, bare = optax.inject_hyperparams(make, hyperparam_dtype=jnp.float32)(0.1), make(0.1)
    got, expected = (t.update(x, t.init(x), x)[0]["w"] for t in (tx, bare))
    np.testing.assert_allclose(got, expected, rtol=1e-5)
