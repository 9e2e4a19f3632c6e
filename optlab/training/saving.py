"""The checkpoints of one call of `train`: where it goes on from, and what it saves when."""

from __future__ import annotations

import sys
from collections.abc import Collection, Mapping, Sequence
from typing import Any

import jax

from optlab._processes import is_first
from optlab.runs import CheckpointError, Checkpoints, MetricsFile, Observer, Record, StepLog, SummaryFile, read_metrics
from optlab.runs._fingerprints import non_finite
from optlab.training.guard import not_finite
from optlab.training.identity import Identity, changed_keys, with_settings
from optlab.training.judge import CONVERGED
from optlab.training.ledger import Ledger
from optlab.training.records import Records
from optlab.training.state import TrainState


class Saver:
    """Restores and saves a run's state and its ledger.

    Args:
        checkpoints: where; None saves nothing.
        ledger: what is saved beside the state.
    """

    def __init__(self, checkpoints: Checkpoints | None, ledger: Ledger):
        self.checkpoints, self.ledger = checkpoints, ledger
        self.about: Identity = {}
        self.notes: Mapping[str, Any] = {}
        self.saved = 0  # the last step that is saved
        self._is_refused = False

    def restore(self, first: TrainState, about: Identity, allow_change: Collection[str]) -> TrainState:
        """Restores the latest checkpoint, compared with this run; without any the first state stays.

        Raises:
            CheckpointError: if it is another run's, or no run of `train` saved it.
        """
        checkpoints, self.about = self.checkpoints, about
        if checkpoints is None:
            return first
        # whether the average may go is decided by the keys, not here
        found = checkpoints.restore_latest(first, optional=("losses", "ema"))
        if found is None:
            return first
        state, self.notes = found
        if missing := [name for name in (*self.ledger.dump(), "lines", "run") if name not in self.notes]:
            raise CheckpointError(
                f"the latest checkpoint isn't one that a run of `train` saved: its notes hold no {', '.join(missing)}; "
                "name another folder, or give its parameters as `initial`"
            )
        saved = self.notes["run"]
        changed = changed_keys(checkpoints.folder / str(int(state.step)), saved, about, allow_change)
        about["initial"] = about["initial"] or saved["initial"]
        self.ledger.load(self.notes, changed)
        self.ledger.clock.before = self.notes.get("seconds", 0.0)  # checkpoints of an earlier optlab have none
        self.saved = int(state.step)
        return with_settings(state, first, changed)

    def with_files(
        self, observers: Sequence[Observer], start: int, steps: int
    ) -> tuple[Sequence[Observer], list[Record]]:
        """The observers with those that write metrics.jsonl and summary.json; and the records of a run that is over."""
        if self.checkpoints is None:
            return observers, []
        log = next((o.log for o in observers if isinstance(o, MetricsFile)), None)
        if log is None:
            own = MetricsFile(self.checkpoints.folder / "metrics.jsonl")
            log, observers = own.log, (own, *observers)
        summary = SummaryFile(log.path.parent, self.ledger.summary)
        judge = self.ledger.judge
        is_over = bool(self.notes) and (start == steps or judge.ended_early)
        if is_over and is_first():
            print(
                f"optlab: the run in {self.checkpoints.folder} is {judge.outcome} already, at step {start}: "
                "nothing is trained, these are its records; name another folder for another run",
                file=sys.stderr,
            )
        earlier = self._earlier(log, summary, start, steps) if is_over else []
        return (*observers, summary) if start < steps else observers, earlier

    def _earlier(self, log: StepLog, summary: SummaryFile, start: int, steps: int) -> list[Record]:
        """The records of a run that is over; none if their file is gone. A missing summary is written again."""
        outcome = self.ledger.judge.outcome
        last = start + (outcome == CONVERGED)  # the step that tested the gradient and made no update
        records = [r for r in read_metrics(log.path) if r["step"] <= last] if log.path.exists() else []
        if is_first():
            summary.restore(outcome, start, steps, records)
        return records

    def check_lines(self, records: Records) -> None:
        """Says which file doesn't hold the lines any more that were there at the checkpoint: what is gone is gone."""
        before = self.notes["lines"] if self.notes else {}
        for log in self._logs(records):
            if (lines := before.get(log.path.name, log.lines)) != log.lines:
                print(f"optlab: {log.path} has {log.lines} lines up to here, and had {lines}", file=sys.stderr)

    def after(self, t: int, state: TrainState, outcome: str | None, records: Records) -> None:
        """Saves the state after step t if that is due: every so many steps, at the best one, and where the run ends.

        Raises:
            NonFiniteError: under a guard, for parameters that would be saved, or returned.
        """
        best = self.ledger.judge.best and self.ledger.judge.best[0]
        is_due = self.checkpoints is not None and (t % self.checkpoints.every == 0 or t == best)
        if not (outcome or is_due):
            return
        records.drain()
        self.ledger.damaged.settle()
        is_savable = self._is_savable(t, state)
        # A step that tested the gradient and made no update may stand at a checkpoint that there is.
        if self.checkpoints is None or not is_savable or (made := int(state.step)) == self.saved:
            return
        logs = self._logs(records)
        for log in logs:
            log.sync()  # the checkpoint stands for these lines, so that they outlive the machine
        notes = {
            **self.ledger.dump(),
            "lines": {log.path.name: log.lines for log in logs},
            "seconds": self.ledger.clock.seconds,
            "run": self.about,
        }
        with self.ledger.clock.stopped():
            self.checkpoints.save(state, notes, best=best)
        self.saved = made

    def _is_savable(self, t: int, state: TrainState) -> bool:
        """True if a state's parameters are finite; without a guard it is said once that others aren't saved."""
        if not non_finite(dict(enumerate(jax.tree.leaves((state.params, state.ema))))):
            return True
        if self.ledger.skips.guard is not None:
            raise not_finite(f"step {t}: the parameters aren't finite")
        if not self._is_refused and is_first():
            print(f"optlab: step {t}: parameters that aren't finite are never saved (guard=None)", file=sys.stderr)
        self._is_refused = True
        return False

    def _logs(self, records: Records) -> list[StepLog]:
        """The files of this run, whose lines a checkpoint counts; of several processes the first one's."""
        logs = [observer.log for observer in records.observers if isinstance(observer, MetricsFile)]
        log = self.ledger.skips.log
        return [*logs, log] if log is not None and is_first() else logs
