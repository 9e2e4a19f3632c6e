"""The examples that a run left out because they can't be read: logged, counted over all of its calls, bounded."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable, Mapping
from typing import Any

import jax

from optlab._processes import gathered, is_first
from optlab.data import DataError
from optlab.runs import StepLog
from optlab.training.workload import Workload


class DamagedExamples:
    """The examples that `optlab.data.DamagedRecordError` named.

    Args:
        workload: whose they are; its loss has to leave them out.
        limit: how many different examples there may be.
        log: where they have a line: in training every time that one is left out, in evaluation the first time.
    """

    def __init__(self, workload: Workload, limit: int, log: StepLog | None):
        self.workload, self.limit, self.log = workload, limit, log
        self.known: set[tuple[str, int]] = set()
        self._found: list[dict[str, Any]] = []
        self._is_weighted = False

    def add(self, step: int, split: str, damaged: Iterable[tuple[int, str]]) -> None:
        """Adds what this process found; one process logs it at once, several do at the next `settle`.

        Raises:
            DataError: if the loss or a metric would count what stands in for them; as `settle`.
        """
        for i, why in damaged:
            self._check_weighted(split, i, why)
            self._found.append({"step": step, "split": split, "examples": [i], "why": why})
        if jax.process_count() == 1:
            self.settle()

    def _check_weighted(self, split: str, example: int, why: str) -> None:
        if self._is_weighted:
            return
        if names := self.workload.unweighted(split):
            raise DataError(
                f"{split} example {example} is damaged ({why}) and can't be left out: {', '.join(names)} counts "
                "examples whose weight is 0; it must return a value for every example, not their mean, or (in a loss "
                'of a Workload of your own) take its sum and weight from the batch\'s "weight"'
            )
        self._is_weighted = True

    def settle(self) -> None:
        """Logs what all processes found; all of them call it at the same step.

        Raises:
            DataError: if there are more than may be.
        """
        found, self._found = self._found, []
        everyones = gathered(json.dumps(found)) if jax.process_count() > 1 else [json.dumps(found)]
        for entry in sorted((e for text in everyones for e in json.loads(text)), key=lambda e: e["step"]):
            example = (entry["split"], entry["examples"][0])
            if is_first() and example not in self.known:
                print(f"optlab: {example[0]} example {example[1]} is left out: {entry['why']}", file=sys.stderr)
            if is_first() and self.log is not None and (example not in self.known or example[0] == "train"):
                self.log.add(entry)
            self.known.add(example)
        if len(self.known) > self.limit:
            raise DataError(
                f"{len(self.known)} examples are damaged, more than skip_limit={self.limit}: "
                f"{', '.join(f'{split} {i}' for split, i in sorted(self.known)[:20])}"
            )

    def dump(self) -> dict[str, Any]:
        """As JSON data, for a checkpoint."""
        return {"damaged": sorted(self.known)}

    def load(self, notes: Mapping[str, Any]) -> None:
        """The inverse of dump."""
        self.known = {(split, index) for split, index in notes["damaged"]}
