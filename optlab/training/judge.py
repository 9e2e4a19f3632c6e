"""The best value so far, the target, early stopping: what a run's evaluations decide."""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from optlab.config import ConfigError, Stop, Target, check
from optlab.runs import Record

CONVERGED = "gradient norm reached"  # the outcome of a run that stop.gradient_norm ended
INTERRUPTED = "interrupted by "  # begins the outcome of a run that a signal ended; the next call continues it


def norm_bound(stop: Stop) -> float | None:
    """The largest gradient norm that ends a run: stop.gradient_norm, or the float32 nearest to it if that is larger.

    The device compares in the norm's dtype, the host in float64. Without the rounding they disagree on a norm of 0.1 in
    float32, which is above 0.1 in float64: the step makes no update, and the run never ends.
    """
    if stop.gradient_norm is None:
        return None
    with np.errstate(over="ignore"):  # 1e50 is infinite in float32
        return max(stop.gradient_norm, float(np.float32(stop.gradient_norm)))


@dataclass
class Judge:
    """The best value of the target's metric so far, and whether the run has to end for want of a better one."""

    target: Target
    stop: Stop
    best: tuple[int, float] | None = None
    waited: int = 0
    mark: float | None = None  # the value from which min_gain is counted: the last one that counted as a gain
    ended: str | None = None  # the run's outcome; None while it goes on
    error: str | None = None  # the words of the error that ended it, if its own numbers or data are at fault
    reached: int | None = None

    def __post_init__(self) -> None:
        try:
            check(self.stop, "stop.")
        except ConfigError as error:
            raise ValueError(str(error)) from None

    @property
    def outcome(self) -> str:
        """The run's outcome; that of a run whose steps were all made already is "finished"."""
        return self.ended or "finished"

    @property
    def ended_early(self) -> bool:
        """True if the run stopped before its last step, and stays stopped."""
        return self.outcome != "finished"

    def __call__(self, record: Record) -> str | None:
        """Takes an evaluated record; "stopped early" once patience has run out.

        Raises:
            ValueError: under a patience, if the held-out examples measured nothing at all.
        """
        step, metric = int(record["step"]), self.target.metric
        if metric not in record:  # no example of the batch counted, or the step was skipped: neither better nor worse
            if self.stop.patience is not None and metric.startswith("validation/"):
                raise ValueError(
                    f"stop.patience={self.stop.patience} waits for {metric}, which wasn't measured after step {step}: "
                    "no example of the validation split has a weight"
                )
            return None
        value = record[metric]
        if self.target.gain(value, self.best and self.best[1]) > 0:
            self.best = (step, value)
        self.waited += 1
        if self.target.gain(value, self.mark) > self.stop.min_gain:
            self.waited, self.mark = 0, value
        if self.reached is None and self.target.reached(value):
            self.reached = step
        return "stopped early" if self.stop.patience is not None and self.waited >= self.stop.patience else None

    def converged(self, record: Record) -> bool:
        """True if the gradient's norm is small enough to end the run (‖∇L‖ ≤ ε); that of a skipped step isn't."""
        bound = norm_bound(self.stop)
        return bound is not None and "skipped" not in record and record["train/gradient_norm"] <= bound

    def interrupted(self, signal: str | None) -> str | None:
        """The outcome of a run that a signal of this name ends, if one does."""
        if signal:
            self.ended = f"{INTERRUPTED}{signal}"
            return self.ended
        return None

    def dump(self) -> dict[str, Any]:
        """As JSON data, for a checkpoint. A run that was interrupted has no outcome yet."""
        ended = None if self.ended is not None and self.ended.startswith(INTERRUPTED) else self.ended
        return {**{name: getattr(self, name) for name in ("best", "waited", "mark", "reached")}, "ended": ended}

    def summary(self) -> dict[str, Any]:
        """The best evaluation, the target, and the error if there is one, as JSON data for the run's summary."""
        best = self.best and {"step": self.best[0], "value": self.best[1]}
        error = {} if self.error is None else {"error": self.error}
        return {**error, "best": best, "target": {**dataclasses.asdict(self.target), "reached": self.reached}}

    def load(self, notes: Mapping[str, Any], changed: Collection[str] = ()) -> None:
        """The inverse of dump; what was found under another target or stop, or on other data, isn't taken over.

        Args:
            notes: what dump gave.
            changed: the config's keys that have other values since.
        """
        self.best = notes["best"] and tuple(notes["best"])
        self.waited, self.mark, self.ended, self.reached = (notes[n] for n in ("waited", "mark", "ended", "reached"))
        is_data = any(key.startswith(("data", "evaluate_batches")) for key in changed)
        if is_data or any(key in ("target.metric", "target.mode") for key in changed):
            self.best, self.waited, self.mark = None, 0, None
        if any(key.startswith("target.") for key in changed):
            self.reached = None
        if is_data or any(key.startswith(("target.", "stop.")) for key in changed):
            self.ended = None
