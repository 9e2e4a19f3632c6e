"""The driver: has a study's trials trained, and alone writes what comes of them."""

from __future__ import annotations

import concurrent.futures
import contextlib
from collections.abc import Callable, Sequence
from pathlib import Path

from optlab.compare._arguments import check_folder
from optlab.compare.choosing import decided
from optlab.compare.study import Study
from optlab.compare.trials import Ledger, Result
from optlab.compare.workers import Here, Team, employ
from optlab.runs._lock import WriterLock


def run_study(
    study: Study,
    folder: str | Path | None = None,
    *,
    progress: Callable[[str, Sequence[Result]], None] | None = None,
    workers: int | concurrent.futures.Executor | Here | Team | None = None,
) -> dict[str, Result]:
    """Trains what isn't finished yet, and gives the results of all trials of the study by their ids.

    Args:
        study: from `make_study`.
        folder: where each finished trial is a line: the same call goes on where it stood, and one with more studies,
            trials, seeds, finals or contenders trains no more than what is new.
        progress: called with the contender's name and the trials that were just finished; before them with "" as the
            name and those that were there already: of the tunings, and later of the winners' fresh trainings.
        workers: who trains: a number of processes on this machine, or any executor; None is this process.
            What `employ` makes of these keeps its compiled programs for a further call.

    Raises:
        StudyError: if the folder holds another study.
    """
    check_folder(folder)
    lock = contextlib.nullcontext() if folder is None else WriterLock(Path(folder).expanduser()).held()
    employed = contextlib.nullcontext(workers) if isinstance(workers, Here | Team) else employ(workers)
    with lock, employed as train:
        ledger = Ledger(folder, study.about() if folder is not None else {})
        study = decided(study, train.paces, ledger.folder)
        for phase in (study.searches, lambda c, s: study.finals_of(c, s, ledger.results)):
            every = {name: [t for s in range(study.studies) for t in phase(name, s)] for name in study.contenders}
            if progress is not None:
                ids = [t.id for trials in every.values() for t in trials]
                progress("", [ledger.results[i] for i in ids if i in ledger.results])
            parts = {name: [t for t in trials if t.id not in ledger.results] for name, trials in every.items()}
            for name, results in train(study, parts, ledger.folder):
                ledger.add(results)
                if progress is not None:
                    progress(name, results)
    return {t.id: ledger.results[t.id] for t in study.all_trials(ledger.results)}
