"""The folder of `train(run=…)`: everything of a run in one place, as `optlab train` keeps it."""

from __future__ import annotations

import functools
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from optlab._processes import is_first, once
from optlab.runs import Checkpoints, MetricsFile, Observer, StepLog, plot_curves
from optlab.runs._folder import check_claim, claim
from optlab.runs._place import run_place
from optlab.training.progress import Progress
from optlab.training.workload import Workload

if TYPE_CHECKING:
    from optlab.training.history import History


class RunFolder:
    """The parts of a run in its folder, made of `train`'s arguments; without a folder they are as they were given.

    Args:
        run: the folder, or None.
        workload: what is trained.
        checkpoints: the folder's own, given where they are to be saved more or less often; None makes them.
        skip_log: None is the folder's.
        observers: beside those that the folder needs, and a `Progress` where there is a terminal.

    Raises:
        PlaceError: if a run can't have its folder there.
        ValueError: for checkpoints in another folder.
    """

    def __init__(
        self,
        run: str | Path | None,
        workload: Workload,
        *,
        checkpoints: Checkpoints | None,
        skip_log: StepLog | None,
        observers: Sequence[Observer],
    ):
        self.folder = None if run is None else run_place(run)
        self.checkpoints, self.skip_log, self.observers = checkpoints, skip_log, list(observers)
        if self.folder is None:
            return
        once(functools.partial(check_claim, self.folder))
        own = self.folder / "checkpoints"
        if checkpoints is None:
            self.checkpoints = Checkpoints(own)
        elif checkpoints.folder != own.absolute():
            raise ValueError(f"with run={str(run)!r} checkpoints must be Checkpoints({str(own)!r}, every=…), or None")
        if skip_log is None:
            self.skip_log = StepLog(self.folder / "skipped.jsonl")
        if not any(isinstance(o, MetricsFile) for o in observers):
            self.observers.insert(0, MetricsFile(self.folder / "metrics.jsonl"))
        if sys.stdout.isatty() and not any(isinstance(o, Progress) for o in observers):
            about, metric = workload.sizes(), workload.target.metric
            self.observers.append(Progress(batch_size=workload.batch_size, metric=metric, about=about))

    def claim(self, about: Mapping[str, Any]) -> None:
        """Makes the folder, and writes what the run is into its config.json; the checkpoints' lock is held.

        Raises:
            PlaceError: if something else is there.
        """
        if self.folder is not None:
            once(functools.partial(claim, self.folder, about))

    def concluded(self, history: History) -> History:
        """Draws the curves and prints the summary of a run that has a folder."""
        if self.folder is not None and is_first():
            draw_curves(self.folder)
            print(f"{history}\n  folder      {self.folder}")
        return history


def draw_curves(folder: Path) -> bool:
    """Draws the curves, if anything was logged. Returns False, with a line on stderr, if the disk refuses."""
    try:
        if (folder / "metrics.jsonl").stat().st_size:
            plot_curves(folder)
    except OSError as error:
        print(f"optlab: {folder / 'curves.png'} can't be drawn ({error}); all else is as it was", file=sys.stderr)
        return False
    return True
