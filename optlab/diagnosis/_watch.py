"""An observer that says early, once, what is surely wrong with a run."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from typing import Any

from optlab.diagnosis._evidence import Evidence
from optlab.diagnosis._findings import Rule
from optlab.diagnosis._rules import diverged, starts_far_off
from optlab.diagnosis._rules_of_rates import decay_too_strong, rate_too_high
from optlab.runs import Record
from optlab.runs._metrics import as_columns

# Rules whose evidence stays, and from how many records on: one is enough for what is compared with a guess, three show
# that strong decay leaves nothing to learn with, and fewer than ten have no scale of their own. What is flat, noisy or
# memorized may yet change.
SURE = ((diverged, 10), (starts_far_off, 1), (rate_too_high, 10), (decay_too_strong, 3))
FIRST = 3  # steps that the run itself looks at, where it can say whether a jump was uphill


def _to_stderr(line: str) -> None:
    print(line, file=sys.stderr)


class Watch:
    """Says the first ill of a run that is sure, in one line, unless the run has reported one by itself.

    A rule is asked once it has the records that it needs, and from then on at each evaluation.

    Args:
        settings: the config's keys, flat.
        say: gets the line; by default it goes to standard error.
    """

    def __init__(self, settings: Mapping[str, Any], say: Callable[[str], None] = _to_stderr):
        self.settings, self.say = dict(settings), say
        self.records: list[Record] | None = []
        self.asked: set[Rule] = set()

    def begin(self, start: int, steps: int) -> None:
        if start:  # the beginning, which everything is compared with, isn't here
            self.records = None

    @property
    def has_reported(self) -> bool:
        """True if nothing more will be said."""
        return self.records is None

    def reported(self) -> None:
        """Called if the run itself has reported what is wrong: one line is enough."""
        self.records = None

    def record(self, record: Record) -> None:
        if self.records is None:
            return
        self.records.append(record)
        count, is_evaluated = len(self.records), any(name.startswith("validation/") for name in record)
        asked = [rule for rule, least in SURE if count >= least and (is_evaluated or rule not in self.asked)]
        if record["step"] <= FIRST or not asked or not any("train/loss" in r for r in self.records):
            return
        self.asked.update(asked)
        evidence = Evidence("", as_columns(self.records), self.settings)
        found = next((finding for rule in asked if (finding := rule(evidence)) is not None), None)
        if found is not None:
            self.say(f"optlab: step {record['step']:.0f}: {found.name}: {found.because}; try {found.try_}")
            self.records = None

    def end(self, outcome: str) -> None:
        pass
