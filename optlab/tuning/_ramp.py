"""The classical range test: one training at a learning rate that grows exponentially, and the four rules that read it.

Source: Smith 2017 (arXiv 1506.01186), section 3.3; the rules are fastai's `lr_find`, whose smoothing, trimming and
constants are kept. They look at the loss of single batches, and at each learning rate for one step alone.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

STEPS = 100  # as in fastai
SMOOTHING = 0.98  # of the running mean of the loss
BLOWN = 4  # the ramp is over once the smoothed loss is so many times the lowest one
LAST = 5  # steps that are cut off at the end, where the loss blows up
INTERVAL, FLAT = 15, 0.005  # of the slide: steps between its two ends, and how alike the slopes there are when it stops


@dataclass(frozen=True)
class Ramp:
    """A ramp as far as it went.

    Attributes:
        rates: the learning rate of every step.
        losses: the training loss of every step's batch, in the same order.
    """

    rates: np.ndarray
    losses: np.ndarray

    @property
    def smoothed(self) -> np.ndarray:
        """The running mean of the losses, without the bias towards its first value 0."""
        found, mean = np.empty_like(self.losses), 0.0
        for t, loss in enumerate(self.losses):
            mean = SMOOTHING * mean + (1 - SMOOTHING) * loss
            found[t] = mean / (1 - SMOOTHING ** (t + 1))
        return found

    def suggestions(self) -> dict[str, float]:
        """The four rules' learning rates by name; NaN where the ramp is too short for a rule."""
        losses = self.smoothed
        blown = np.flatnonzero(losses > BLOWN * np.minimum.accumulate(losses))
        stop = blown[0] + 1 if len(blown) else len(losses)
        part = slice(STEPS // 10, max(0, stop - LAST))
        rates, losses = self.rates[part], losses[part]
        if len(losses) < 3:
            return dict.fromkeys(RULES, math.nan)
        return {name: rule(rates, losses) for name, rule in RULES.items()}


def ramp_of(low: float, high: float, losses: np.ndarray, steps: int = STEPS) -> Ramp:
    """The ramp from low to high in so many steps, of which these losses are the first."""
    return Ramp(low * (high / low) ** (np.arange(len(losses)) / (steps - 1)), losses)


def minimum(rates: np.ndarray, losses: np.ndarray) -> float:
    """A tenth of the learning rate with the lowest loss."""
    return float(rates[np.argmin(losses)]) / 10


def steepest(rates: np.ndarray, losses: np.ndarray) -> float:
    """The learning rate where the loss falls fastest with its logarithm."""
    return float(rates[np.argmin(np.diff(losses) / np.diff(np.log(rates)))])


def valley(rates: np.ndarray, losses: np.ndarray) -> float:
    """The middle of the longest falling subsequence: a third and a sixth of its length after its beginning.

    Its beginning is counted back from its end by its length, so that gaps make it later than the first member.
    """
    lengths = np.ones(len(losses), int)
    for i in range(1, len(losses)):
        higher = lengths[:i][losses[:i] > losses[i]]
        lengths[i] = 1 + max(higher, default=0)
    end = int(np.argmax(lengths))
    start = end - int(lengths[end])
    third = (end - start) / 3
    return float(rates[start + int(third) + int(third / 2)])


def slide(rates: np.ndarray, losses: np.ndarray) -> float:
    """The left end of an interval that slides from the right until the slopes at its two ends are alike."""
    slopes = np.gradient(losses)
    right, left = len(losses) - 1, len(losses) - 1 - INTERVAL
    if left < 0:
        return math.nan
    found = left
    while left >= 0 and abs(slopes[right] - slopes[left]) > FLAT:
        found = left
        right, left = right - 1, left - 1
    return float(rates[found])


RULES = {"minimum / 10": minimum, "steepest": steepest, "valley": valley, "slide": slide}
