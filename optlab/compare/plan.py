"""The plan of a study: what will be trained, what it costs, which differences it can find."""

from __future__ import annotations

import dataclasses
import math
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from optlab.compare import statistics
from optlab.compare.choosing import decided
from optlab.compare.contenders import Contender
from optlab.compare.population import Population
from optlab.compare.study import Study
from optlab.compare.trials import Result, Trial, kept
from optlab.compare.workers import Here

TIMED = 10  # steps that are timed, at most


@dataclass(frozen=True)
class Plan:
    """The size and cost of a study.

    Attributes:
        study: which one.
        trials: by contender how many trainings there are, the winners' fresh ones included.
        left: how many of these the folder doesn't hold yet.
        seconds: by contender about how long those take.
        detectable: the difference that is found four times of five, in standard deviations of the winners' scores.
    """

    study: Study
    trials: dict[str, int]
    left: dict[str, int]
    seconds: dict[str, float]
    detectable: float

    def __str__(self) -> str:
        s, total, left = self.study, sum(self.trials.values()), sum(self.left.values())
        there = f", of which {total - left:,} are there already: {left:,} runs" if left < total else ""
        lines = [
            f"{len(self.trials)} contenders on {s.workload.name}, {s.studies} studies, {s.steps} steps a run: "
            f"{total:,} runs{there}, {left * s.steps:,} steps, about {_duration(sum(self.seconds.values()))}"
        ]
        for name, count in self.trials.items():
            executor, why = s.executors[name]
            space = ", ".join(f"{k} {found}" for k, found in s.contenders[name].space.items()) or "nothing to tune"
            lines.append(
                f"  {name}: {s.studies} × {s.trials[name]} trials and {s.studies * s.finals} winners afresh, "
                f"{count} runs{_left(count, self.left[name])}, about {_duration(self.seconds[name])}; {space}; "
                + {
                    "population": "one program for many trials",
                    "series": "one program, one trial after another",
                    "runs": "one run after another",
                }[executor]
                + (f" ({why})" if why else "")
            )
        if s.studies == 1:
            return "\n".join(
                [*lines, "With one study there is no interval: no difference can be found. Say studies=5."]
            )
        how = "study by study" if s.is_paired else "by Welch's test"
        others = len(s.contenders) - 1
        corrected = f", corrected for {others} comparisons" if others > 1 else ""
        lines.append(
            f"Compared {how} in {s.measure}{corrected}, a difference of {self.detectable:.1f} standard deviations of "
            "the tuned winners is found four times of five; smaller ones are missed more often."
        )
        if s.design == "grid":
            lines.append("All studies have the same grid: they differ in their seeds alone, not in luck of tuning.")
        return "\n".join(lines)


def make_plan(study: Study, folder: str | Path | None = None) -> Plan:
    """The plan of a study. Compiles each contender's program and times a few steps of it; trains and writes nothing.

    Args:
        study: from `make_study`; what executors are faster is measured here.
        folder: the study's, if it has one: what is finished there, and what executors are faster.

    Raises:
        StudyError: if the folder holds another study.
    """
    here, place = Here(), None if folder is None else Path(folder).expanduser()
    results = {} if place is None or not place.exists() else kept(place, study.about())[1]
    study = decided(study, here.paces, place, keep=False)
    trials = {n: study.studies * (study.trials[n] * study.seeds + study.finals) for n in study.contenders}
    seconds, evaluation = dict.fromkeys(trials, 0.0), None
    left = {n: sum(_missing(study, n, s, results) for s in range(study.studies)) for n in study.contenders}
    for name, count in left.items():
        if count and study.executors[name][0] == "runs":
            seconds[name] = _of_runs(study, name, count)
        elif count:
            train, trial = here.executor(study, name), study.searches(name, 0)[0]
            evaluation = evaluation or _laps(train.laps(trial, 1, is_evaluated=True))
            seconds[name] = _of_program(study, train, trial, count, evaluation)
    return Plan(
        study,
        trials,
        left,
        seconds,
        statistics.detectable(study.studies, comparisons=len(study.contenders) - 1, is_paired=study.is_paired),
    )


def _missing(study: Study, name: str, repetition: int, results: Mapping[str, Result]) -> int:
    """The number of trials of one tuning that aren't finished; its winner's all count until the winner is known."""
    searches = sum(t.id not in results for t in study.searches(name, repetition))
    if searches:
        return searches + study.finals
    return sum(t.id not in results for t in study.finals_of(name, repetition, results))


def _left(count: int, left: int) -> str:
    return f" ({left} left)" if left < count else ""


def _of_runs(study: Study, name: str, count: int) -> float:
    """Each compiles for itself."""
    timed = min(TIMED, study.steps)
    short: Contender = dataclasses.replace(study.contenders[name], steps=timed)
    try:
        short.make(short.middle)
    except ValueError:  # a schedule with a warm-up that is longer
        short = dataclasses.replace(short, schedule=None)
    tiny = dataclasses.replace(study, contenders={name: short}, evaluate_every=timed)
    train, part = tiny.executor(name), tiny.searches(name, 0)[:1]
    took = []
    for _ in range(2):
        began = time.monotonic()
        list(train(part))
        took.append(time.monotonic() - began)
    # Both compile: what is left of the second after its compilation isn't known, so that a step counts too much.
    return count * took[1] * max(1.0, study.steps / timed / 20)


def _of_program(study: Study, train: Population, trial: Trial, count: int, evaluation: tuple[float, float]) -> float:
    """Compilation once, the steps and the evaluations at the pace of a few.

    Args:
        study: whose trials.
        train: their executor.
        trial: any of them.
        count: how many there are.
        evaluation: the seconds a trial of the first one, which compiles, and of the second; all contenders' are alike.
    """
    # Steps that are a call each are slow ones, of convolutions on a CPU: two say enough.
    timed = min(TIMED, study.evaluate_every) if train.has_loop(trial) else 1
    (first, step), (other, evaluated) = _laps(train.laps(trial, timed)), evaluation
    compilation = max(0.0, (first - step + other - evaluated) * train.width)
    evaluations = math.ceil(study.steps / study.evaluate_every)
    filled = -(-count // train.width) * train.width
    return compilation + filled * (step / timed * study.steps + evaluated * evaluations)


def _laps(lap: Callable[[], float]) -> tuple[float, float]:
    return lap(), lap()


def _duration(seconds: float) -> str:
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"
