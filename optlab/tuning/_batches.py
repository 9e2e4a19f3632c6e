"""The batch-size range test: throughput and steps to the target by batch size, and what the noise scale predicts."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import numpy as np
import optax

from optlab._extras import need
from optlab._integers import is_count
from optlab.config import Target
from optlab.data import as_batches
from optlab.theory import noise
from optlab.training import Workload
from optlab.tuning._checks import check_kinds, check_positive
from optlab.tuning._errors import RangeError
from optlab.tuning._trainings import Curve, Trainings
from optlab.tuning._words import title, wrap

SIZES = (-3, 3)  # octaves around the workload's own batch size
RATES = (0.5, 1.0, 2.0)  # times η·√(B/B₀): from the same rate to the linear rule for four times the batch
FURTHER = 2  # octaves more where the best of them is at the edge
LEAST = 4  # steps: of two stretches one is timed, since the first one compiles
EVALUATIONS = 50  # of a training that doesn't reach the target: what a step is known to
EXAMPLES = 1024  # at most, of the batch that a noise scale is measured on
MICROBATCHES = 8  # that it is cut into
ALIKE = 1.1  # times the least: of batch sizes so near to it the smallest is taken


@dataclass(frozen=True)
class Size:
    """One batch size.

    Attributes:
        batch_size: examples of a step.
        rate: the learning rate that needs the fewest steps, of those that were tried.
        rates: these.
        steps: to the target, between two evaluations by interpolation; None if no rate reaches it.
        seconds: of a step as the device runs it, without the loop on the host, evaluations and compilation.
    """

    batch_size: int
    rate: float
    rates: tuple[float, ...]
    steps: float | None
    seconds: float

    @property
    def throughput(self) -> float:
        """Examples a second."""
        return self.batch_size / self.seconds

    @property
    def seconds_to_target(self) -> float:
        """Steps times seconds a step; infinite where the target isn't reached."""
        return math.inf if self.steps is None else self.steps * self.seconds


@dataclass(frozen=True)
class BatchRange:
    """The result of a batch-size range test. `print` shows it in words.

    Attributes:
        name: of the workload and the optimizer.
        target: what was trained to.
        sizes: by ascending batch size.
        scale: the noise scale tr Σ/|G|² in examples, averaged on the way to the target; NaN where nothing reaches it.
        least: S_min of the prediction S_min·(1 + scale/B), as fits the measured steps best.
        fitted: the scale with which the measured steps would agree best.
        suggestion: the batch size with the least time to the target; None if none reaches it.
    """

    name: str
    target: Target
    sizes: tuple[Size, ...]
    scale: float
    least: float
    fitted: float
    suggestion: int | None

    def predicted(self, batch_size: int) -> float:
        """S_min·(1 + scale/B): the steps that the noise scale predicts."""
        if not math.isfinite(self.scale):
            return math.nan
        return float(noise.steps_to_target(batch_size, scale=self.scale, least=self.least))

    def plot(self, path: str | Path) -> Path:
        """Draws the test as a PNG. An existing file is refused."""
        from optlab.tuning._pictures import draw_batch_range

        return draw_batch_range(self, path)

    def __str__(self) -> str:
        lines = [f"{self.name}: to {self.target.metric} {self.target.value:g}"]
        lines += [
            f"  {'batch':>6}  {'rate':>8}  {'steps':>7}  {'predicted':>9}  {'examples':>9}  {'examples/s':>10}  seconds"
        ]
        for s in self.sizes:
            steps, examples = ("—", "—") if s.steps is None else (f"{s.steps:.3g}", f"{s.steps * s.batch_size:.3g}")
            mark = "  ← suggestion" if s.batch_size == self.suggestion else ""
            lines.append(
                f"  {s.batch_size:6d}  {s.rate:8.2g}  {steps:>7}  {self.predicted(s.batch_size):9.3g}  {examples:>9}  "
                f"{s.throughput:10.3g}  {s.seconds_to_target:7.3g}{mark}"
            )
        return "\n".join([*lines, wrap(f"suggestion  {self._reason()}"), *self._noise()])

    def _reason(self) -> str:
        reached = [s for s in self.sizes if s.steps is not None]
        if not reached:
            return "none: no batch size reaches the target; train for more steps, or find a learning rate first"
        best = next(s for s in reached if s.batch_size == self.suggestion)
        fastest, fewest = max(self.sizes, key=lambda s: s.throughput), min(reached, key=lambda s: s.steps or math.inf)
        words = [
            f"batch_size={best.batch_size}: about {best.seconds_to_target:.3g} s to the target, with learning rate "
            f"{best.rate:.2g}"
        ]
        if fastest.batch_size > best.batch_size:
            gain = fastest.throughput / best.throughput
            words.append(f"larger batches are up to {gain:.2g} times as fast an example, and need more examples")
        if fewest.batch_size < self.sizes[-1].batch_size:
            words.append(f"beyond {fewest.batch_size} the steps no longer get fewer")
        if len(missed := [str(s.batch_size) for s in self.sizes if s.steps is None]):
            words.append(f"{', '.join(missed)} didn't get there")
        return "; ".join(words)

    def _noise(self) -> list[str]:
        if not math.isfinite(self.scale):
            return []
        return [
            wrap(
                f"noise       the noise scale on the way is {self.scale:.2g} examples: steps ≈ {self.least:.2g}·(1 + "
                f"{self.scale:.2g}/B), so that well below it half the batch needs twice the steps, and well above it a "
                f"larger one saves none (McCandlish et al. 2018); the measured steps fit {self.fitted:.2g}"
            )
        ]


def batch_range(
    workload: Workload,
    tx_factory: str | Callable[..., optax.GradientTransformation],
    *,
    learning_rate: float,
    steps: int,
    sizes: Sequence[int] | None = None,
    before: optax.GradientTransformation | None = None,
    seed: int = 0,
) -> BatchRange:
    """Measures throughput and steps to the target at several batch sizes, and finds the one with the least time.

    At each size B three learning rates or more are tried around η·√(B/B₀), and the one that needs the fewest steps
    counts: a batch size is compared at a rate that suits it. The rate is constant, since a schedule's length would
    decide when the target is reached. The noise scale is measured on the way to the target at the size B₀.

    >>> found = optlab.batch_range(Workload.digits(), optlab.adamw, learning_rate=3e-3, steps=300)
    >>> print(found)

    Args:
        workload: what is trained; `workload.batch_size` is B₀, and `workload.target` has a value.
        tx_factory: learning_rate -> an optax transformation, or the name of one of ours ("muon").
        learning_rate: η, one that suits B₀; `lr_range` finds it.
        steps: after which a training at B₀ or more gives up; smaller batches have as many examples.
        sizes: the batch sizes; None is powers of two times B₀, from an eighth to eight times, as the data allow.
        before: what the gradients go through first, such as optax.clip_by_global_norm(1.0).
        seed: of initialization, data order and dropout.

    Raises:
        RangeError: for whatever can't work, before anything is trained.
    """
    need("optlab.batch_range", "scipy", extra="theory")
    check_kinds(workload, tx_factory, seed)
    check_positive("learning_rate", learning_rate)
    if not is_count(steps) or steps < LEAST:
        raise RangeError(f"steps must be a whole number of at least {LEAST}, got {steps!r}")
    target, own = _target(workload), workload.batch_size
    found = []
    for size in _sizes(workload, sizes):
        sized = dataclasses.replace(workload, batch_size=size)
        budget = math.ceil(steps * max(1.0, own / size))
        trainings = Trainings(sized, tx_factory, schedule=None, steps=budget, before=before, seed=seed, is_alone=True)
        found.append(_measured(trainings, size, learning_rate * math.sqrt(size / own), target))
    reached = [s for s in found if s.steps is not None]
    name = title(workload, tx_factory)
    if not reached:
        return BatchRange(name, target, tuple(found), math.nan, math.nan, math.nan, None)
    least = min(s.seconds_to_target for s in reached)
    suggestion = next(s.batch_size for s in reached if s.seconds_to_target <= ALIKE * least)
    base = min(reached, key=lambda s: abs(math.log(s.batch_size / own)))
    scale = _scale(workload, tx_factory, base, before=before, seed=seed)
    measured = {s.batch_size: s.steps for s in reached if s.steps is not None}
    scales = own * 2.0 ** np.linspace(-10, 10, 401)
    fitted = float(scales[np.argmin([_fit(measured, b)[1] for b in scales])])
    return BatchRange(name, target, tuple(found), scale, _fit(measured, scale)[0], fitted, suggestion)


def _fit(steps: dict[int, float], scale: float) -> tuple[float, float]:
    """The S_min with which S_min·(1 + scale/B) fits best in logarithms, and the variance that is left."""
    logs = [math.log(s / (1 + scale / b)) for b, s in steps.items()]
    return math.exp(float(np.mean(logs))), float(np.var(logs))


def _target(workload: Workload) -> Target:
    target, validation = workload.target, workload.data.validation
    if target.value is None:
        raise RangeError("the workload has no target to train to: give target=Target(metric=…, value=…)")
    if target.metric.startswith("validation/") and (validation is None or not len(validation)):
        raise RangeError(f"target.metric={target.metric} isn't measured: the data have no validation examples")
    if not target.metric.startswith("validation/") and target.metric != "train/loss":
        raise RangeError(f"target.metric must be train/loss or of the validation split, got {target.metric}")
    return target


def _sizes(workload: Workload, sizes: Sequence[int] | None) -> list[int]:
    """The batch sizes in ascending order."""
    if not hasattr(workload.data.train, "__len__"):
        raise RangeError("the data make their own batches, so that their size can't be changed")
    held = len(workload.data.train)
    if sizes is None:
        low, high = SIZES
        wanted = [workload.batch_size * 2.0**k for k in range(low, high + 1)]
        return [int(b) for b in wanted if b >= 1 and b % 1 == 0 and b <= held]
    if isinstance(sizes, str) or not isinstance(sizes, Sequence) or len(set(sizes)) < 2:
        raise RangeError(f"sizes must be at least two different batch sizes, got {sizes!r}")
    for size in sizes:
        if not is_count(size) or size > held:
            raise RangeError(f"sizes must be numbers of examples in [1, {held}], which the data have, got {size!r}")
    return sorted(set(map(int, sizes)))


def _measured(trainings: Trainings, size: int, middle: float, target: Target) -> Size:
    """The fewest steps to the target at some learning rates around a middle."""
    every = max(1, trainings.steps // EVALUATIONS)
    steps = -(-trainings.steps // every) * every  # stretches of one length: one program

    def until(curve: Curve) -> bool:
        return target.reached(curve[target.metric][-1])

    taken: dict[float, float] = {}
    paces: list[float] = []

    def at(rates: Sequence[float]) -> None:
        for t in trainings.train(rates, steps, every=every, until=until):
            taken[t.rate] = math.inf if t.diverged is not None else _crossing(t.curve, target)
            paces.append(t.seconds)

    at([middle * factor for factor in RATES])
    best = min(taken, key=taken.__getitem__)
    for _ in range(FURTHER):
        if math.isinf(taken[best]) or min(taken) < best < max(taken):
            break
        at([best * 2 if best == max(taken) else best / 2])
        best = min(taken, key=taken.__getitem__)
    steps_needed = None if math.isinf(taken[best]) else taken[best]
    known = [p for p in paces if math.isfinite(p)]
    return Size(size, best, tuple(sorted(taken)), steps_needed, min(known, default=math.nan))


def _crossing(curve: Curve, target: Target) -> float:
    """The step at which the target is reached, between two evaluations on a straight line; infinite if it isn't."""
    assert target.value is not None
    values = curve[target.metric]
    for i, value in enumerate(values):
        if target.reached(value):
            if i == 0:
                return float(curve["step"][0])
            share = (target.value - values[i - 1]) / (value - values[i - 1])
            return curve["step"][i - 1] + share * (curve["step"][i] - curve["step"][i - 1])
    return math.inf


def _scale(workload: Workload, factory: Any, base: Size, **settings: Any) -> float:
    """The noise scale on the way to the target: signal and variance are averaged, and divided then."""
    assert base.steps is not None
    sized = dataclasses.replace(workload, batch_size=base.batch_size)
    steps = max(2, math.ceil(base.steps))
    held = len(workload.data.train)
    examples = min(held, EXAMPLES) // MICROBATCHES * MICROBATCHES
    if not examples:
        return math.nan
    batch = as_batches(workload.data.train, examples, settings["seed"], workload.draw).batch(0)
    measure = jax.jit(lambda *a: noise.noise_scale(workload.loss, *a))
    found: list[Any] = []

    def look(state: Any) -> None:
        first = jax.tree.map(lambda x: x[0], (state.params, state.model_state, state.key))
        found.append(measure(first[0], first[1], batch, first[2]))

    trainings = Trainings(sized, factory, schedule=None, steps=steps, **settings)
    trainings.train([base.rate], steps, every=max(1, steps // 8), look=look)
    signal, variance = (float(np.mean([getattr(n, part) for n in found])) for part in ("signal", "variance"))
    return variance / signal if signal > 0 and variance >= 0 else math.nan  # estimates can be negative
