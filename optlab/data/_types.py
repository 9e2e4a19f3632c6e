"""Batch, Split and Source: the types of data that everything else agrees on."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Protocol, TypedDict

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


@dataclass(frozen=True, repr=False)
class Source:
    """A data set: its splits, and the facts that fix arguments of a model. `print` shows its sizes and shapes.

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

    def __str__(self) -> str:
        return "\n".join(describe(self))

    __repr__ = __str__


def describe(source: Any) -> list[str]:
    """Lines about a source or what stands for one: its splits' sizes, an example's arrays, the facts."""
    named = (("training", source.train), ("validation", source.validation), ("test", source.test))
    sizes = [f"{len(split):,} {name}" for name, split in named if hasattr(split, "__len__")]
    name = getattr(source, "name", type(source.train).__name__)
    lines = [f"{name}: {', '.join(sizes)} examples" if sizes else f"{name}: batches of its own"]
    if hasattr(source.train, "take") and sizes:
        example = source.train.take(np.zeros(1, np.int64))
        arrays = [f"{key} {x.dtype}{list(np.shape(x)[1:])}" for key, x in example.items()]
        lines.append(f"  an example  {', '.join(arrays)}")
    if facts := getattr(source, "facts", None):
        lines.append(f"  facts       {', '.join(f'{key} {value}' for key, value in facts.items())}")
    return lines
