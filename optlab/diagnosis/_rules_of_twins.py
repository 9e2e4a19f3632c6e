"""What the twins of a run show by their difference: rules, one a function."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property

from optlab.diagnosis._evidence import Evidence
from optlab.diagnosis._findings import Finding, Rule, Severity, cause, rate_times

# In the linear regime the loss falls in proportion to the learning rate: half and double of it give half and double of
# the gain. Where it is right, the gain hardly depends on it. These stand between the two, in the geometric mean.
MORE = math.sqrt(2)
CLEAR = 2.0  # times what another seed changes


@dataclass(frozen=True)
class Twins:
    """The held-out losses of a run's twins.

    Attributes:
        start: the step that they went on from,
        steps: and how many they made.
        before: the loss there.
        same: the loss after them, as the run was,
        half: at half the learning rate,
        double: at double,
        seed: with another seed, which has another loss before,
        batch: and with batches of twice the size.
        seed_before: the loss of the other seed before its steps.
    """

    start: int
    steps: int
    before: float
    same: float
    half: float
    double: float
    seed: float
    batch: float
    seed_before: float

    @cached_property
    def noise(self) -> float:
        """By how much another seed changes what is gained; infinite where one of the two isn't finite."""
        gap = abs((self.before - self.same) - (self.seed_before - self.seed))
        return gap if math.isfinite(gap) else math.inf

    def gain(self, loss: float) -> float:
        """What a twin's loss is below the one before; −∞ where it isn't finite."""
        return self.before - loss if math.isfinite(loss) else -math.inf

    def is_better(self, loss: float) -> bool:
        """True if a twin gained clearly more than the run's own."""
        own, other = self.gain(self.same), self.gain(loss)
        if own == -math.inf:
            return other > 0
        return other > 0 and other > MORE * own and other - own > CLEAR * self.noise

    def words(self) -> str:
        return (
            f"in {self.steps} steps from step {self.start} the held-out loss went from {self.before:.4g} to "
            f"{self.same:.4g}; at half the learning rate to {self.half:.4g}, at double to {self.double:.4g}, with "
            f"another seed to {self.seed:.4g}, with twice the batch to {self.batch:.4g}"
        )


def twins_want_less(e: Evidence) -> Finding | None:
    """The twin at half the learning rate gained more."""
    if e.twins is None or not e.twins.is_better(e.twins.half):
        return None
    return _finding(e, "learning rate too high", "a third of the learning rate", rate_times(e, 1 / 3))


def twins_want_more(e: Evidence) -> Finding | None:
    """The twin at double the learning rate gained more."""
    if e.twins is None or not e.twins.is_better(e.twins.double) or e.twins.is_better(e.twins.half):
        return None
    if e.twins.start == 0 and not e.is_unwell:  # in a run's first steps a rate that is too high later is ahead, too
        return None
    return _finding(e, "learning rate too low", "three times the learning rate", rate_times(e, 3))


def twins_want_batches(e: Evidence) -> Finding | None:
    """The twin with larger batches gained more, and no other learning rate did."""
    t = e.twins
    if t is None or not t.is_better(t.batch) or t.is_better(t.half) or t.is_better(t.double):
        return None
    size = e.settings.get("batch_size")
    settings = {"batch_size": 2 * size} if isinstance(size, int) else {}
    return _finding(e, "noisy", "larger batches, an average of the weights, or a schedule that ends at 0", settings)


def twins_differ_by_seed(e: Evidence) -> Finding | None:
    """The twin with another seed trained, and the run's own didn't, or the other way round."""
    t = e.twins
    if t is None or math.isfinite(t.same) == math.isfinite(t.seed):
        return None
    return _finding(e, "depends on the seed", "several seeds, a warm-up, a smaller initialization", {}, "note")


def _finding(e: Evidence, name: str, try_: str, settings: dict, severity: Severity | None = None) -> Finding:
    assert e.twins is not None
    found = severity or ("ill" if e.is_unwell else "note")
    return cause(name, e.twins.words(), try_, "", settings, found)


TWIN_RULES: tuple[Rule, ...] = (twins_want_less, twins_want_more, twins_want_batches, twins_differ_by_seed)
