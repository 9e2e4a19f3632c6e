"""Trials as ordinary runs, one after another."""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import itertools
import math
import shutil
import signal
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from optlab.compare.contenders import Contender
from optlab.compare.curves import cause
from optlab.compare.trials import Result, Trial, pace
from optlab.runs import Checkpoints, MetricsFile, Record, read_metrics
from optlab.training import GuardError, Workload, train

UNFINISHED = "unfinished"  # a study's folder of trials that are begun


class _Kept:
    """An observer that keeps the records, which an error would take away, and when they came."""

    def __init__(self) -> None:
        self.records: list[Record] = []
        self.times: list[float] = []

    def begin(self, start: int, steps: int) -> None:
        pass

    def record(self, record: Record) -> None:
        self.records.append(record)
        self.times.append(time.monotonic())

    def pace(self) -> float:
        """Of the stretches between records."""
        taken = zip(itertools.pairwise(self.times), itertools.pairwise(self.records), strict=True)
        parts = [(t - s) / (b["step"] - a["step"]) for (s, t), (a, b) in taken if b["step"] > a["step"]]
        return pace([math.nan, *parts])  # what was before the first record compiles

    def end(self, outcome: str) -> None:
        pass


class Runs:
    """Trains each trial by `optlab.training.train`, one after another. Only final ones see the test split.

    A trial is saved at its evaluations in `folder`, the study's, and goes on from there in the next call, until its
    result is taken.

    Args:
        workload: what is trained.
        contender: whose trials.
        evaluate_every: steps between two evaluations.
        expected: trials that are likely to come at once; makes no difference here.
    """

    width = 1

    def __init__(self, workload: Workload, contender: Contender, evaluate_every: int, expected: int):
        self.workload, self.contender, self.evaluate_every = workload, contender, evaluate_every
        self.folder: Path | None = None

    def __call__(self, trials: Sequence[Trial]) -> Iterator[list[Result]]:
        for trial in trials:
            name = hashlib.sha256(trial.id.encode()).hexdigest()[:16]
            folder = None if self.folder is None else self.folder / UNFINISHED / name
            yield [_trained(self.workload, self.contender, trial, self.evaluate_every, folder)]
            if folder is not None:  # the driver has written the result down
                shutil.rmtree(folder)
                with contextlib.suppress(OSError):  # others are in it
                    folder.parent.rmdir()


def _trained(
    workload: Workload, contender: Contender, trial: Trial, evaluate_every: int, folder: Path | None
) -> Result:
    data: Any = workload.data
    if not trial.is_final:
        data = SimpleNamespace(train=data.train, validation=data.validation, test=None)
    kept, began, diverged = _Kept(), time.monotonic(), None
    saved = None if folder is None else Checkpoints(folder / "checkpoints", every=evaluate_every, keep=1)
    files = [] if folder is None else [MetricsFile(folder / "metrics.jsonl")]
    try:
        history = train(
            dataclasses.replace(workload, data=data),
            contender.make(trial.values),
            steps=contender.steps,
            seed=trial.seed,
            evaluate_every=evaluate_every,
            log_every=evaluate_every,
            checkpoints=saved,
            observers=[kept, *files],
        )
        if history.is_interrupted:
            signal.raise_signal(getattr(signal, history.outcome.split()[-1]))  # does what it would have done
    except GuardError as error:
        diverged = cause(error)
    seconds = time.monotonic() - began
    records = kept.records if folder is None else read_metrics(folder)  # those of earlier calls, too
    evaluated = [r for r in records if r["step"] % evaluate_every == 0 or r["step"] == contender.steps]
    names = [n for n in (evaluated[0] if evaluated else {"step": 0}) if n in ("step", "train/loss") or n[:4] == "vali"]
    curve = {n: [r[n] for r in evaluated] for n in names}
    test = {n: v for n, v in records[-1].items() if n.startswith("test/")} if diverged is None else {}
    return Result(trial, curve, test, diverged, seconds, kept.pace(), "runs")
