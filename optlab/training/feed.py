"""A run's training batches, on their way to the devices."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from optlab.data import Batch, Batches, Share, as_batches, check_splits
from optlab.training.strategies import Parallel
from optlab.training.workload import Workload


class Feed:
    """The training batches, each placed on the devices before anybody may take another.

    A loader of the user's may fill the same buffer for every batch.

    Raises:
        ValueError: if the data can't give as many batches, or its splits have examples in common.
    """

    def __init__(self, workload: Workload, parallel: Parallel, *, seed: int, steps: int):
        data = workload.data
        self._batches = as_batches(data.train, workload.batch_size, seed, workload.draw)
        if isinstance(self._batches, Batches):
            self._batches.check_steps(steps)
        check_splits(data.train, data.validation, data.test, seed=seed)
        self._shares = Share(self._batches, parallel.rows, workload.batch_size)
        self._place = parallel.place_batch
        self._taken = threading.Lock()

    def batch(self, index: int) -> Any:
        """This process' share of the batch of that index, from 0, placed."""
        with self._taken:
            return self._place(*self._shares.batch(index))

    def again(self, t: int) -> Iterator[tuple[str, Batch]]:
        """The whole batch of step t on the host, with its name."""
        with self._taken:
            yield f"step {t}", self._batches.batch(t - 1)

    def damaged(self, t: int) -> Sequence[tuple[int, str]]:
        """The examples of step t's batch that couldn't be read, each with the reason."""
        return self._batches.damaged.pop(t - 1, ()) if isinstance(self._batches, Batches) else ()

    def counts(self, t: int) -> dict[str, float]:
        """The examples drawn up to step t, and as epochs; empty where the data makes its own batches."""
        if not isinstance(self._batches, Batches):
            return {}
        drawn = t * self._batches.batch_size
        return {"examples": drawn, "epoch": round(drawn / len(self._batches.split), 4)}

    @property
    def examples(self) -> Callable[[int], list[int]] | None:
        """Step t -> the examples of its batch; None where the data makes its own batches."""
        batches = self._batches
        return (lambda t: batches.indices(t - 1)[0].tolist()) if isinstance(batches, Batches) else None
