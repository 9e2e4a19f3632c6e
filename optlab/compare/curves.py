"""The learning curve of a trial in a population, up to the step at which it diverges."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from optlab.compare.trials import Result, Trial
from optlab.training import GuardError
from optlab.training.guard import Skips

OF_STEP = ("loss", "gradient_norm", "fault")  # what a step measures


class Curve:
    """One trial's evaluations, until it diverges."""

    def __init__(self, trial: Trial):
        self.trial = trial
        self.curve: dict[str, list[float]] = {"step": []}
        self.diverged: str | None = None

    def add(self, start: int, measured: np.ndarray, held_out: Mapping[str, float]) -> None:
        """Takes the steps after `start`, (steps, of `OF_STEP`, 2), and the evaluation behind them."""
        if self.diverged is not None:
            return
        values = {f"train/{n}": measured[:, i, 0] / measured[:, i, 1] for i, n in enumerate(OF_STEP)}
        if len(bad := np.flatnonzero(values["train/fault"])):
            self.diverged = _why(start + int(bad[0]) + 1, {k: float(v[bad[0]]) for k, v in values.items()})
            return
        entry = {"step": start + len(measured), "train/loss": float(values["train/loss"][-1]), **held_out}
        for name, value in entry.items():
            self.curve.setdefault(name, []).append(value)

    def result(self, test: Mapping[str, float], seconds: float, pace: float, executor: str) -> Result:
        shown = test if self.trial.is_final and self.diverged is None else {}
        return Result(self.trial, self.curve, shown, self.diverged, seconds, pace, executor)


def _why(step: int, values: Mapping[str, float]) -> str:
    """The record that `train` would have made of this step."""
    try:
        Skips("stop", 1)({"step": step, **values})
    except GuardError as error:
        return cause(error)
    raise AssertionError(f"no fault at step {step}")


def cause(error: Exception) -> str:
    """The first half of a guard's message: which step, and why."""
    return str(error).partition(";")[0]
