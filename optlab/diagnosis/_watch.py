"""An observer that says early, once, what is surely wrong with a run."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from typing import Any

from optlab.diagnosis._evidence import Evidence
from optlab.diagnosis._rules import diverged, starts_far_off
from optlab.diagnosis._rules_of_rates import decay_too_strong, rate_too_high
from optlab.runs import Record
from optlab.runs._metrics import as_columns

# Rules whose evidence stays. What is flat, noisy or memorized may yet change.
SURE = (diverged, starts_far_off, rate_too_high, decay_too_strong)
LEAST = 10  # records: fewer have no scale of their own


def _to_stderr(line: str) -> None:
    print(line, file=sys.stderr)


class Watch:
    """Diagnoses a run at each of its evaluations, and says the first ill that is sure, in one line.

    Args:
        settings: the config's keys, flat.
        say: gets the line; by default it goes to standard error.
    """

    def __init__(self, settings: Mapping[str, Any], say: Callable[[str], None] = _to_stderr):
        self.settings, self.say = dict(settings), say
        self.records: list[Record] | None = []

    def begin(self, start: int, steps: int) -> None:
        if start:  # the beginning, which everything is compared with, isn't here
            self.records = None

    def record(self, record: Record) -> None:
        if self.records is None:
            return
        self.records.append(record)
        is_due = len(self.records) >= LEAST and any(name.startswith("validation/") for name in record)
        if not is_due or not any("train/loss" in r for r in self.records):
            return
        evidence = Evidence("", as_columns(self.records), self.settings)
        found = next((finding for rule in SURE if (finding := rule(evidence)) is not None), None)
        if found is not None:
            self.say(f"optlab: step {record['step']:.0f}: {found.name}: {found.because}; try {found.try_}")
            self.records = None

    def end(self, outcome: str) -> None:
        pass
