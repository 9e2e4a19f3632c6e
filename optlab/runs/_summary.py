"""summary.json: how a run ended, and what came of it."""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from optlab.runs._metrics import Record

NAME = "summary.json"


def read_summary(folder: Path) -> dict[str, Any] | None:
    """A run's summary; None if the run is going on, or was killed."""
    try:
        return json.loads((folder / NAME).read_text())
    except FileNotFoundError:
        return None


class SummaryFile:
    """An observer that writes summary.json when the run ends, also by an error. A run that goes on has none.

    The file holds the outcome, the step that this call started from, the run's steps, this call's seconds
    (compilation and evaluation included), the last record, and what `found` adds.

    Args:
        folder: the run's.
        found: returns what else is known at the end: the best evaluation, the target, the steps that were skipped.
    """

    def __init__(self, folder: Path, found: Callable[[], Mapping[str, Any]]):
        self.path, self.found = folder / NAME, found
        self.last: Record = {}

    def begin(self, start: int, steps: int) -> None:
        self.path.unlink(missing_ok=True)
        self.start, self.steps, self.began = start, steps, time.monotonic()

    def record(self, record: Record) -> None:
        self.last = record

    def end(self, outcome: str) -> None:
        seconds = round(time.monotonic() - self.began, 3)
        about = {"outcome": outcome, "start": self.start, "steps": self.steps, "seconds": seconds}
        part = self.path.with_suffix(".part")
        try:
            part.write_text(json.dumps({**about, **self.found(), "last": self.last}, indent=2) + "\n")
            os.replace(part, self.path)  # a kill leaves no summary or a whole one
        except OSError as error:  # a full disk may be what ends the run, with an error of its own
            print(f"optlab: {self.path} can't be written ({error})", file=sys.stderr)

    def restore(self, outcome: str, start: int, steps: int, records: Sequence[Record]) -> None:
        """Writes the summary of a run that is over, unless it is there: a kill may have come just before it."""
        if not self.path.exists():
            self.begin(start, steps)
            self.last = records[-1] if records else {}
            self.end(outcome)
