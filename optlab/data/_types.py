"""Batch, Split and Source: the types of data that everything else agrees on."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Protocol, TypedDict

import numpy as np

# Arrays by name whose first axis is the example: "inputs", "labels", and "weight" where some positions don't count.
Batch = dict[str, np.ndarray]


class DataError(ValueError):
    """Data that is missing, truncated, damaged or impossible to use. The message says what to do, in a line or two."""


class DamagedRecordError(DataError):
    """Raised by `Split.take` for examples that can't be read, when the run should go on without them.

    The run leaves them out and names them in its log of skips; no other example moves. To leave an example out, the
    split's batches must always hold a "weight", 1 for every value of the loss.

    Args:
        indices: examples that can't be read; not necessarily all of them.
        why: the reason.
    """

    def __init__(self, indices: Iterable[int], why: str):
        self.indices, self.why = tuple(int(i) for i in indices), why
        super().__init__(f"{'examples' if len(self.indices) > 1 else 'example'} {self.indices}: {why}")


class Split(Protocol):
    """Examples that can be taken by index, in any order and any number of times."""

    def __len__(self) -> int:
        """Returns the number of examples."""
        ...

    def take(self, indices: np.ndarray, epoch: int | None = None, seed: int = 0) -> Batch:
        """Returns the examples of these indices as a batch.

        Args:
            indices: integers in [0, len(self)), of shape (B,).
            epoch: number of the pass over the data; None means evaluation, where nothing is random.
            seed: the run's seed; randomness is a function of (seed, epoch, index), never of the rest of the batch.

        Raises:
            DamagedRecordError: for examples that the run should leave out.
        """
        ...


@dataclass(frozen=True, eq=False)
class InMemory:
    """Base class of a split whose data are the arrays in its dataclass fields, so that its fingerprint covers them all.

    The fingerprint of any other split covers 64 examples.
    """


class Facts(TypedDict, total=False):
    """Arguments of a model that a data set fixes: a factory's argument with one of these names is filled in.

    Attributes:
        outputs: classes, or regression targets.
        vocabulary: different tokens.
        length: tokens of a sequence.
    """

    outputs: int
    vocabulary: int
    length: int


@dataclass(frozen=True)
class Source:
    """A data set: its splits, and the facts that fix arguments of a model.

    Attributes:
        name: the data set's name in reports.
        train: examples to learn from.
        validation: held-out examples to choose hyperparameters on, or None; never a part of the test split.
        test: held-out examples for the final figure, or None.
        facts: such as {"outputs": 10} for ten classes, or {"vocabulary": 256, "length": 128} for text.
    """

    name: str
    train: Split
    validation: Split | None
    test: Split | None
    facts: Facts
