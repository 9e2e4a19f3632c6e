"""Batches as a function of (seed, step), drawn in one of four ways and prepared while the device works."""

import sys
from collections import deque
from collections.abc import Callable, Generator, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Literal, Protocol, TypeAlias, get_args

import numpy as np

from optlab._integers import check_seed, is_count
from optlab.data._damaged import take_whole
from optlab.data._random import DRAW, SHUFFLE, permutation, random_bits
from optlab.data._rows import check_order, check_rows, map_arrays, named_arrays
from optlab.data._types import Batch, DataError, Split

Draw: TypeAlias = Literal["shuffled", "replacement", "ordered", "stream"]


def _check_batch_size(batch_size: int) -> None:
    if not is_count(batch_size):
        raise ValueError(f"batch_size must be a number of examples, 1 or more, got {batch_size!r}")


class StepBatches(Protocol):
    """Protocol of training data: a batch for every step."""

    def batch(self, step: int) -> Batch:
        """Returns the batch of this step, counted from 0; the same one every time."""
        ...


class Batches:
    """Endless sequence of training batches of a split.

    The epochs follow each other without a gap: example i of the batch of a step is number step · batch_size + i of the
    sequence. So an epoch shows every example exactly once, and a batch may span two epochs. A damaged example
    (`DamagedRecordError`) is replaced by another with weight 0; no other moves.

    Other ways to draw: "replacement" takes each example at random, independently, so that gradients are unbiased at
    every step and an epoch misses some examples; "ordered" takes the data's order, epoch after epoch, which biases the
    path where neighbours are alike (sorted by class, say); "stream" takes that order once, and ends.

    Args:
        split: the examples.
        batch_size: number of examples in a batch; at most as many as the split has.
        seed: chooses the order of every epoch, and the augmentation; a whole number in [0, 2**32).
        draw: "shuffled" every epoch, with "replacement", "ordered" as the data is, or as a "stream".

    Attributes:
        damaged: for each step the examples that were left out of its batch, with the reason; an example that a batch
            would have held in two epochs is listed twice. Readers may remove the entries that they have read.
    """

    def __init__(self, split: Split, batch_size: int, *, seed: int = 0, draw: Draw = "shuffled"):
        _check_batch_size(batch_size)
        check_seed(seed)
        if draw not in get_args(Draw):
            raise ValueError(f"draw must be one of {', '.join(map(repr, get_args(Draw)))}, got {draw!r}")
        if batch_size > len(split):
            raise ValueError(f"batch_size must be at most {len(split)}, the examples of the split, got {batch_size}")
        self.split, self.batch_size, self.seed, self.draw = split, int(batch_size), int(seed), draw
        self.damaged: dict[int, list[tuple[int, str]]] = {}
        # A batch spans two epochs at most, and steps mostly come in order.
        self._order = lru_cache(maxsize=2)(self._drawn)

    def _drawn(self, epoch: int) -> np.ndarray:
        """Returns the examples of an epoch, in order."""
        size = len(self.split)
        if self.draw == "shuffled":
            return permutation(size, SHUFFLE, self.seed, epoch)
        if self.draw == "replacement":
            return (random_bits(DRAW, self.seed, epoch, np.arange(size)) % np.uint64(size)).astype(np.int64)
        return np.arange(size)

    def check_steps(self, steps: int) -> None:
        """Refuses more steps than a stream has batches.

        Raises:
            DataError: it names the number of batches.
        """
        if self.draw == "stream" and steps > (held := len(self.split) // self.batch_size):
            raise DataError(
                f"draw='stream' takes each of the {len(self.split)} examples once, which are {held} batches of "
                f"{self.batch_size}: {steps} steps need another draw, or smaller batches"
            )

    @property
    def steps_per_epoch(self) -> float:
        """Number of batches that show every example once; seldom a whole number."""
        return len(self.split) / self.batch_size

    def indices(self, step: int) -> tuple[np.ndarray, np.ndarray]:
        """Returns the examples in the batch of this step and the epoch of each: two integer arrays of shape (B,)."""
        if step < 0:
            raise ValueError(f"step must be 0 or more, got {step}")
        self.check_steps(step + 1)
        epochs, positions = np.divmod(step * self.batch_size + np.arange(self.batch_size), len(self.split))
        parts = [self._order(epoch)[positions[epochs == epoch]] for epoch in range(epochs[0], epochs[-1] + 1)]
        return np.concatenate(parts), epochs

    def batch(self, step: int, rows: slice = slice(None)) -> Batch:
        """Returns the batch of this step, a function of (seed, step) alone; only the given rows are read."""
        indices, epochs = (x[rows] for x in self.indices(step))
        parts: list[Batch] = []
        damaged: list[tuple[int, str]] = []
        for epoch in range(epochs[0], epochs[-1] + 1):
            part, left_out = take_whole(self.split, indices[epochs == epoch], epoch, self.seed)
            if epoch < epochs[-1]:  # the split may fill the same arrays again
                part = map_arrays(np.array, part)
            parts.append(part)
            damaged += left_out.items()
        if damaged:
            self.damaged[step] = damaged
        return parts[0] if len(parts) == 1 else map_arrays(lambda *arrays: np.concatenate(arrays), *parts)


@dataclass(frozen=True)
class Share:
    """Rows of every batch that belong to this process, one of several.

    Attributes:
        batches: the whole batches. `Batches` reads this process' rows alone; any other kind makes the whole batch, of
            which the rows are taken.
        rows: maps the number of examples in a batch to this process' slice of them.
        batch_size: examples of the whole batch.
    """

    batches: StepBatches
    rows: Callable[[int], slice]
    batch_size: int

    def batch(self, step: int) -> tuple[Batch, int]:
        """Returns this process' rows of the batch of this step, and the number of examples in the whole batch."""
        if isinstance(self.batches, Batches):
            return self.batches.batch(step, self.rows(self.batch_size)), self.batch_size
        batch = self.batches.batch(step)
        examples = len(next(x for _, x in named_arrays(batch)))
        check_rows(batch, examples, f"batch({step})")
        return map_arrays(lambda x: x[self.rows(examples)], batch), examples


def evaluation_starts(split: Split, batch_size: int, batches: int | None = None) -> list[int]:
    """Returns the first example of each of a split's batches, or of so many of them, evenly spaced."""
    starts = list(range(0, len(split), batch_size))
    if batches is None or batches >= len(starts):
        return starts
    return [starts[i * len(starts) // batches] for i in range(batches)]


def evaluation_batches(
    split: Split,
    batch_size: int,
    rows: Callable[[int], slice] = slice,
    on_damage: Callable[[dict[int, str]], None] | None = None,
    *,
    batches: int | None = None,
) -> Iterator[Batch]:
    """Yields the whole split once, in order and without randomness; the last batch may be short.

    Args:
        split: the examples.
        batch_size: number of examples in a batch.
        rows: maps the number of examples in a batch to the slice that is read: by default all.
        on_damage: called with the damaged examples and the reasons; they have weight 0.
        batches: as many of them, evenly spaced and always the same; None yields all.
    """
    _check_batch_size(batch_size)
    for start in evaluation_starts(split, batch_size, batches):
        indices = np.arange(start, min(start + batch_size, len(split)))
        batch, damaged = take_whole(split, indices[rows(len(indices))])
        if damaged and on_damage is not None:
            on_damage(damaged)
        yield batch


def check_splits(train: Any = None, validation: Any = None, test: Any = None, *, seed: int = 0) -> None:
    """Refuses splits whose rows come in another order than asked for, as judged by two rows of each.

    The rows are taken as in the run: of the training split with an epoch, of the others without. A held-out split may
    support ascending order alone, as files do; what it raises for another order is ignored, since the run never asks
    for one.

    Args:
        train: examples to learn from, a split or anything else.
        validation: held-out ones.
        test: held-out ones.
        seed: that of the run.

    Raises:
        DataError: it names the split.
    """
    for name, split, how in (("train", train, (0, seed)), ("validation", validation, ()), ("test", test, ())):
        if name != "train" and split is not None and not _is_split(split):
            raise TypeError(
                f"{name} must be a split, with a length and take(indices, epoch, seed), or None; got "
                f"{type(split).__name__}: it is seen as a whole, in order"
            )
        makes_its_own = callable(getattr(split, "batch", None))
        if split is None or makes_its_own or not _is_split(split) or len(split) < 2:
            continue
        ends = np.array([0, len(split) - 1])
        once, again = (map_arrays(np.array, take_whole(split, ends, *how)[0]) for _ in range(2))
        try:
            reversed_ = take_whole(split, ends[::-1].copy(), *how)[0]
        except Exception:
            if name == "train":
                raise
            continue
        check_order(name, once, again, reversed_)


def _is_split(data: Any) -> bool:
    """Returns whether examples can be taken by index; NumPy's and JAX's arrays have `take` and a length, too."""
    return callable(getattr(data, "take", None)) and hasattr(data, "__len__") and not hasattr(data, "shape")


def prefetch(
    batches: StepBatches | Share,
    start: int,
    stop: int,
    *,
    place: Callable[[Any], Any] = lambda batch: batch,
    depth: int = 2,
) -> Generator[Any, None, None]:
    """Yields the batches of the steps start … stop − 1, prepared by a thread while the caller uses earlier ones.

    An error is raised at the step whose batch it concerns, after all earlier ones. Closing the iterator waits for
    the batch under way and drops the rest.

    Args:
        batches: anything with `batch(step)`.
        start: first step.
        stop: step after the last one.
        place: applied to each batch by the thread, for example to put it on the device.
        depth: number of batches prepared ahead.
    """
    if depth < 1:
        raise ValueError(f"depth must be 1 or more, got {depth}")
    return _prefetch(lambda step: place(batches.batch(step)), start, stop, depth)


def _prefetch(prepare: Callable[[int], Any], start: int, stop: int, depth: int) -> Generator[Any, None, None]:
    ahead: deque[Future] = deque()
    with ThreadPoolExecutor(1, thread_name_prefix="optlab-prefetch") as worker:
        try:
            for step in range(start, min(start + depth, stop)):
                ahead.append(worker.submit(prepare, step))
            for step in range(start, stop):
                batch = ahead.popleft().result()
                if step + depth < stop:
                    ahead.append(worker.submit(prepare, step + depth))
                yield batch
        finally:
            for future in ahead:
                future.cancel()


class _GrainBatches:
    """Batches of a Grain MapDataset, indexed by step."""

    def __init__(self, dataset: Any):
        self._dataset = dataset

    def batch(self, step: int) -> Batch:
        batch = self._dataset[step]
        if not isinstance(batch, dict):
            raise TypeError(
                "a Grain data set must give batches as a dict of arrays with the example first; got "
                f"{type(batch).__name__}: end it with .map(to a dict).batch(batch_size)"
            )
        return batch


def as_batches(data: Any, batch_size: int, seed: int = 0, draw: Draw = "shuffled") -> StepBatches:
    """Makes training batches from a split, or takes data that makes its own.

    Args:
        data: a `Split`; anything with `batch(step)`, used as it is; or a Grain `MapDataset` of batches, used by index,
            which its maker has seeded, shuffled, repeated and batched.
        batch_size: examples in a batch of a `Split`.
        seed: chooses order and augmentation of a `Split`.
        draw: how the examples of a `Split` are drawn, see `Batches`; refused for data that makes its own batches.
    """
    # Only someone who imported Grain can have a Grain data set. This comes first: its `batch` is another method.
    grain = sys.modules.get("grain")
    makes_its_own = callable(getattr(data, "batch", None))
    if draw != "shuffled" and makes_its_own:
        raise ValueError(
            f"draw={draw!r} is for splits; {type(data).__name__} makes batches of its own: draw them there"
        )
    if grain is not None and isinstance(data, grain.MapDataset):
        return _GrainBatches(data)
    if grain is not None and isinstance(data, grain.IterDataset | grain.DatasetIterator):
        raise TypeError(
            f"data must give a step's batch by its number, which a Grain {type(data).__name__} can't: give the "
            "MapDataset that it is made of, without to_iter_dataset()"
        )
    if makes_its_own:
        return data
    if _is_split(data):
        return Batches(data, batch_size, seed=seed, draw=draw)
    raise TypeError(
        f"data must be a split (such as optlab.data.digits().train), have a batch(step) method, or be a Grain "
        f"MapDataset; got {type(data).__name__}. Arrays of your own: optlab.data.arrays(inputs, labels).train"
    )
