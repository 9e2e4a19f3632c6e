"""The evidence of a diagnosis: a run's curves, config and outcome, and figures made of them."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from optlab.config import ConfigError, flatten
from optlab.runs import Run
from optlab.runs._metrics import as_columns

if TYPE_CHECKING:  # some need JAX, and a diagnosis without a probe doesn't
    from optlab.diagnosis._data import DataProbe
    from optlab.diagnosis._layers import Layer, ModelProbe
    from optlab.diagnosis._rules_of_twins import Twins

FLAT = 0.25  # of the training loss
EXPLODED = 3.0  # times the first loss, or that of a uniform guess
NOTHING = 0.05  # of the held-out loss
# Times e^−L: among 200 examples the share of one class in ten is within a half of a tenth, by 2.4 deviations; a loss
# above that of a guess makes e^−L smaller yet.
GUESS, KNOWS = 1.5, 2.0
FEW = 20  # classes
INFORMED = 2.5  # deviations of chance: it gives one of 160 models that know nothing the benefit of the doubt
# The numbers of classes of optlab's own sources. Of other data the chance level isn't known.
CLASSES = {"digits": 10, "cifar10": 10, "fashion_mnist": 10}


@dataclass(frozen=True)
class Evidence:
    """The records of a run.

    Attributes:
        name: the run's folder, or "history".
        metrics: the logged columns by name; "step" is ascending, NaN where a step has no value of a metric.
        settings: the config's keys, flat, such as "optimizer.learning_rate"; empty if there is no config.
        outcome: how the run ended, as in summary.json; None if it goes on or was killed.
        skipped: the steps that the guard left out.
        error: the words of the error that ended the run, as in summary.json; None if there was none.
        data: samples of the data, where a probe read them.
        model: the layers at one state, where a probe measured them.
        twins: the losses of the run's twins, where they were trained.
    """

    name: str
    metrics: Mapping[str, np.ndarray]
    settings: Mapping[str, Any] = field(default_factory=dict)
    outcome: str | None = None
    skipped: tuple[int, ...] = ()
    error: str | None = None
    data: DataProbe | None = None
    model: ModelProbe | None = None
    twins: Twins | None = None

    def curve(self, metric: str) -> tuple[np.ndarray, np.ndarray]:
        """(steps, values) where the metric was logged; NaN and infinities of the metric itself are left out."""
        values = self.metrics.get(metric)
        if values is None:
            return np.zeros(0, int), np.zeros(0)
        there = np.isfinite(values)
        return self.metrics["step"][there], values[there]

    @cached_property
    def steps(self) -> np.ndarray:
        return self.metrics["step"]

    @cached_property
    def loss(self) -> np.ndarray:
        """The finite training losses, in the order of their steps."""
        return self.curve("train/loss")[1]

    @cached_property
    def smooth(self) -> np.ndarray:
        """The training losses' running median over a tenth of the records."""
        return smoothed(self.loss)

    @cached_property
    def validation(self) -> np.ndarray:
        return self.curve("validation/loss")[1]

    @cached_property
    def rate(self) -> tuple[np.ndarray, np.ndarray]:
        return self.curve("learning_rate")

    @property
    def rate_falls(self) -> bool:
        """True if the learning rate ends below a half of its peak."""
        rates = self.rate[1]
        return bool(len(rates) > 4 and rates[-1] < 0.5 * rates.max())

    @cached_property
    def spread(self) -> float:
        """The standard deviation of a batch's loss about the running median, in the last half of the run."""
        half = len(self.loss) // 2
        return float(np.std((self.loss - self.smooth)[half:])) if len(self.loss) >= 4 else 0.0

    @cached_property
    def late(self) -> tuple[float, float]:
        """The mean training loss of the last quarter of the records, and its standard error."""
        values = self.loss[-max(1, len(self.loss) // 4) :]
        return float(np.mean(values)), max(float(np.std(values)), self.spread) / math.sqrt(len(values))

    @cached_property
    def is_drowned(self) -> bool:
        """True if a gain of three times `NOTHING` may hide in the spread of the batches' losses."""
        few = max(1, len(self.loss) // 10)
        error = math.hypot(self.late[1], self.spread / math.sqrt(few))
        gain = float(np.mean(self.loss[:few])) - self.late[0]
        return bool(gain + 2 * error > 3 * NOTHING * self.height(self.loss[:few].mean()))

    @cached_property
    def floor(self) -> float:
        """What the heights of losses are measured from: 0, unless a loss is negative, so that 0 means nothing.

        Then it lies so far below the least loss that what chance gains is a small part of a height.
        """
        every = np.concatenate([self.loss, self.validation])
        if not len(every) or every.min() >= 0:
            return 0.0
        return float(every.min() - max(3 * self.spread, 0.1 * np.ptp(np.concatenate([self.smooth, self.validation]))))

    def height(self, loss: Any) -> Any:
        """A loss above the `floor`: only ratios of heights mean something."""
        return loss - self.floor

    @cached_property
    def share_gained(self) -> float:
        """The part of the first loss that training removed: 0 where it is flat, 1 where it ends at 0."""
        first = self.height(self.smooth[0]) if len(self.smooth) else 0.0
        return float((self.smooth[0] - self.smooth[-1]) / first) if first > 0 else 0.0

    @cached_property
    def held_out_gain(self) -> float | None:
        """The part of the first validation loss that the best one is below it; None without four evaluations."""
        values = self.validation
        if len(values) < 4 or self.height(values[0]) <= 0:
            return None
        return float((values[0] - values.min()) / self.height(values[0]))

    @cached_property
    def gained(self) -> float:
        """The part of the first loss that is gone: of the held-out one, without the noise of batches, where known."""
        return self.share_gained if self.held_out_gain is None else self.held_out_gain

    @cached_property
    def is_flat(self) -> bool:
        """True if training removed less than `FLAT` of its loss or next to nothing of the held-out one, or guesses."""
        gain = self.held_out_gain
        return self.share_gained < FLAT or (gain is not None and gain < NOTHING) or self.is_guessing

    @cached_property
    def knows(self) -> bool | None:
        """Whether a classifier ends better than a constant guess, whatever its loss was at first; None: hard to say.

        What is right with the probability a and gives its classes their true frequencies has e^−L < a, by Jensen's
        inequality; both are equal where the probabilities are the same for all examples.
        """
        split = "validation" if len(self.curve("validation/accuracy")[1]) else "train"
        losses, shares = (self.curve(f"{split}/{name}")[1] for name in ("loss", "accuracy"))
        if len(losses) < 4 or len(shares) < 4 or self.floor < 0:
            return None
        late = max(1, len(losses) // 4)
        loss = float(np.mean(losses[-late:]))
        if loss > self.smooth[0] and loss > math.log(2):  # far above a guess's loss it shows nothing
            return None
        return _is_better_than_a_guess(loss, float(np.mean(shares[-late:])))

    def knew(self, at: int) -> bool | None:
        """The same of one evaluation of the held-out examples."""
        (when, losses), (there, shares) = self.curve("validation/loss"), self.curve("validation/accuracy")
        found = np.flatnonzero(there == when[at])
        if not len(found) or self.floor < 0 or losses[at] > self.smooth[0]:  # far above a guess's loss it shows nothing
            return None
        return _is_better_than_a_guess(losses[at], shares[found[0]])

    @property
    def is_guessing(self) -> bool:
        return self.knows is False

    @cached_property
    def pace(self) -> tuple[float, float] | None:
        """What the loss lost in each half of the way that the learning rate made; None without eight values.

        A small step lowers a loss in proportion to it, so that the way is the sum of the learning rates. The held-out
        loss is taken where it was evaluated: its examples are the same every time. Falls within the scatter are 0.
        """
        name = "validation/loss" if len(self.validation) >= 8 else "train/loss"
        steps, values = self.curve(name)
        if len(values) < 8:
            return None
        way = self._way(steps)
        if way[-1] <= way[0]:
            return None
        curve = smoothed(values)
        middle = float(np.interp((way[0] + way[-1]) / 2, way, curve))
        scatter = 2 * float(np.median(np.abs(values - curve))) / math.sqrt(len(values) / 4)
        falls = float(curve[0]) - middle, middle - float(curve[-1])
        return tuple(fall if abs(fall) > scatter else 0.0 for fall in falls)  # type: ignore[return-value]

    @cached_property
    def is_walking(self) -> bool | None:
        """Whether the held-out loss goes up and down as a random walk; None without eight values.

        Half of such a walk leads up, and nothing of a fall by small steps: a quarter stands between the two.
        """
        changes = np.diff(self.validation)
        if len(changes) < 7 or not changes.any():
            return None
        return bool(changes[changes > 0].sum() > np.abs(changes).sum() / 4)

    def _way(self, steps: np.ndarray) -> np.ndarray:
        """The sum of the learning rates up to each step; the steps themselves where no rate is known."""
        at, rates = self.rate
        if len(rates) < 4 or not np.any(rates > 0):
            return np.asarray(steps, float)
        every = np.arange(int(steps[-1]) + 1)
        return np.cumsum(np.interp(every, at, rates))[np.asarray(steps, int)]

    @cached_property
    def has_generalized(self) -> bool:
        """True if the held-out loss fell by a good part, below what a guess has; False where that isn't known."""
        return self.held_out_gain is not None and self.held_out_gain > FLAT and not self.knows_shares_alone

    @cached_property
    def has_learned(self) -> bool:
        """True if a probe saw a loss a good part below that of the initialization, and no constant guess."""
        m = self.model
        if m is None or self.is_guessing:
            return False
        return self.height(m.loss) < (1 - FLAT) * self.height(m.first_loss)

    @property
    def is_informed(self) -> bool:
        """True if a probe saw that the model knows something of which held-out label belongs to which input."""
        found = None if self.model is None else self.model.association
        return found is not None and found > INFORMED

    @cached_property
    def is_unlearned(self) -> bool:
        """True if the held-out loss is known and next to nothing of it is gone."""
        return self.held_out_gain is not None and self.held_out_gain < 4 * NOTHING

    @cached_property
    def knows_shares_alone(self) -> bool:
        """True if a probe saw that a guess of the classes or tokens by their frequency has the held-out loss."""
        if self.data is None or self.model is None or not self.model.is_cross_entropy or not len(self.validation):
            return False
        guess = self.data.train.entropy
        return guess is not None and bool(self.validation.min() > (1 - NOTHING) * guess)

    @cached_property
    def is_class_one_number(self) -> bool:
        """True if a probe saw that a model gives one number for a few classes, of which an accuracy is logged."""
        m, labels = self.model, None if self.data is None or not self.data.train.has_classes else self.data.train.labels
        if m is None or m.outputs is None or labels is None or m.outputs.size != len(m.outputs):
            return False
        return 2 < len(np.unique(labels)) <= FEW and any(name.endswith("/accuracy") for name in self.metrics)

    @cached_property
    def is_left(self) -> bool:
        """True if more than a quarter of the loss is left, so that what is unusual may be why."""
        return self.is_unwell or self.gained < 1 - FLAT

    @cached_property
    def is_flat_or_worse(self) -> bool:
        """True if training removed little of the loss, or ended without a finite one."""
        return self.outcome in ("NonFiniteError", "LossSpikeError", "UphillError") or self.is_flat

    @cached_property
    def is_unwell(self) -> bool:
        """True if the loss is flat, not finite, or far above where it once was.

        What may be meant in a run that learns is a cause in one that doesn't.
        """
        heights = self.height(self.smooth)
        return self.is_flat_or_worse or bool(heights[-1] > 2 * heights.min() + 0.5 * heights[0])

    @cached_property
    def length(self) -> int | None:
        """The run's steps; None where it goes on or was ended, and no config has them."""
        steps = self.settings.get("steps")
        if isinstance(steps, int):
            return max(steps, int(self.steps[-1]))
        return int(self.steps[-1]) if self.outcome == "finished" else None

    def has_exploded(self, at: int) -> bool:
        """Whether the training loss of a record stands far above the first one, and not by the chance of batches.

        One batch's loss isn't another's. Where both lie within their spread about a held-out loss, that one decides: it
        is of the same examples every time. Batches spread in proportion to the height of their losses.
        """
        first, top = max(self.loss[0], self.smooth[0]), self.smooth[at]
        if self.height(top) <= EXPLODED * self.height(first):
            return False
        at_steps = self.curve("train/loss")[0][[0, at]]
        when, values = self.curve("validation/loss")
        half = self.loss[len(self.loss) // 2 :]
        if len(values) < 2:
            is_clear = self.height(top) > EXPLODED * (self.height(first) + 2 * self.spread)
            return bool(is_clear or self.height(half.min()) > EXPLODED * self.height(self.loss[:3].max()))
        before, beside = self.height(np.interp(at_steps, when, values))
        share = max(self.spread, scatter(half)) / max(self.height(self.late[0]), 1e-30)
        is_calm = np.median(np.abs(np.diff(values))) < self.spread / 2
        if is_calm and self.height(first) >= (1 - 2 * share) * before and self.height(top) <= (1 + 4 * share) * beside:
            return bool(beside > EXPLODED * before)
        return True

    @property
    def layers(self) -> tuple[Layer, ...]:
        """The parameters that a probe measured."""
        return () if self.model is None else self.model.layers

    @property
    def at(self) -> int:
        """The step of the state that a probe measured."""
        return 0 if self.model is None else self.model.step

    @cached_property
    def noise(self) -> float:
        """The scatter of the training losses about their running median, in the last half of the run."""
        half = len(self.loss) // 2
        return float(np.median(np.abs(self.loss - self.smooth)[half:])) if len(self.loss) else 0.0

    @cached_property
    def chance(self) -> float | None:
        """The cross-entropy of a uniform guess, log C, where the loss is one and C is known."""
        m = self.model
        if m is not None and m.is_cross_entropy and m.outputs is not None and m.outputs.shape[-1] > 1:
            return math.log(m.outputs.shape[-1])
        classes = CLASSES.get(str(self.settings.get("data")))
        return math.log(classes) if classes and self.settings.get("loss") == "cross_entropy" else None


def _is_better_than_a_guess(loss: float, share: float) -> bool | None:
    if loss <= math.log(2) - NOTHING or share >= KNOWS * math.exp(-loss):
        return True
    return False if share < GUESS * math.exp(-loss) else None


def scatter(values: np.ndarray) -> float:
    """The standard deviation of values about a straight line."""
    at = np.arange(len(values))
    return float(np.std(values - np.polyval(np.polyfit(at, values, 1), at))) if len(values) > 2 else 0.0


def smoothed(values: np.ndarray) -> np.ndarray:
    """The running median over a tenth of the values, at least three and always an odd number of them."""
    if not len(values):
        return values
    width = max(3, len(values) // 10) | 1
    padded = np.pad(values, width // 2, mode="edge")
    found = np.median(np.lib.stride_tricks.sliding_window_view(padded, width), axis=-1)
    if len(values) > width:  # the first value has a meaning of its own; the last one is but a batch's
        found[-(width // 2) :] = np.median(values[-width:])
    return found


def gather(run: str | Path | Run | Any) -> Evidence:
    """Collects the evidence of a run's folder or history; see `diagnose`."""
    if not isinstance(run, str | Path | Run):
        if not hasattr(run, "records"):
            raise TypeError(f"diagnose takes a run's folder, a Run or the History that train returned, got {run!r}")
        evidence = Evidence("history", as_columns(run.records), outcome=run.outcome, skipped=tuple(run.skipped))
    else:
        run = run if isinstance(run, Run) else Run(run)
        summary = run.summary or {}
        skipped = tuple(int(step) for step in summary.get("skipped", ()))
        outcome, error = summary.get("outcome"), summary.get("error")
        evidence = Evidence(str(run.folder), run.metrics(), _settings(run), outcome, skipped, error)
    if not evidence.metrics:
        ended = f"; it ended with {evidence.outcome}" if evidence.outcome else ""
        raise FileNotFoundError(f"{evidence.name} has no metrics: nothing was logged, or metrics.jsonl is gone{ended}")
    if "train/loss" not in evidence.metrics:
        raise ValueError(f"{evidence.name} has no train/loss; there are {', '.join(sorted(evidence.metrics))}")
    return evidence


def _settings(run: Run) -> dict[str, Any]:
    try:
        return flatten(run.config)
    except ConfigError:  # a run that Python made, without a config
        return {}
