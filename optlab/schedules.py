"""Schedules: the learning rate as a function of the step t = 0, 1, 2, …, which may be traced.

Beyond its end a schedule keeps its last value. With x64 its values are float64, even at a count in 32 bits, as optax
keeps it.

The first argument of each is the `peak`; the second, if the schedule has a length, the `steps` of the whole run,
warm-up included. Fractions of a rate are of the peak, so that a schedule keeps its shape when the learning rate is
changed; a warm-up or decay below 1 is a fraction of the run.
"""

from typing import Any

import jax
import jax.numpy as jnp
import optax

from optlab._checks import check_fraction, check_not_negative, check_positive, is_number, known

__all__ = [
    "constant",
    "cosine",
    "inverse",
    "inverse_sqrt",
    "linear_to_zero",
    "one_cycle",
    "step_decay",
    "tail_average",
    "warmup_cosine",
    "warmup_stable_decay",
]


def constant(peak: float, *, warmup: int = 0) -> optax.Schedule:
    """Constant: the peak at every step.

    Args:
        peak: the learning rate.
        warmup: steps of the linear rise from 0.
    """
    return _after_warmup(peak, _length("warmup", warmup), optax.constant_schedule(peak))


def step_decay(peak: float, *, every: int, factor: float = 0.1) -> optax.Schedule:
    """peak·γ^⌊t/k⌋.

    Args:
        peak: the learning rate of the first k steps.
        every: steps between two decays (k).
        factor: factor of each decay (γ), in (0, 1].
    """
    check_not_negative("peak", peak)
    check_positive("every", every)
    check_fraction("factor", factor, positive=True)
    return _exact(optax.exponential_decay(peak, transition_steps=every, decay_rate=factor, staircase=True))


def cosine(peak: float, steps: int, *, end: float = 0.0) -> optax.Schedule:
    """α_min + ½(peak − α_min)(1 + cos(πt/T)), from the peak to α_min in T steps.

    Source: Loshchilov and Hutter 2017 (arXiv 1608.03983), eq. 5, without restarts.

    Args:
        peak: the first learning rate.
        steps: the length of the run (T).
        end: the last learning rate (α_min) as a fraction of the peak.
    """
    return warmup_cosine(peak, steps, warmup=0, end=end)


def warmup_cosine(peak: float, steps: int, *, warmup: float | None = None, end: float = 0.0) -> optax.Schedule:
    """0 → peak linearly in the warm-up, then `cosine` in the remaining steps.

    Args:
        peak: the highest learning rate.
        steps: the length of the run, warm-up included.
        warmup: steps of the warm-up, or a fraction of the run; None is a tenth of it.
        end: the last learning rate as a fraction of the peak.
    """
    warmup = _warmup(warmup, steps, tenths=1)
    _check_fraction("end", end)
    return _after_warmup(peak, warmup, optax.cosine_decay_schedule(peak, steps - warmup, alpha=end))


def one_cycle(peak: float, steps: int, *, warmup: float | None = None, base: float = 0.04) -> optax.Schedule:
    """base → peak linearly in the warm-up, then along a cosine down to a hundredth of the base.

    After Smith and Topin 2018 (arXiv 1708.07120), whose cycle is symmetric and linear; 0.04 and 0.3 are torch's and
    optax's.

    Args:
        peak: the highest learning rate.
        steps: the length of the run, warm-up included.
        warmup: steps of the warm-up, or a fraction of the run; None is three tenths of it.
        base: the first learning rate as a fraction of the peak.
    """
    warmup = _warmup(warmup, steps, tenths=3)
    _check_fraction("base", base)
    down = optax.cosine_decay_schedule(peak, steps - warmup, alpha=base / 100)
    return _after_warmup(peak, warmup, down, start=base)


def inverse_sqrt(peak: float, *, warmup: int = 0, timescale: float | None = None) -> optax.Schedule:
    """peak / √(1 + t/τ), t counted from the end of the warm-up: the rate of the convex theorems.

    With a warm-up of W = τ steps it is the Transformer's (Vaswani et al. 2017, section 5.3): peak·√(W/t) after step W.

    Args:
        peak: the highest learning rate.
        warmup: steps of the linear warm-up from 0 (W).
        timescale: steps until the learning rate has fallen by 1/√2 (τ); None is the warm-up, or 1 without.
    """
    warmup = _length("warmup", warmup)
    decay = _inverse(warmup, timescale)
    return _after_warmup(peak, warmup, lambda t: peak * jnp.sqrt(decay(t)))


def inverse(peak: float, *, warmup: int = 0, timescale: float | None = None) -> optax.Schedule:
    """peak / (1 + t/τ), t counted from the end of the warm-up: the rate of the strongly convex theorems.

    Args:
        peak: the highest learning rate.
        warmup: steps of the linear warm-up from 0.
        timescale: steps until the learning rate has halved (τ); None is the warm-up, or 1 without.
    """
    warmup = _length("warmup", warmup)
    decay = _inverse(warmup, timescale)
    return _after_warmup(peak, warmup, lambda t: peak * decay(t))


def warmup_stable_decay(
    peak: float, steps: int, *, warmup: float | None = None, decay: float | None = None, end: float = 0.0
) -> optax.Schedule:
    """0 → peak linearly, the peak, and linearly down at the end.

    Source: Hu et al. 2024 (arXiv 2404.06395); linear, over a fifth of the run: Hägele et al. 2024 (arXiv 2405.18392).

    Args:
        peak: the highest learning rate.
        steps: the length of the run, warm-up and decay included.
        warmup: steps of the warm-up, or a fraction of the run; None is a tenth of it.
        decay: steps of the decay, likewise; None is a fifth of the run.
        end: the last learning rate as a fraction of the peak.
    """
    check_not_negative("peak", peak)
    warmup = _warmup(warmup, steps, tenths=1)
    decay = max(steps // 5, 1) if decay is None else _length("decay", decay, steps)
    if not decay <= steps - warmup:
        raise ValueError(f"decay must fit into the steps after the warm-up ({steps - warmup}), got {decay}")
    _check_fraction("end", end)
    down = optax.linear_schedule(peak, peak * end, decay, transition_begin=steps - warmup - decay)
    return _after_warmup(peak, warmup, down)


def linear_to_zero(peak: float, steps: int, *, warmup: float = 0) -> optax.Schedule:
    """0 → peak linearly in the warm-up, then linearly to 0 at t = steps.

    Args:
        peak: the highest learning rate.
        steps: the length of the run, warm-up included.
        warmup: steps of the warm-up, or a fraction of the run.
    """
    warmup = _warmup(warmup, steps, tenths=0)
    return _after_warmup(peak, warmup, optax.linear_schedule(peak, 0.0, steps - warmup))


def tail_average(start: int) -> optax.Schedule:
    """Decay d = n / (n + 1), n = t − start, which makes the average a ← d·a + (1 − d)·θ the mean of the tail.

    It is the uniform mean of the iterates from step `start` on, that one included; before it d = 0, and the average is
    the iterate itself. Source: Polyak and Juditsky 1992; tail: Jain et al. 2018 (arXiv 1610.03774).

    Args:
        start: the first step whose iterate is averaged.
    """
    check_not_negative("start", start)

    return _TailAverage(start)


class _TailAverage:
    """Schedule of `tail_average`. In float32 1 − d loses its digits within some 10⁶ steps; `newest` keeps them."""

    def __init__(self, start: int):
        self.start = start

    def __call__(self, step: jax.typing.ArrayLike) -> jax.Array:
        """Returns d."""
        n = self._averaged(step)
        return n / (n + 1)

    def newest(self, step: jax.typing.ArrayLike) -> jax.Array:
        """Returns 1 − d = 1 / (n + 1), the newest iterate's weight."""
        return 1 / (self._averaged(step) + 1)

    def _averaged(self, step: jax.typing.ArrayLike) -> jax.Array:
        return jnp.maximum(_wide_count(step) - self.start, 0)


def _wide_count(step: jax.typing.ArrayLike) -> jax.Array:
    """Widens a count, so that its quotients are float64 under x64; JAX computes those of 32 bits in float32."""
    step = jnp.asarray(step)
    return step.astype(int) if jnp.issubdtype(step.dtype, jnp.integer) else step


def _exact(schedule: optax.Schedule) -> optax.Schedule:
    """Evaluates a schedule at a count of full width; a Python number stays one."""
    return lambda t: schedule(t if is_number(t) else _wide_count(t))


def _after_warmup(peak: Any, warmup: int, schedule: optax.Schedule, start: float = 0.0) -> optax.Schedule:
    """Puts a linear rise to the peak before a schedule, from `start` as a fraction of the peak."""
    check_not_negative("peak", peak)
    if warmup == 0:
        return _exact(schedule)
    return _exact(optax.join_schedules([optax.linear_schedule(peak * start, peak, warmup), schedule], [warmup]))


def _inverse(warmup: int, timescale: float | None) -> optax.Schedule:
    tau = max(warmup, 1) if timescale is None else timescale
    check_positive("timescale", tau)
    return lambda t: 1 / (1 + jnp.maximum(t, 0) / tau)


def _warmup(warmup: Any, steps: int, *, tenths: int) -> int:
    """A warm-up in steps, shorter than the run, of which it is so many tenths by default."""
    check_positive("steps", steps)
    length = tenths * steps // 10 if warmup is None else _length("warmup", warmup, steps)
    if length >= steps:
        raise ValueError(f"warmup must be shorter than steps ({steps}), got {warmup}: 0.1 is a tenth of the run")
    return length


def _length(name: str, value: Any, steps: int | None = None) -> int:
    """A number of steps, which may be given as a fraction of the run where the schedule has a length."""
    check_not_negative(name, value)
    number = known(name, value)
    if steps is not None and 0 < number < 1:
        return round(number * steps)
    if number % 1:
        fraction = ", or a fraction of the run below 1" if steps is not None else ""
        raise ValueError(f"{name} must be a whole number of steps{fraction}, got {value}")
    return int(number)


def _check_fraction(name: str, value: Any) -> None:
    check_fraction(name, value, " is a fraction of the peak and")
