"""The result of a run."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from optlab.config import Target
from optlab.runs import Record
from optlab.training.judge import INTERRUPTED
from optlab.training.ledger import Ledger
from optlab.training.saving import Saver
from optlab.training.state import TrainState, evaluation_params


@dataclass(repr=False)
class History:
    """The result of a run; `print` shows how it ended.

    Attributes:
        records: one {"step": …, "train/loss": …, "validation/…": …} a logged step of this call, ascending.
        state: the last TrainState.
        outcome: "finished", "stopped early", "gradient norm reached", or "interrupted by SIGINT" or another signal.
        best: step and value of the target's metric at its best.
        reached: the first evaluated step at which the target's value was reached, or None.
        skipped: the steps that the guard left out, those before a continued run's checkpoint included.
        saved: the last step that is saved; 0 if none is.
        start: the step that this call went on from. Where that is the last one already, nothing was trained, and the
            records are those of the calls before.
        target: the workload's.
        seconds: of this call, compilation and evaluation included.
        skip_log: the file that has the reason of each skipped step, if there is one.
    """

    records: list[Record]
    state: TrainState
    outcome: str
    best: tuple[int, float] | None
    reached: int | None
    skipped: list[int]
    saved: int = 0
    start: int = 0
    target: Target = field(default_factory=Target)
    seconds: float = 0.0
    skip_log: Path | None = None

    @property
    def params(self) -> Any:
        """The parameters that the run is judged by (the moving average's, if there is one)."""
        return evaluation_params(self.state)

    @classmethod
    def of(
        cls, records: list[Record], state: TrainState, ledger: Ledger, saver: Saver, start: int, seconds: float
    ) -> History:
        """The result of one call of `train`."""
        judge, skips = ledger.judge, ledger.skips
        return cls(
            records,
            state,
            judge.outcome,
            judge.best,
            judge.reached,
            skips.steps,
            saver.saved,
            start,
            target=judge.target,
            seconds=seconds,
            skip_log=None if skips.log is None else skips.log.path,
        )

    def __getitem__(self, name: str) -> tuple[np.ndarray, np.ndarray]:
        """(steps, values) of a metric."""
        found = [(r["step"], r[name]) for r in self.records if name in r]
        if not found:
            known = sorted({n for r in self.records for n in r if n != "step"})
            raise KeyError(f"no metric {name!r} was logged; there are {', '.join(known)}")
        steps, values = zip(*found, strict=True)
        return np.asarray(steps), np.asarray(values)

    @property
    def is_interrupted(self) -> bool:
        """True if a signal ended the call: the next one goes on."""
        return self.outcome.startswith(INTERRUPTED)

    @property
    def was_over(self) -> bool:
        """True if the run was over before this call, which trained nothing."""
        return self.start == int(self.state.step) and not self.is_interrupted

    def __str__(self) -> str:
        step = int(self.state.step)
        how = f"{self.outcome} already, at step {step}" if self.was_over else f"{self.outcome} after step {step}"
        lines = [how if self.was_over else f"{how}, {self.seconds:.0f} s"]
        if self.is_interrupted and self.saved:
            lines.append(f"  saved       after step {self.saved}; the same call continues")
        return "\n".join([*lines, *self.findings()])

    __repr__ = __str__

    def findings(self) -> list[str]:
        """The last values of every split, the best one and the target, a line each."""
        lines, last = [], self.records[-1] if self.records else {}
        for split in ("train", "validation", "test"):
            shown = {k.split("/")[1]: v for k, v in last.items() if k.startswith(f"{split}/") and "norm" not in k}
            if shown:
                lines.append(f"  {split:<10}  " + "  ".join(f"{k} {v:.4f}" for k, v in shown.items()))
        if self.skipped:
            why = f", each with its reason in {self.skip_log}" if self.skip_log else ""
            lines.append(f"  skipped     {len(self.skipped)} steps{why}")
        if self.best:
            lines.append(f"  best        {self.target.metric} {self.best[1]:.4f} at step {self.best[0]}")
        if self.target.value is not None:
            when = "not reached" if self.reached is None else f"reached at step {self.reached}"
            lines.append(f"  target      {self.target.metric} {self.target.value:g} {when}")
        return lines
