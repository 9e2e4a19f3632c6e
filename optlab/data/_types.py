"""The types that everything agrees on: what a batch, a split and a source of data are."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Protocol

import numpy as np

# Arrays by name whose first axis is the example: "inputs", "labels", and "weight" where some positions must not count.
Batch = dict[str, np.ndarray]


class DataError(ValueError):
    """Data that is missing, truncated, damaged or impossible to use; one or two lines that say what to do."""


class DamagedRecordError(DataError):
    """What `Split.take` raises for examples that can't be read, where the run should go on without them.

    They are left out and named in the log of skips; every other example is seen as if they were there. For that the
    split's batches hold a "weight" at all times, 1 for every value of the loss.

    Args:
        indices: Those that can't be read; not necessarily all of them.
        why: What is wrong with them.
    """

    def __init__(self, indices: Iterable[int], why: str):
        self.indices, self.why = tuple(int(i) for i in indices), why
        super().__init__(f"{'examples' if len(self.indices) > 1 else 'example'} {self.indices}: {why}")


class Split(Protocol):
    """Examples that can be taken by their index, in any order and any number of times."""

    def __len__(self) -> int:
        """The number of examples."""
        ...

    def take(self, indices: np.ndarray, epoch: int | None = None, seed: int = 0) -> Batch:
        """The examples of these indices, as a batch.

        Args:
            indices: Integers in [0, len(self)), of shape (B,).
            epoch: Which pass over the data it is; None means evaluation, where nothing is random.
            seed: The run's seed; randomness is a function of (seed, epoch, index), never of the rest of the batch.

        Raises:
            DamagedRecordError: For examples that the run should leave out.
        """
        ...


@dataclass(frozen=True)
class Source:
    """A data set: its splits, and what a model must be told about it.

    Attributes:
        name: What the data set is called in reports.
        train: The examples to learn from.
        validation: Held-out examples to choose hyperparameters on, or None; never a part of the test split.
        test: Held-out examples for the final figure, or None.
        facts: Arguments of a model that the data fixes: {"outputs": 10} for ten classes or ten regression targets,
            {"vocabulary": 256, "length": 128} for text.
    """

    name: str
    train: Split
    validation: Split | None
    test: Split | None
    facts: Mapping[str, int]
