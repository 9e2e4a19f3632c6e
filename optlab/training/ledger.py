"""The records that a run keeps on the host beside its state, and saves with it."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from typing import Any

from optlab.training.clock import Clock
from optlab.training.damaged import DamagedExamples
from optlab.training.guard import Skips
from optlab.training.judge import Judge


@dataclass(frozen=True)
class Ledger:
    """The evaluations' verdict, the steps that were skipped, the examples that can't be read, and the training time."""

    judge: Judge
    skips: Skips
    damaged: DamagedExamples
    clock: Clock = field(default_factory=Clock)

    def dump(self) -> dict[str, Any]:
        """As JSON data, for a checkpoint."""
        return {**self.judge.dump(), **self.skips.dump(), **self.damaged.dump()}

    def load(self, notes: Mapping[str, Any], changed: Collection[str]) -> None:
        """The inverse of dump, under keys of the config that have other values since; see `Judge.load`."""
        self.judge.load(notes, changed)
        self.skips.load(notes)
        self.damaged.load(notes)

    def summary(self) -> dict[str, Any]:
        """As JSON data, for the run's summary."""
        return {**self.judge.summary(), **self.skips.dump(), **self.damaged.dump()}
