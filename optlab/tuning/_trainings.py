"""Short trainings at many learning rates, which all share one compiled program."""

from __future__ import annotations

import functools
import inspect
import itertools
import math
import time
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
from optlab.training import TrainState, Workload
from optlab.tuning._errors import RangeError

Schedule = Callable[..., Any]
Curve = dict[str, list[float]]
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
        seconds: of a step, without evaluation and compilation; NaN where there was one stretch alone.
    """

    rate: float
    steps: int
    start: float
    losses: np.ndarray
    curve: Curve
    diverged: int | None
    seconds: float = math.nan

    def end(self, metric: str) -> float:
        """A metric after the last step; NaN for a training that diverged."""
        if self.diverged is not None:
            return math.nan
        if metric == "train/loss":
            return float(np.mean(self.losses[-max(1, len(self.losses) // 5) :]))  # one batch's loss is noisy
        return self.curve[metric][-1]


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
        is_alone: whether each is trained by itself, so that its pace is one run's; else side by side where that pays.

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
        is_alone: bool = False,
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
        self.is_stacked = executor == OPEN and jax.default_backend() != "cpu" and not is_alone
        self.width = WIDTH if self.is_stacked else 1
        self._program = functools.cache(self._made)

    def train(
        self,
        rates: Sequence[float],
        steps: int,
        *,
        every: int | None = None,
        until: Callable[[Curve], bool] | None = None,
        look: Callable[[TrainState], None] | None = None,
    ) -> list[Training]:
        """Trains once at each learning rate.

        Args:
            rates: the learning rates.
            steps: of each training.
            every: steps between two evaluations; None is one at the end.
            until: whether a training may end early, from its curve.
            look: gets the stacked states before the first step and after every stretch but the last.
        """
        points = [{"learning_rate": float(r), STRETCH: self.steps / steps, GROWTH: 1.0} for r in rates]
        return list(self._train(points, steps, every or steps, until, look))

    def ramp(self, low: float, high: float, steps: int) -> Training:
        """Trains once at a learning rate that grows exponentially from low to high."""
        growth = (high / low) ** (1 / max(1, steps - 1))
        (found,) = self._train([{"learning_rate": low, STRETCH: 1.0, GROWTH: growth}], steps, steps)
        return found

    def _train(self, points: Sequence[dict[str, float]], steps: int, every: int, *hooks: Any) -> Iterator[Training]:
        points = [{name: p[name] for name in self.contender.space} for p in points]
        for at in range(0, len(points), self.width):
            part = points[at : at + self.width]
            filled = part + part[-1:] * (self.width - len(part))  # one width: one program
            trials = [Trial("range", 0, i, 0, False, values, self.seed) for i, values in enumerate(filled)]
            with layout_around(functools.cache(self.workload.layout)):
                key = () if self.is_traced else tuple(part[0].items())
                yield from itertools.islice(self._one(self._program(key), trials, steps, every, *hooks), len(part))

    def _made(self, static: tuple[tuple[str, float], ...]) -> Program:
        return Program(self.workload, self.contender, dict(static), self.is_stacked)

    def _one(
        self,
        program: Program,
        trials: Sequence[Trial],
        steps: int,
        every: int,
        until: Callable[[Curve], bool] | None = None,
        look: Callable[[TrainState], None] | None = None,
    ) -> Iterator[Training]:
        curves: list[Curve] = [{"step": []} for _ in trials]
        parts, paces = [], []
        stretches = program.stretches(trials, steps, every)
        _, state, _ = next(stretches)
        starts = program.evaluate("validation", state)
        while True:
            if look is not None:
                look(state)
            began = time.monotonic()
            at, state, measured = next(stretches)
            paces.append((time.monotonic() - began) / measured.shape[1] / len(trials))
            parts.append(measured)
            values = {"train/loss": _means(measured)[:, :, 0].mean(axis=1), **program.evaluate("validation", state)}
            for i, curve in enumerate(curves):
                curve["step"].append(at)
                for name, found in values.items():
                    curve.setdefault(name, []).append(float(found[i]))
            failed = np.any([np.any(_means(m)[:, :, 2], axis=1) for m in parts], axis=0)
            is_timed = len(paces) > 1  # the first stretch compiles
            ended = [bad or (until is not None and until(c)) for bad, c in zip(failed, curves, strict=True)]
            if at == steps or (all(ended) and is_timed):
                break
        whole = _means(np.concatenate(parts, axis=1))
        for i, trial in enumerate(trials):
            losses, faults = whole[i, :, 0], np.flatnonzero(whole[i, :, 2])
            start = float(starts[self.metric][i]) if self.metric in starts else float(losses[0])
            yield Training(
                float(trial.values["learning_rate"]), steps, start, losses[: faults[0]] if len(faults) else losses,
                curves[i], int(faults[0]) + 1 if len(faults) else None, min(paces[1:], default=math.nan),
            )  # fmt: skip


def _means(measured: np.ndarray) -> np.ndarray:
    """(trials, steps, (loss, gradient norm, fault)) from sums and weights."""
    with np.errstate(invalid="ignore", divide="ignore"):
        return measured[..., 0] / measured[..., 1]


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
