"""The records of a run: a step's metrics are read late, joined with evaluations, and reported to the observers."""

from __future__ import annotations

import collections
import contextlib
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

from optlab._processes import is_first
from optlab.data import DataError
from optlab.runs import Observer, Record
from optlab.training.evaluation import Evaluator
from optlab.training.feed import Feed
from optlab.training.guard import GuardError
from optlab.training.judge import CONVERGED
from optlab.training.ledger import Ledger
from optlab.training.measures import is_rare
from optlab.training.packed import PackedMetrics, means
from optlab.training.state import TrainState

UNREAD = 16  # steps whose metrics wait to be read; then half of them are, so that the devices never wait
LAST = 10  # steps before an error that have a record, whatever log_every is: they show how it came about


class Unread:
    """A queue of the metrics that the devices may still be computing.

    Args:
        most: how many steps it holds; then the older half is read, with one wait and one copy for many steps.
    """

    def __init__(self, most: int):
        self.most = most
        self.queue: collections.deque[tuple[int, PackedMetrics]] = collections.deque()

    def push(self, t: int, metrics: PackedMetrics) -> Iterable[Record]:
        """Adds a step's metrics; returns the records of older steps if it is full."""
        self.queue.append((t, metrics))
        return self._read((len(self.queue) + 1) // 2) if len(self.queue) >= self.most else ()

    def drain(self) -> Iterable[Record]:
        """Waits for all steps, and returns their records."""
        return self._read(len(self.queue))

    def _read(self, count: int) -> Iterator[Record]:
        for t, metrics in [self.queue.popleft() for _ in range(count)]:
            yield {"step": t, **means(metrics.sums())}


class Records:
    """The records of one call of `train`: which steps have one, and what is in it.

    Args:
        feed: the training batches,
        evaluator: and what measures a state on the held-out splits.
        ledger: what judges the records.
        observers: what they are reported to.
        schedules: functions of the step, logged in each.
        steps: of the run.
        log_every: steps between two records,
        evaluate_every: and between two that are evaluated.
        evaluate_batches: of the validation split in an evaluation; None is all. The run's last record has all of it.
    """

    def __init__(
        self,
        feed: Feed,
        evaluator: Evaluator,
        ledger: Ledger,
        *,
        observers: Sequence[Observer],
        schedules: Mapping[str, Callable[[Any], Any]],
        steps: int,
        log_every: int,
        evaluate_every: int,
        evaluate_batches: int | None,
    ):
        self.feed, self.evaluator, self.ledger, self.judge = feed, evaluator, ledger, ledger.judge
        self.observers, self.schedules = observers, schedules
        self.steps, self.log_every = steps, log_every
        self.evaluate_every, self.evaluate_batches = evaluate_every, evaluate_batches
        self.unread = Unread(UNREAD if ledger.judge.stop.gradient_norm is None else 1)
        self.all: list[Record] = []
        self.latest: Record = {}
        self._unlogged: collections.deque[Record] = collections.deque(maxlen=LAST)
        self._has_reported = False

    @contextlib.contextmanager
    def observed(self, start: int) -> Iterator[None]:
        """Reports the run's beginning and end to the observers."""
        begun: list[Observer] = []
        try:
            for observer in self.observers:
                observer.begin(start, self.steps)
                begun.append(observer)
            yield
        except BaseException as error:
            self.judge.ended = type(error).__name__
            if isinstance(error, GuardError | DataError):
                self.judge.error = str(error)
                self._emit_unlogged()
            raise
        finally:
            for observer in begun:
                observer.end(self.judge.outcome)

    def push(self, t: int, metrics: PackedMetrics) -> None:
        """Takes a step's metrics, which the device may still be computing.

        Raises:
            GuardError: for an earlier step that is at fault.
        """
        for record in self.unread.push(t, metrics):
            self._take(record)

    def drain(self) -> None:
        """Waits for the steps that aren't read yet, and takes their metrics."""
        for record in self.unread.drain():
            self._take(record)

    def outcome_at(self, t: int, state: TrainState) -> str | None:
        """Evaluates after step t if that is due, and returns the run's outcome if it ends there."""
        converged = self.judge.converged(self.latest)
        if not (self.is_evaluated(t) or converged):
            return None
        self.drain()
        with self.ledger.clock.stopped():
            return self._evaluated(self.latest, t, state, converged=converged)

    def _evaluated(self, record: Record, t: int, state: TrainState, *, converged: bool) -> str | None:
        record |= self.evaluator("validation", state, t, self.evaluate_batches)
        # The values are those of the state, which after a step that only tested the gradient is one update behind.
        stopped = self.judge({**record, "step": int(state.step)} if converged else record)
        outcome = CONVERGED if converged else "finished" if t == self.steps else stopped
        if outcome:
            self.judge.ended = outcome
            if self.evaluate_batches is not None:  # judged was the part, as before: values of one set alone compare
                record |= self.evaluator("validation", state, t)
            record |= self.evaluator("test", state, t)
        self._emit(record)
        for observer in self.observers:
            if hasattr(observer, "evaluated"):
                observer.evaluated(record, state)
        return outcome

    def is_evaluated(self, t: int) -> bool:
        """True if step t is one that is evaluated."""
        return t % self.evaluate_every == 0 or t == self.steps

    def _take(self, record: Record) -> None:
        """Judges a step's metrics, and reports them if they are due; a step at fault may end the run."""
        t, skips = int(record["step"]), self.ledger.skips
        always = frozenset() if skips.guard is None else frozenset({"train/loss"})  # the guard would end the run
        counts = {"step": t, **self.feed.counts(t), "seconds": round(self.ledger.clock.seconds, 3)}
        self._unlogged.append({**counts, **record})
        self.evaluator.labels.check(record, self.feed.again(t), always=always)
        is_due = t % self.log_every == 0 or is_rare(record)  # what is measured seldom isn't lost
        self._unlogged[-1] = self.latest = {**counts, **skips(record)}
        if is_due or self.is_evaluated(t):
            self.latest |= self._scheduled(t)
        if is_due and not self.is_evaluated(t) and not self.judge.converged(self.latest):
            self._emit(self.latest)

    def report(self, what: str) -> None:
        """Prints what is wrong with the run, unless this or an observer, such as a `Watch`, has said something before.

        Args:
            what: the step and what it shows, in a line.
        """
        if self._has_reported or any(getattr(observer, "has_reported", False) for observer in self.observers):
            return
        self._reported()
        if is_first():
            print(f"optlab: {what}", file=sys.stderr)

    def _reported(self) -> None:
        """Tells the observers that would report something that it isn't theirs any more."""
        self._has_reported = True
        for observer in self.observers:
            if hasattr(observer, "reported"):
                observer.reported()

    def _scheduled(self, t: int) -> Record:
        return {name: float(schedule(self.ledger.skips.updates(t))) for name, schedule in self.schedules.items()}

    def _emit_unlogged(self) -> None:
        """Reports the last steps before an error, the one at fault included, though none of them was due."""
        self._reported()  # the error says what is wrong
        for record in list(self._unlogged):
            record.pop("train/fault", None)
            self._emit({**record, **self._scheduled(int(record["step"]))})

    def _emit(self, record: Record) -> None:
        self._unlogged.clear()
        self.all.append(record)
        for observer in self.observers:
            observer.record(record)
