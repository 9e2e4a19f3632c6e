"""`optlab.compare(…)`: from contenders and a workload to a verdict, in one call."""

from __future__ import annotations

import concurrent.futures
import contextlib
import functools
import shutil
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import optax

from optlab import schedules
from optlab._extras import need
from optlab.compare._arguments import check_flags
from optlab.compare.driver import run_study
from optlab.compare.points import Design, Space
from optlab.compare.report import write_report
from optlab.compare.study import Executor, Study, make_study
from optlab.compare.trials import Result
from optlab.compare.verdict import Verdict, judge
from optlab.compare.widening import ROUNDS, check_widening, widened
from optlab.compare.workers import employ
from optlab.training import Workload


def compare(
    contenders: Mapping[str, Any] | Sequence[str],
    workload: Workload,
    *,
    steps: int,
    trials: int | None = None,
    studies: int = 5,
    seeds: int = 1,
    finals: int = 1,
    spaces: Mapping[str, Space] | None = None,
    schedule: Callable[..., Any] | None = schedules.warmup_cosine,
    before: optax.GradientTransformation | None = None,
    baseline: str | None = None,
    design: Design = "sobol",
    paired: bool = False,
    seed: int = 0,
    evaluate_every: int | None = None,
    executor: Executor | None = None,
    widen: bool = False,
    workers: int | concurrent.futures.Executor | None = None,
    folder: str | Path | None = None,
    quiet: bool = False,
) -> Verdict:
    """Compares optimizers, each tuned anew in every study under the same budget.

    In a study each contender draws points of its own, trains each, takes the best on the validation split, and trains
    that winner afresh for the test split. The studies are the repetitions that intervals and tests are made of.

    Args:
        contenders: by name a factory, keyword arguments -> an optax transformation, or the name of one of ours
            ("muon"); or a list of such names. `functools.partial(optlab.sgd, momentum=0.9)` fixes an argument.
        workload: what is trained. Its target's metric, on the validation split, chooses the winners; its target's
            value, if it has one, is what steps are counted to.
        steps: updates of a run.
        trials: points of each contender in each study, a power of two; None is 8, or a grid's own number.
        studies: how often every contender is tuned anew.
        seeds: trainings of each point.
        finals: fresh trainings of each winner.
        spaces: by contender what is searched: {"mine": {"learning_rate": log_uniform(1e-4, 1e-1), "schedule.end":
            uniform(0, 0.1)}}; without one a default of the learning rate.
        schedule: (peak, steps, …) -> a function of the step, for every learning rate alike; None is a constant rate.
        before: what every contender's gradients go through first, such as optax.clip_by_global_norm(1.0).
        baseline: the contender that the others are compared with; None is the first.
        design: "sobol", or "grid": every combination of the spaces' choices.
        paired: whether all contenders share initializations and data orders, and are compared study by study.
        seed: of everything that is drawn.
        evaluate_every: steps between two evaluations; None is a twentieth of the run.
        executor: "population", many trials side by side in one program, "series", in turn in one program, or "runs",
            one ordinary run after another, saved at its evaluations in `folder` unless a worker trains it; None
            measures the first two on a few steps. The plan says which.
        widen: whether the search goes on beyond the edge of a space where a contender's best values lie at it, by a
            third of the space's decades and up to three times; all contenders get as many trials more.
        workers: None trains in this process, a number in so many processes of this machine (a script then needs
            `if __name__ == "__main__":`), a concurrent.futures.Executor wherever it takes its calls: Dask's, mpi4py's.
        folder: where trials, verdict and report are kept: the same call goes on where it stood, one with more studies,
            trials or contenders trains only what is new.
        quiet: whether nothing is said on the way.

    Returns:
        the verdict: `print` shows it in words, `.frame()` gives every trial as a row.

    Raises:
        StudyError: for whatever can't work, before anything is trained.
    """
    study = make_study(
        contenders, workload, steps=steps, trials=trials, studies=studies, seeds=seeds, finals=finals, spaces=spaces,
        schedule=schedule, before=before, baseline=baseline, design=design, paired=paired, seed=seed,
        evaluate_every=evaluate_every, executor=executor,
    )  # fmt: skip
    return conclude(study, folder, widen=widen, workers=workers, quiet=quiet)


def conclude(
    study: Study,
    folder: str | Path | None = None,
    *,
    widen: bool = False,
    workers: int | concurrent.futures.Executor | None = None,
    quiet: bool = False,
    command: str = "",
) -> Verdict:
    """Runs a study to its end, and judges it; with a folder, verdict and report are written there.

    Args:
        study: from `make_study`.
        folder: the study's.
        widen: as in `compare`,
        workers: as well.
        quiet: whether nothing is said on the way.
        command: what the report names as the way to have it again.
    """
    check_flags(quiet=quiet)
    check_widening(study, widen)
    if folder is not None:
        need("a study's report", "plotly", "matplotlib", extra="compare")
    with employ(workers) as employed:
        train = functools.partial(_judged, folder=folder, workers=employed, quiet=quiet)
        verdict = train(study)
        for _ in range(ROUNDS if widen else 0):
            wider = widened(verdict.study, {name: x.edges for name, x in verdict.standings.items()})
            if wider is None:
                break
            verdict = train(wider)
    if folder is not None:
        verdict.write(folder)
        write_report(verdict, Path(folder).expanduser(), command)
    return verdict


def _judged(study: Study, folder: Any, workers: Any, quiet: bool) -> Verdict:
    with contextlib.nullcontext() if quiet else _Progress(study) as progress:
        return judge(study, run_study(study, folder, workers=workers, progress=progress))


class _Progress:
    """The trials that are finished, and the time left: a live line on a terminal, else a line every other second."""

    def __init__(self, study: Study):
        self.total = sum(study.studies * (study.budget(n) * study.seeds + study.finals) for n in study.trials)
        self.began, self.done, self.said = time.monotonic(), 0, -10.0
        self.first: tuple[float, int] | None = None  # when the first ones were finished, and how many
        self.is_live, self.is_open = sys.stderr.isatty(), False

    def __enter__(self) -> _Progress:
        return self

    def __exit__(self, *error: Any) -> None:
        if self.is_open:  # interrupted: what is said next begins a line of its own
            print(file=sys.stderr)

    def __call__(self, name: str, results: Sequence[Result]) -> None:
        if not name:  # what was there already takes no time
            self.total -= len(results)
            return
        self.done += len(results)
        passed = time.monotonic() - self.began
        self.first = self.first or (passed, self.done)
        if passed - self.said < (0.1 if self.is_live else 2) and self.done < self.total:
            return
        self.said = passed
        best = f"{name}, " if self.done < self.total else ""
        self._say(f"optlab: {best}{self.done} of {self.total} runs, {passed:.0f} s{self._left(passed)}")

    def _left(self, passed: float) -> str:
        """Counted from the first ones on: what was before them holds the first compilation."""
        assert self.first is not None
        began, count = self.first
        if self.done == count:
            return ""
        return f", {(passed - began) / (self.done - count) * max(0, self.total - self.done):.0f} s left"

    def _say(self, text: str) -> None:
        if not self.is_live:
            print(text, file=sys.stderr)
            return
        self.is_open = self.done < self.total
        shown = text[: shutil.get_terminal_size().columns - 1]
        print(f"\r{shown}\x1b[K", end="" if self.is_open else "\n", file=sys.stderr, flush=True)
