import math

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from transforms.runs import iterates, ravine

from optlab import schedules

T, W, PEAK = 200, 40, 0.3


def half_cosine(t, T):
    return (1 + math.cos(math.pi * min(t, T) / T)) / 2


def warm(t, decay, start=0.0):
    return PEAK * (start + (1 - start) * t / W) if t < W else decay(t - W)


# Each schedule beside its formula, a function of t = 0, 1, 2, …
FORMULAS = {
    "constant": (schedules.constant(PEAK), lambda t: PEAK),
    "constant, warm-up": (schedules.constant(PEAK, warmup=W), lambda t: warm(t, lambda s: PEAK)),
    "B1 step_decay": (schedules.step_decay(PEAK, every=30, factor=0.5), lambda t: PEAK * 0.5 ** (t // 30)),
    "B2 cosine": (schedules.cosine(PEAK, T, end=0.1), lambda t: 0.03 + (PEAK - 0.03) * half_cosine(t, T)),
    "B3 warmup_cosine": (
        schedules.warmup_cosine(PEAK, T, warmup=W, end=0.1),
        lambda t: warm(t, lambda s: 0.03 + (PEAK - 0.03) * half_cosine(s, T - W)),
    ),
    "B4 one_cycle": (
        schedules.one_cycle(PEAK, T, warmup=W, base=0.2),
        lambda t: warm(t, lambda s: 0.0006 + (PEAK - 0.0006) * half_cosine(s, T - W), start=0.2),
    ),
    "B5 inverse_sqrt": (schedules.inverse_sqrt(PEAK), lambda t: PEAK / math.sqrt(1 + t)),
    "B5 inverse_sqrt of the Transformer": (
        schedules.inverse_sqrt(PEAK, warmup=W),
        lambda t: PEAK * min(t / W, math.sqrt(W / max(t, 1))),
    ),
    "B5 inverse": (schedules.inverse(PEAK, timescale=10), lambda t: PEAK / (1 + t / 10)),
    "B6 warmup_stable_decay": (
        schedules.warmup_stable_decay(PEAK, T, warmup=W, decay=50, end=0.1),
        lambda t: warm(t, lambda s: PEAK * (1 - 0.9 * min(max(s + W - 150, 0) / 50, 1))),
    ),
    "B6 linear_to_zero": (
        schedules.linear_to_zero(PEAK, T, warmup=W),
        lambda t: warm(t, lambda s: PEAK * max(0, 1 - s / (T - W))),
    ),
}
every_schedule = pytest.mark.parametrize(("schedule", "formula"), FORMULAS.values(), ids=FORMULAS.keys())


@every_schedule
def test_formula_with_traced_steps_and_beyond_the_end(schedule, formula):
    steps = np.arange(2 * T)
    got = jax.jit(jax.vmap(schedule))(steps)
    np.testing.assert_allclose(got, [formula(t) for t in steps], rtol=2e-5, atol=1e-7)


@every_schedule
def test_a_python_step_gives_the_same(schedule, formula):
    for t in (0, 1, W - 1, W, W + 1, T - 1, T, 10 * T):
        assert float(schedule(t)) == pytest.approx(formula(t), rel=2e-5, abs=1e-7)


LENGTHS = {
    name: getattr(schedules, name)
    for name in ("cosine", "warmup_cosine", "one_cycle", "warmup_stable_decay", "linear_to_zero")
}


@pytest.mark.parametrize("schedule", LENGTHS.values(), ids=LENGTHS.keys())
@hypothesis_settings(max_examples=10, deadline=None)
@given(steps=st.integers(1, 10_000), peak=st.floats(1e-6, 10))
def test_defaults_fit_every_length_and_stay_between_zero_and_the_peak(schedule, steps, peak):
    values = np.asarray(schedule(peak, steps)(jnp.linspace(0, steps, 50).astype(int)))
    assert (values >= 0).all()
    assert (values <= peak * (1 + 1e-5)).all()
    assert values[-1] <= 0.01 * peak


def test_the_peak_may_be_traced():
    values = jax.vmap(lambda peak: schedules.warmup_cosine(peak, 100, warmup=10)(10))(jnp.array([0.1, 0.2]))
    np.testing.assert_allclose(values, [0.1, 0.2], rtol=1e-6)


def test_the_mean_of_the_tail():  # A24
    """θ̄ ← d·θ̄ + (1 − d)·θ with this decay is the mean of the iterates from the start on."""
    gradient, start, _ = ravine()
    path = iterates(optax.sgd(0.5), gradient, start, 60)
    decay = schedules.tail_average(20)
    averaged = np.full_like(start, 7.0)
    for t, theta in enumerate(path):
        d = float(decay(t))
        averaged = d * averaged + (1 - d) * theta
        expected = theta if t <= 20 else path[20 : t + 1].mean(axis=0)
        np.testing.assert_allclose(averaged, expected, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(jax.jit(decay)(jnp.int32(29)), 0.9, rtol=1e-6)


@pytest.mark.parametrize(
    ("name", "arguments", "message"),
    [
        ("warmup_cosine", {"steps": 500, "warmup": 600}, r"warmup must be shorter than steps \(500\), got 600"),
        ("one_cycle", {"steps": 500, "warmup": 500}, r"warmup must be shorter than steps \(500\), got 500"),
        ("linear_to_zero", {"steps": 0}, "steps must be positive, got 0"),
        ("cosine", {"steps": -5}, "steps must be positive, got -5"),
        ("cosine", {"steps": 5, "end": 2.0}, r"end is a fraction of the peak and must lie in \[0, 1\], got 2\.0"),
        (
            "warmup_stable_decay",
            {"steps": 100, "decay": 95},
            r"decay must fit into the steps after the warm-up \(90\), got 95",
        ),
        ("warmup_cosine", {"steps": 500, "warmup": 2.5}, "whole number of steps, or a fraction of the run.*, got 2.5"),
        ("warmup_stable_decay", {"steps": 500, "decay": 1.5}, "decay must be a whole number of steps, or a fraction"),
        ("constant", {"warmup": 0.1}, "warmup must be a whole number of steps, got 0.1"),
        ("inverse", {"warmup": 0.1}, "warmup must be a whole number of steps, got 0.1"),
        ("inverse_sqrt", {"warmup": -1}, "warmup must not be negative, got -1"),
        ("inverse", {"timescale": 0}, "timescale must be positive, got 0"),
        ("step_decay", {"every": 0}, "every must be positive, got 0"),
        ("step_decay", {"every": 5, "factor": 1.5}, r"factor must lie in \(0, 1\], got 1\.5"),
    ],
)
def test_schedules_refuse(name, arguments, message):
    with pytest.raises(ValueError, match=message):
        getattr(schedules, name)(peak=0.1, **arguments)


@pytest.mark.parametrize("name", ["warmup_cosine", "one_cycle", "warmup_stable_decay", "linear_to_zero"])
def test_a_warmup_below_one_is_a_fraction_of_the_run(name):
    """0.1 of a step, as it was read before, is no warm-up at all."""
    make = getattr(schedules, name)
    fraction, counted = make(0.1, 200, warmup=0.15), make(0.1, 200, warmup=30)
    assert [float(fraction(t)) for t in range(0, 200, 7)] == [float(counted(t)) for t in range(0, 200, 7)]


def test_a_decay_below_one_is_a_fraction_of_the_run():
    fraction, counted = (schedules.warmup_stable_decay(0.1, 200, decay=d) for d in (0.4, 80))
    assert [float(fraction(t)) for t in range(200)] == [float(counted(t)) for t in range(200)]


@pytest.mark.parametrize("steps", [1, 5, 20])
def test_a_default_warmup_fits_into_every_run(steps):
    schedules.warmup_cosine(0.1, steps)
    schedules.one_cycle(0.1, steps)
    schedules.warmup_stable_decay(0.1, steps)


def test_a_tail_cant_start_before_the_run():
    with pytest.raises(ValueError, match="start must not be negative, got -1"):
        schedules.tail_average(-1)


@every_schedule
def test_in_float64_a_count_of_32_bits_is_exact(schedule, formula):
    with jax.enable_x64(True):
        for t in (0, 7, W, 150, T + 3):
            got = jnp.asarray(schedule(jnp.int32(t)))
            assert got.dtype == jnp.float64
            np.testing.assert_allclose(got, formula(t), rtol=1e-12, atol=1e-15)


def test_the_tails_newest_weight_is_exact_at_any_length():
    """1 − n/(n + 1) is 1.3 % off in float32 at 10⁶, and 0 at 3·10⁷."""
    average = schedules.tail_average(100)
    for n in (1, 10**6, 10**7, 3 * 10**7):
        np.testing.assert_allclose(average.newest(jnp.int32(n + 100)), 1 / (n + 1), rtol=2e-7)
    assert average.newest(jnp.int32(50)) == 1
