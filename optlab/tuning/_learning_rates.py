"""The learning-rate range test: real short trainings at steps of two octaves, and a second, longer look at the best."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeAlias

import numpy as np
import optax

from optlab._integers import is_count
from optlab.compare.points import DEFAULTS, UNKNOWN, Interval
from optlab.training import Workload
from optlab.tuning import _ramp
from optlab.tuning._checks import check_kinds, check_positive
from optlab.tuning._errors import RangeError
from optlab.tuning._trainings import Training, Trainings
from optlab.tuning._words import name_of, title, wrap

Regime: TypeAlias = Literal["flat", "good", "explodes"]
STEP = 4  # two octaves between neighbours of the first look
SIDE = 3  # neighbours on each side of its middle, before it is extended
FURTHEST = 8  # extensions on each side: 4⁸ is five decades
LEAST = 10  # steps of a training: fewer show no regime
SHORT, LONGER = 10, 5  # of the run's steps a tenth for the first look, a half for the second
LEARNED = 0.03  # of the first loss: less may be noise, and the first look is made again
AGAIN = 3  # times as long
BELOW, ABOVE = 3, 1  # octaves of the second look around the first one's best, which is mostly too high
BEYOND = 6  # octaves by which the second look is extended while what it looks for is at its edge
KEPT = 0.97  # of the best training's progress: a lower rate that keeps so much of it is as good after a short training
HALF = 0.5  # of the best training's progress: with less a rate is flat, or explodes


@dataclass(frozen=True)
class LrRange:
    """The result of a range test. `print` shows it in words.

    Attributes:
        name: of the workload and the optimizer.
        steps: of the real run.
        metric: by which the short trainings are compared.
        first: short trainings, by ascending rate.
        second: longer ones around the best of them.
        suggestion: the learning rate; None if none lowers the loss.
        reason: why that one, in words.
        ramp: the classical ramp; None for an optimizer whose learning rate has to be a number.
        sweep: trainings at full length around the suggestion, where they were asked for.
        target: the metric by which the sweep is judged, and whether it is to be "min" or "max".
        notes: what else is worth knowing.
    """

    name: str
    steps: int
    metric: str
    first: tuple[Training, ...]
    second: tuple[Training, ...]
    suggestion: float | None
    reason: str
    ramp: _ramp.Ramp | None
    sweep: tuple[Training, ...] = ()
    target: tuple[str, str] = ("validation/loss", "min")
    notes: tuple[str, ...] = ()

    @property
    def regimes(self) -> dict[float, Regime]:
        """By learning rate of the first look what it does: flat below the good ones, explodes above them."""
        return regimes(self.first, self.metric)

    @property
    def best_of_sweep(self) -> Training | None:
        """The sweep's best training, by the lower loss where two are equal; None if there is none."""
        metric, mode = self.target
        sign = 1 if mode == "min" else -1
        finite = [t for t in self.sweep if math.isfinite(t.end(metric))]
        return min(finite, key=lambda t: (sign * t.end(metric), t.end(self.metric)), default=None)

    @property
    def factor(self) -> float | None:
        """How far the suggestion is from the sweep's best rate, as a factor of at least 1."""
        best = self.best_of_sweep
        if best is None or self.suggestion is None:
            return None
        return max(best.rate / self.suggestion, self.suggestion / best.rate)

    def plot(self, path: str | Path) -> Path:
        """Draws the test as a PNG. An existing file is refused."""
        from optlab.tuning._pictures import draw_lr_range

        return draw_lr_range(self, path)

    def __str__(self) -> str:
        said = "none" if self.suggestion is None else f"learning_rate={self.suggestion:.2g}"
        lines = [f"{self.name}: {self.metric} after short trainings of a run of {self.steps} steps", *self._table()]
        lines += [wrap(f"suggestion  {said}: {self.reason}")]
        if self.ramp is not None:
            rules = ", ".join(f"{name} {rate:.2g}" for name, rate in self.ramp.suggestions().items())
            lines += [wrap(f"ramp        {len(self.ramp.losses)} steps at growing rates, by fastai's rules: {rules}")]
        if (best := self.best_of_sweep) is not None:
            lines += [wrap(f"sweep       {self._sweep_words(best)}")]
        return "\n".join([*lines, *(wrap(f"note        {note}") for note in self.notes)])

    def _sweep_words(self, best: Training) -> str:
        metric, _ = self.target
        mine = min(self.sweep, key=lambda t: abs(math.log(t.rate / (self.suggestion or 1))))
        return (
            f"at full length the best of {len(self.sweep)} rates is {best.rate:.2g}, {metric} {best.end(metric):.4g}; "
            f"the suggestion is a factor of {self.factor:.2g} away, with {mine.end(metric):.4g}"
        )

    def _table(self) -> list[str]:
        short, longer = ({t.rate: t for t in part} for part in (self.first, self.second))
        columns = [f"{part[0].steps} steps" for part in (self.first, self.second) if part]
        lines = [f"  {'rate':>8}  " + "  ".join(f"{c:>10}" for c in columns)]
        seen = {**regimes(self.second, self.metric), **self.regimes}
        suggested = set() if self.suggestion is None else {self.suggestion}
        for rate in sorted(suggested.union(short, longer)):
            cells = [_cell(side.get(rate), self.metric) for side in (short, longer)][: len(columns)]
            mark = "  ← suggestion" if rate == self.suggestion else ""
            lines.append(f"  {rate:8.2g}  " + "  ".join(f"{c:>10}" for c in cells) + f"  {seen.get(rate, '')}{mark}")
        return lines


def lr_range(
    workload: Workload,
    tx_factory: str | Callable[..., optax.GradientTransformation],
    *,
    steps: int,
    schedule: Callable[..., Any] | None = None,
    before: optax.GradientTransformation | None = None,
    low: float | None = None,
    high: float | None = None,
    middle: float | None = None,
    short: int | None = None,
    sweep: bool = False,
    seed: int = 0,
) -> LrRange:
    """Finds a learning rate by short trainings, each a real one under the whole schedule, in one compiled program.

    The first look trains for a tenth of the steps at rates two octaves apart, until one side is flat and the other
    explodes. The second trains for half of the steps, an octave apart, around the best. The suggestion is the
    geometric mean of the best rate there and the lowest one that learns 97 % as much: short trainings favour rates that
    are too high for the whole run. `benchmarks/lr_range.py` measures how far it is from a sweep's best.

    >>> found = optlab.lr_range(Workload.digits(), optlab.adamw, steps=300, schedule=optlab.schedules.warmup_cosine)
    >>> print(found)
    >>> found.plot("lr_range.png")

    Args:
        workload: what is trained.
        tx_factory: learning_rate -> an optax transformation, or the name of one of ours ("muon").
        steps: updates of the real run.
        schedule: (peak, steps, …) -> a function of the step, such as `optlab.schedules.cosine`; None is a constant.
        before: what the gradients go through first, such as optax.clip_by_global_norm(1.0).
        low: the lowest rate of the first look, which isn't extended then.
        high: the highest; `low` and `high` go together.
        middle: the rate that the grid is laid around instead, such as the one used so far; None is what is usual.
        short: steps of the first look; None is a tenth of the run. The second has five times as many. Where the loss
            falls by less than 3 % the first look is made again, three times as long.
        sweep: whether the suggestion's neighbourhood is trained at full length, too.
        seed: of initialization, data order and dropout.

    Raises:
        RangeError: for whatever can't work, before anything is trained.
    """
    check_kinds(workload, tx_factory, seed)
    first_steps, second_steps = _lengths(steps, short)
    grid = _grid(tx_factory, low, high, middle)
    trainings = Trainings(workload, tx_factory, steps=steps, schedule=schedule, before=before, seed=seed)
    metric = trainings.metric
    first = _first_look(trainings, grid, first_steps, may_extend=low is None)
    while first_steps < second_steps and not _has_learned(first, metric):
        first_steps = min(AGAIN * first_steps, second_steps)
        first = _first_look(trainings, grid, first_steps, may_extend=low is None)
    best = _best(first, metric)
    if best is None or not best.end(metric) < best.start:
        second: list[Training] = []
        suggestion, reason = (
            None,
            f"no rate from {grid[0]:.2g} to {grid[-1]:.2g} lowers {metric} from {first[0].start:.4g}",
        )
    else:
        second = _second_look(trainings, best.rate, second_steps)
        suggestion = math.sqrt(math.prod(t.rate for t in suggest(second, metric)))
        reason = _reason(first, second, metric)
    ramp = None
    if trainings.has_ramp:
        rates = [t.rate for t in first]
        taken = trainings.ramp(rates[0], rates[-1], _ramp.STEPS)
        ramp = _ramp.ramp_of(rates[0], rates[-1], taken.losses)
    full: list[Training] = []
    if sweep and suggestion is not None:
        full = trainings.train([suggestion * 2.0**k for k in range(-4, 5)], steps)
    target = workload.target.metric, workload.target.mode
    name = title(workload, tx_factory)
    return LrRange(
        name, steps, metric, tuple(first), tuple(second), suggestion, reason, ramp, tuple(full),
        target if target[0] in first[0].curve else (metric, "min"),
    )  # fmt: skip


def regimes(trainings: Sequence[Training], metric: str) -> dict[float, Regime]:
    """By learning rate its regime, relative to the best training's progress: half of it is needed to be good."""
    best = _best(trainings, metric)
    found: dict[float, Regime] = {}
    for t in trainings:
        progress = (t.start - t.end(metric)) / (best.start - best.end(metric)) if best is not None else -math.inf
        is_good = best is not None and best.end(metric) < best.start and progress >= HALF
        above = best is None or t.rate > best.rate or t.diverged is not None
        found[t.rate] = "good" if is_good else "explodes" if above else "flat"
    return found


def suggest(second: Sequence[Training], metric: str) -> tuple[Training, Training]:
    """The best of the longer trainings, and the lowest rate below it that learns nearly as much.

    The best has the lowest loss smoothed over its neighbours, each of which counts half as much. One that diverged
    counts as if it had learned nothing, so that the best isn't on the edge of a cliff.
    """
    losses = [_capped(t, metric) for t in second]
    smoothed = [0.25 * a + 0.5 * b + 0.25 * c for a, b, c in zip(losses, losses[1:], losses[2:], strict=False)]
    best = lowest = 1 + int(np.argmin(smoothed))
    start = second[best].start
    while lowest and start - losses[lowest - 1] >= KEPT * (start - losses[best]):
        lowest -= 1
    return second[best], second[lowest]


def _capped(training: Training, metric: str) -> float:
    """The last loss, at most the first one: how badly a training explodes says nothing."""
    end = training.end(metric)
    return min(end, training.start) if math.isfinite(end) else training.start


def _reason(first: Sequence[Training], second: Sequence[Training], metric: str) -> str:
    found, (best, lowest) = regimes(first, metric), suggest(second, metric)
    flat = [t.rate for t in first if found[t.rate] == "flat"]
    wild = [t.rate for t in first if found[t.rate] == "explodes"]
    top = _best(second, metric) or best
    words = [f"in {top.steps} steps {metric} falls from {top.start:.4g} to {top.end(metric):.4g} at {top.rate:.2g}"]
    if top is not best:
        i = list(second).index(top)
        beside = max(second[max(0, i - 1) : i + 2], key=lambda t: _capped(t, metric))
        is_inside = 0 < i < len(second) - 1
        why = (
            f"its neighbour, {_capped(beside, metric):.4g} at {beside.rate:.2g}" if is_inside else "want of a neighbour"
        )
        words.append(
            f"the lowest, which is passed over for {why}: averaged over neighbours the best is {best.rate:.2g}, with "
            f"{best.end(metric):.4g}"
        )
    words = [", ".join(words)]
    if lowest is not best:
        share = (best.start - lowest.end(metric)) / (best.start - best.end(metric))
        words.append(
            f"{lowest.rate:.2g} has {lowest.end(metric):.4g}, which is {share:.0%} of the fall at {best.rate:.2g}; the "
            "suggestion is the middle of these two, since short trainings favour high rates"
        )
    if flat:
        words.append(f"up to {max(flat):.2g} the loss is flat")
    if wild:
        words.append(f"from {min(wild):.2g} on it explodes")
    return "; ".join(words)


def _lengths(steps: Any, short: Any) -> tuple[int, int]:
    """The steps of the first and of the second look."""
    if not is_count(steps) or steps < 2 * LEAST:
        raise RangeError(f"steps must be a whole number of at least {2 * LEAST}, got {steps!r}: train once and look")
    if short is None:
        first = max(LEAST, steps // SHORT)
    elif not is_count(short) or not LEAST <= short <= steps:
        raise RangeError(f"short must be a whole number of steps in [{LEAST}, {steps}], got {short!r}")
    else:
        first = int(short)
    return first, min(steps, LONGER * first)


def _grid(factory: Any, low: float | None, high: float | None, middle: float | None) -> list[float]:
    """The rates of the first look, before it is extended."""
    for name, value in (("low", low), ("high", high), ("middle", middle)):
        if value is not None:
            check_positive(name, value)
    if (low is None) != (high is None):
        given = "low" if high is None else "high"
        raise RangeError(f"{given} is given alone: give low and high, or neither")
    if low is not None and high is not None:
        if not high > low:
            raise RangeError(f"low must be below high, got low={low:g} and high={high:g}")
        if high < low * STEP**2:
            raise RangeError(f"high must be at least {STEP**2} times low, got low={low:g} and high={high:g}")
        return [low * STEP**k for k in range(int(math.log(high / low * 1.001, STEP)) + 1)]
    if middle is None:
        middle = _usual(factory)
    return [middle * float(STEP) ** k for k in range(-SIDE, SIDE + 1)]


def _usual(factory: Any) -> float:
    """The middle of the space in which a comparison would search."""
    name = name_of(factory) if isinstance(factory, str) or callable(factory) else ""
    space = DEFAULTS.get(name, UNKNOWN)["learning_rate"]
    assert isinstance(space, Interval)
    return math.sqrt(space.low * space.high)


def _second_look(trainings: Trainings, middle: float, steps: int) -> list[Training]:
    """Longer trainings an octave apart, until neither the best nor the lowest that is as good is at the edge."""
    metric = trainings.metric
    found = trainings.train([middle * 2.0**k for k in range(-BELOW, ABOVE + 1)], steps)
    for _ in range(BEYOND):
        if _best(found, metric) is found[-1]:
            found = [*found, *trainings.train([found[-1].rate * 2], steps)]
        elif suggest(found, metric)[1] is found[0]:
            found = [*trainings.train([found[0].rate / 2], steps), *found]
        else:
            break
    return found


def _first_look(trainings: Trainings, grid: list[float], steps: int, *, may_extend: bool) -> list[Training]:
    """Short trainings at the grid's rates, and beyond it until the best one has flat and exploding neighbours."""
    found = sorted(trainings.train(grid, steps), key=lambda t: t.rate)
    if not may_extend:
        return found
    for _ in range(FURTHEST):
        seen = list(regimes(found, trainings.metric).values())
        wanted = []
        if seen[0] != "flat":
            wanted.append(found[0].rate / STEP)
        if seen[-1] != "explodes":
            wanted.append(found[-1].rate * STEP)
        if not wanted:
            break
        found = sorted([*found, *trainings.train(wanted, steps)], key=lambda t: t.rate)
    return found


def _has_learned(trainings: Sequence[Training], metric: str) -> bool:
    best = _best(trainings, metric)
    return best is not None and best.start - best.end(metric) > LEARNED * abs(best.start)


def _best(trainings: Sequence[Training], metric: str) -> Training | None:
    finite = [t for t in trainings if math.isfinite(t.end(metric))]
    return min(finite, key=lambda t: t.end(metric), default=None)


def _cell(training: Training | None, metric: str) -> str:
    if training is None:
        return ""
    return f"step {training.diverged}: ∞" if training.diverged is not None else f"{training.end(metric):.4g}"
