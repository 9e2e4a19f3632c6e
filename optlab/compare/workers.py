"""Workers: parts of a study's trials, trained by any `concurrent.futures.Executor`. The driver alone writes.

What a worker needs travels as one pickle by value: functions of a script, lambdas and closures go along, installed
packages have to be there. A worker that dies takes no trial with it: its part is given to another one.
"""

from __future__ import annotations

import concurrent.futures
import functools
import multiprocessing
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax

from optlab._extras import need
from optlab._integers import is_count
from optlab.compare._errors import StudyError
from optlab.compare.choosing import Paces, race
from optlab.compare.runs import Runs
from optlab.compare.study import EXECUTORS, Study
from optlab.compare.trials import Result, Trial

DEATHS = 5  # in a row, without a finished part between them: then it is the trials that kill the workers


class Here:
    """Trains in this process."""

    def __init__(self) -> None:
        self.made: dict[tuple[str, str], Any] = {}  # by contender and executor
        self.measured: dict[str, Paces] = {}

    def __enter__(self) -> Here:
        return self

    def __exit__(self, *error: Any) -> None:
        pass

    def __call__(
        self, study: Study, parts: Mapping[str, Sequence[Trial]], folder: Path | None
    ) -> Iterator[tuple[str, list[Result]]]:
        """Trains all trials, by contender; yields a contender's name and some of its results as they are finished.

        Runs that are begun are saved in the study's folder.
        """
        for name, trials in parts.items():
            executor = self.executor(study, name)
            if isinstance(executor, Runs):
                executor.folder = folder
            for results in executor(trials):
                yield name, results

    def executor(self, study: Study, name: str) -> Any:
        """A contender's, with the programs that it has compiled so far."""
        key = name, study.executors[name][0]
        if key not in self.made:
            self.made[key] = study.executor(name)
        return self.made[key]

    def paces(self, study: Study, name: str) -> Paces:
        """What `race` measures with this contender, once; what was compiled for it is kept for training."""
        if name not in self.measured:
            self.measured[name], made = race(*study.task(name))
            self.made |= {(name, executor): population for executor, population in made.items()}
        return self.measured[name]


class Team:
    """Trains in processes of this machine, or wherever an executor of the caller's takes its calls.

    Args:
        workers: a number of processes, or the executor.
    """

    def __init__(self, workers: int | concurrent.futures.Executor):
        need("workers=", "cloudpickle", extra="cluster")
        self.workers = workers
        self.pool = self._started()
        self.measured: dict[str, Paces] = {}

    def __enter__(self) -> Team:
        return self

    def __exit__(self, kind: type[BaseException] | None, *error: Any) -> None:
        # A worker that compiles would go on for minutes after Ctrl-C. It writes nothing: nothing is lost with it.
        processes = list((getattr(self.pool, "_processes", None) or {}).values()) if kind else []
        self._end()
        for process in processes if isinstance(self.workers, int) else ():
            process.terminate()

    def __call__(
        self, study: Study, parts: Mapping[str, Sequence[Trial]], folder: Path | None
    ) -> Iterator[tuple[str, list[Result]]]:
        """As `Here`, but nothing that is begun is saved: a part whose worker died is given out again."""
        payloads = {name: _payload(study, name) for name, trials in parts.items() if trials}
        cut = [(name, part) for name in payloads for part in _cut(parts[name], study.executor(name).width)]
        waiting, deaths = dict(enumerate(cut)), 0
        while waiting:
            for number, results in self._round(payloads, dict(waiting)):
                name, _ = waiting.pop(number)
                deaths = 0
                yield name, results
            deaths += 1
            if waiting and deaths >= DEATHS:
                raise StudyError(
                    f"{deaths} workers died one after another (killed, or out of memory); what is finished is kept in "
                    "the study's folder: the same call with fewer workers goes on"
                )
            if waiting:
                self._renew()

    def paces(self, study: Study, name: str) -> Paces:
        """As `Here`; a worker measures. If it dies, another one does."""
        payload = _payload(study, name)
        for _ in range(DEATHS if name not in self.measured else 0):
            try:
                self.measured[name] = self.pool.submit(_measured, payload).result()
                break
            except Exception as error:
                if not _is_death(error):
                    raise
                self._renew()
        if name not in self.measured:
            raise StudyError(
                f"{DEATHS} workers died one after another as they timed a few steps of {name}: a script that starts "
                'them needs if __name__ == "__main__":, and each of them as much memory as a training here'
            )
        return self.measured[name]

    def _renew(self) -> None:
        """Starts a pool of processes anew: one that lost a process takes no more calls."""
        if isinstance(self.workers, int):
            self._end()
            self.pool = self._started()

    def _round(
        self, payloads: Mapping[str, bytes], waiting: Mapping[int, tuple[str, Sequence[Trial]]]
    ) -> Iterator[tuple[int, list[Result]]]:
        """Gives everything out, and yields what comes back: all but the parts of workers that die."""
        futures: dict[concurrent.futures.Future[list[Result]], int] = {}
        try:
            try:
                for number, (name, part) in waiting.items():
                    futures[self.pool.submit(_train, payloads[name], part)] = number
            except concurrent.futures.BrokenExecutor:
                pass  # one died before all was given out: the others' results count
            for future in concurrent.futures.as_completed(futures):
                if (error := future.exception()) is None:
                    yield futures[future], future.result()
                elif not _is_death(error):
                    raise error
        finally:
            for future in futures:
                future.cancel()

    def _started(self) -> concurrent.futures.Executor:
        if isinstance(self.workers, concurrent.futures.Executor):
            return self.workers
        # A fork of a process in which JAX runs has its locks, and none of the threads that would release them.
        context = multiprocessing.get_context("spawn")
        return concurrent.futures.ProcessPoolExecutor(self.workers, mp_context=context)

    def _end(self) -> None:
        if isinstance(self.workers, int):
            self.pool.shutdown(wait=False, cancel_futures=True)


def employ(workers: int | concurrent.futures.Executor | None) -> Here | Team:
    """The executor that trains the trials.

    Raises:
        StudyError: for what isn't a number of processes, nor an executor.
    """
    if workers is None:
        return Here()
    if not is_count(workers) and not isinstance(workers, concurrent.futures.Executor):
        raise StudyError(
            f"workers must be a number of processes, a concurrent.futures.Executor, or None, got {workers!r}"
        )
    return Team(workers)


def _cut(trials: Sequence[Trial], width: int) -> Iterator[Sequence[Trial]]:
    for start in range(0, len(trials), width):
        yield trials[start : start + width]


def _is_death(error: BaseException) -> bool:
    scheduler = sys.modules.get("distributed.scheduler")
    return isinstance(error, (concurrent.futures.BrokenExecutor, getattr(scheduler, "KilledWorker", ())))  # type: ignore[arg-type]


def _payload(study: Study, name: str) -> bytes:
    import cloudpickle

    task = cloudpickle.dumps((study.executors[name][0], *study.task(name)))
    return cloudpickle.dumps((jax.__version__, sys.path, task))


def _train(payload: bytes, trials: Sequence[Trial]) -> list[Result]:
    """Runs on a worker."""
    return [result for results in _made(payload)(trials) for result in results]


def _measured(payload: bytes) -> Paces:
    """Runs on a worker."""
    _, *task = _task(payload)
    return race(*task)[0]


@functools.lru_cache(maxsize=8)
def _made(payload: bytes) -> Any:
    """A contender's executor with its compiled programs, for all parts that this worker is given."""
    executor, *task = _task(payload)
    return EXECUTORS[executor](*task)


def _task(payload: bytes) -> Any:
    import cloudpickle

    version, places, task = cloudpickle.loads(payload)
    if version != jax.__version__:
        raise StudyError(f"the worker has jax {jax.__version__}, the driver {version}: install the driver's there")
    sys.path += [place for place in places if place not in sys.path]
    return cloudpickle.loads(task)
