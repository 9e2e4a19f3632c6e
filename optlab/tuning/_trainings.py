"""Short trainings at many learning rates, which all share one compiled program."""

from __future__ import annotations

import functools
import inspect
import itertools
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from optlab.compare import StudyError, log_uniform, uniform
from optlab.compare.choosing import OPEN, open_to
from optlab.compare.contenders import contend
from optlab.compare.population import Program
from optlab.compare.trials import Trial
from optlab.roles import layout_around
from optlab.training import Workload
from optlab.tuning._errors import RangeError

Schedule = Callable[..., Any]
STRETCH, GROWTH = "schedule.stretch", "schedule.growth"
WIDTH = 8  # trainings side by side, where a device gains from them: about as many as a range test has


@dataclass(frozen=True)
class Training:
    """One training at one learning rate.

    Attributes:
        rate: the learning rate; of a ramp the first one.
        steps: its length.
        start: the loss before the first step: on the validation split, or of the first batch where there is none.
        losses: the training loss of every step's batch, up to the one that wasn't finite.
        curve: by metric its values after the steps `curve["step"]`.
        diverged: the step after which something wasn't finite, or None.
    """

    rate: float
    steps: int
    start: float
    losses: np.ndarray
    curve: dict[str, list[float]]
    diverged: int | None

    def end(self, metric: str) -> float:
        """A metric after the last step; NaN for a training that diverged."""
        if self.diverged is not None:
            return math.nan
        if metric in self.curve:
            return self.curve[metric][-1]
        return float(np.mean(self.losses[-max(1, len(self.losses) // 5) :]))  # one batch's loss is noisy


class Trainings:
    """Trains a workload at many learning rates and for different numbers of steps, by one compiled program.

    A shorter training runs through the whole schedule: its step t has the rate of step ⌊t · steps/length⌋, so that
    warm-up and decay keep their shares.

    Args:
        workload: what is trained.
        factory: learning_rate -> an optax transformation, or the name of one of our optimizers.
        schedule: (peak, steps, …) -> a function of the step; None is a constant rate.
        steps: the length of the real run.
        before: what the gradients go through first.
        seed: of initialization, data order and dropout, the same for all.

    Raises:
        RangeError: for a factory that makes no optimizer of a learning rate.
    """

    def __init__(
        self,
        workload: Workload,
        factory: Any,
        *,
        schedule: Schedule | None,
        steps: int,
        before: optax.GradientTransformation | None = None,
        seed: int = 0,
    ):
        self.workload, self.steps, self.seed = workload, steps, seed
        self.metric = "validation/loss" if _is_held_out(workload) else "train/loss"
        space = {"learning_rate": log_uniform(1e-6, 1e-2), STRETCH: uniform(1.0, 2.0), GROWTH: uniform(1.0, 2.0)}
        make = functools.partial(contend, "range", factory, steps=steps, before=before)
        try:
            try:
                self.contender, self.has_ramp = make(space=space, schedule=_shared(schedule, steps)), True
            except StudyError:
                if schedule is not None:
                    raise
                # An optimizer whose learning rate has to be a number can't be ramped.
                self.contender = make(space={"learning_rate": space["learning_rate"]}, schedule=None)
                self.has_ramp = False
        except StudyError as error:
            raise RangeError(str(error).replace("contender 'range'", "tx_factory")) from error
        executor, _ = open_to(workload, self.contender)
        self.is_traced = executor != "runs"
        self.is_stacked = executor == OPEN and jax.default_backend() != "cpu"
        self.width = WIDTH if self.is_stacked else 1
        self._program = functools.cache(self._made)

    def train(self, rates: Sequence[float], steps: int, *, every: int | None = None) -> list[Training]:
        """Trains once at each learning rate, evaluated every so many steps."""
        points = [{"learning_rate": float(r), STRETCH: self.steps / steps, GROWTH: 1.0} for r in rates]
        return list(self._train(points, steps, every or steps))

    def ramp(self, low: float, high: float, steps: int) -> Training:
        """Trains once at a learning rate that grows exponentially from low to high."""
        growth = (high / low) ** (1 / max(1, steps - 1))
        (found,) = self._train([{"learning_rate": low, STRETCH: 1.0, GROWTH: growth}], steps, steps)
        return found

    def _train(self, points: Sequence[dict[str, float]], steps: int, every: int) -> Iterator[Training]:
        points = [{name: p[name] for name in self.contender.space} for p in points]
        for at in range(0, len(points), self.width):
            part = points[at : at + self.width]
            filled = part + part[-1:] * (self.width - len(part))  # one width: one program
            trials = [Trial("range", 0, i, 0, False, values, self.seed) for i, values in enumerate(filled)]
            with layout_around(functools.cache(self.workload.layout)):
                key = () if self.is_traced else tuple(part[0].items())
                yield from itertools.islice(self._one(self._program(key), trials, steps, every), len(part))

    def _made(self, static: tuple[tuple[str, float], ...]) -> Program:
        return Program(self.workload, self.contender, dict(static), self.is_stacked)

    def _one(self, program: Program, trials: Sequence[Trial], steps: int, every: int) -> Iterator[Training]:
        starts: dict[str, np.ndarray] = {}
        curves: list[dict[str, list[float]]] = [{"step": []} for _ in trials]
        parts = []
        for at, state, measured in program.stretches(trials, steps, every):
            held_out = program.evaluate("validation", state)
            if at == 0:
                starts = held_out
                continue
            parts.append(measured)
            for i, curve in enumerate(curves):
                curve["step"].append(at)
                for name, values in held_out.items():
                    curve.setdefault(name, []).append(float(values[i]))
        whole = np.concatenate(parts, axis=1)  # (trials, steps, (loss, norm, fault), (sum, weight))
        for i, trial in enumerate(trials):
            with np.errstate(invalid="ignore", divide="ignore"):
                losses, _, faults = (whole[i, :, :, 0] / whole[i, :, :, 1]).T
            bad = np.flatnonzero(faults)
            diverged = int(bad[0]) + 1 if len(bad) else None
            start = float(starts[self.metric][i]) if self.metric in starts else float(losses[0])
            rate = float(trial.values["learning_rate"])
            yield Training(rate, steps, start, losses[: bad[0]] if len(bad) else losses, curves[i], diverged)


def _is_held_out(workload: Workload) -> bool:
    return workload.data.validation is not None and len(workload.data.validation) > 0


def _shared(schedule: Schedule | None, steps: int) -> Schedule:
    """The schedule as one of three traced numbers: its peak, how it is stretched, and a ramp's growth."""
    takes_steps = schedule is not None and "steps" in inspect.signature(schedule).parameters

    def shared(peak: Any, stretch: Any, growth: Any) -> Callable[[Any], jax.Array]:
        whole = None
        if schedule is not None:
            whole = schedule(peak, steps) if takes_steps else schedule(peak)

        def rate(t: Any) -> jax.Array:
            t = jnp.asarray(t)
            at = jnp.floor(t * jnp.float32(stretch)).astype(t.dtype)
            planned = peak if whole is None else whole(at)
            ramped = peak * jnp.exp(t * jnp.log(jnp.float32(growth)))
            return jnp.where(jnp.asarray(growth) > 1, ramped, planned)

        return rate

    return shared
