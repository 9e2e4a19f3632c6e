"""The data as a run sees them: samples of its splits, the labels of its batches, and figures made of them."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from optlab.data import Draw, as_batches

SAMPLE = 4096  # examples of a split; a share of one per cent is then known to a sixth of itself
NEIGHBOURS, COMPARED = 5, 1000  # of each of so many examples
BATCHES = 16
COLUMNS = 64  # of labels
SHUFFLES = 20
SAME = 0.99  # of the tokens: a few may be padding
PLATEAU = 0.9
EXACT = 1e-6  # of a feature's variance: float32 rounds to a tenth of its root
ALL = 2**28  # bytes of a split that is read as a whole


@dataclass(frozen=True)
class Examples:
    """Examples of a split: inputs as rows of numbers (N, d), labels as they are; None where they are no such arrays."""

    inputs: np.ndarray | None
    labels: np.ndarray | None
    is_whole: bool

    @property
    def is_numeric(self) -> bool:
        """True if the inputs are numbers and not tokens."""
        return self.inputs is not None and self.inputs.dtype.kind == "f"

    @property
    def has_classes(self) -> bool:
        """True if there is one class an example."""
        return self.labels is not None and self.labels.ndim == 1 and self.labels.dtype.kind in "iu"

    @cached_property
    def entropy(self) -> float | None:
        """The cross-entropy, in nats, of guessing each class or token as often as it is there; None of numbers."""
        if self.labels is None or self.labels.dtype.kind not in "iu" or not self.labels.size:
            return None
        shares = np.unique(self.labels, return_counts=True)[1] / self.labels.size
        return float(-np.sum(shares * np.log(shares)))


@dataclass(frozen=True)
class DataProbe:
    """What was read of a run's data.

    Attributes:
        train: training examples, without augmentation.
        validation: held-out ones; None if there are none.
        batches: the labels of batches from all over the first epoch, each (B,) or (B, d).
    """

    train: Examples
    validation: Examples | None
    batches: tuple[np.ndarray, ...] = ()

    @cached_property
    def overlap(self) -> float | None:
        """The share of the held-out rows that are among the training rows; None where not all of these were read."""
        if self.validation is None or not self.train.is_whole or self.train.inputs is None:
            return None
        if self.validation.inputs is None or not len(self.validation.inputs):
            return None
        ours, theirs = self.train.inputs, self.validation.inputs
        share = _share_of(theirs, ours)
        # Short pieces of text are alike by chance, and the seldomer the longer they are; copies are at any length.
        if theirs.dtype.kind in "iu" and share < PLATEAU * _share_of(theirs[:, :-1], ours[:, :-1]):
            return 0.0
        return share

    @cached_property
    def repeats(self) -> float:
        """The share of the training rows that are there more than once."""
        rows = [] if self.train.inputs is None else _rows(self.train.inputs)
        return 1 - len(set(rows)) / len(rows) if rows else 0.0

    @cached_property
    def is_coarse(self) -> bool:
        """True if rows are alike by chance: there are few values, or few features.

        Tokens follow from the one before, so that there are as many rows as their collisions in pairs allow.
        """
        inputs = self.train.inputs
        if inputs is None:
            return True
        if inputs.dtype.kind in "iu" and inputs.shape[1] > 1:
            one, two = (_collision(inputs[:, :-1]), _collision(inputs[:, :-1].astype(np.int64) * 2**31 + inputs[:, 1:]))
            return bool(one + (two - one) * (inputs.shape[1] - 1) < np.log(1000.0 * len(inputs)))
        kinds = sum(np.log(max(1, len(np.unique(column)))) for column in inputs[:512].T[:64])
        return bool(kinds < np.log(1000.0 * len(inputs)))

    @cached_property
    def disorder(self) -> float | None:
        """How unlike the batches' labels are, as a multiple of what chance makes them; 1 for shuffled examples.

        The variance of the batches' means over that of the examples, times B: of numbers, or of the shares of classes
        and tokens. Summed over the labels' columns it is the same for any unit and any number of them.
        """
        rows = [features for batch in self.batches if (features := _features(batch)) is not None]
        if len(rows) < 4 or len({r.shape for r in rows}) > 1:
            return None
        every, size = np.concatenate(rows), len(rows[0])
        spread = float(every.var(axis=0, ddof=1).sum())
        between = float(np.var([r.mean(axis=0) for r in rows], axis=0, ddof=1).sum())
        return between * size / spread if spread > 0 and size > 1 else None


def _share_of(rows: np.ndarray, others: np.ndarray) -> float:
    """The share of rows that are among the others."""
    known = set(_rows(others))
    return float(np.mean([row in known for row in _rows(rows)]))


def _collision(values: np.ndarray) -> float:
    """Minus the logarithm of the probability that two of the values are the same (Rényi's entropy of order 2)."""
    counts = np.unique(values, return_counts=True)[1]
    return -float(np.log(np.sum((counts / values.size) ** 2)))


def _features(labels: np.ndarray) -> np.ndarray | None:
    """What is averaged of labels: rows (B, d) of numbers, or of the shares of classes or tokens."""
    if labels.dtype.kind == "f":
        rows = labels.reshape(len(labels), -1)
        return np.asarray(rows[:, :: max(1, rows.shape[1] // COLUMNS)], np.float64)
    if labels.dtype.kind not in "iu":
        return None
    tokens = labels.reshape(len(labels), -1) % COLUMNS  # of many tokens some share a column
    return np.stack([np.mean(tokens == c, axis=1) for c in range(COLUMNS)], axis=1)


def agreement(examples: Examples) -> float | None:
    """By how many standard deviations of chance the labels of near neighbours agree; None where that has no meaning.

    0 where labels have nothing to do with inputs (Cover and Hart 1967: a near neighbour's label is informative).
    """
    x, y = examples.inputs, examples.labels
    if x is None or y is None or len(x) < 100:
        return None
    if not examples.is_numeric:
        if x.dtype.kind not in "iu" or y.dtype.kind not in "iu":
            return None
        if y.ndim > 1:
            return _agreement_of_tokens(x, y)
        x = _features(x)  # of a bag of tokens
    assert x is not None
    if not np.isfinite(x).all() or y.ndim > 2 or (y.dtype.kind == "f" and y.ndim == 2 and y.shape[1] != 1):
        return None
    pick = np.linspace(0, len(x) - 1, min(len(x), COMPARED)).astype(int)
    x, y = np.asarray(x[pick], np.float64), y[pick].reshape(-1) if y.dtype.kind == "f" else y[pick]
    if y.ndim != 1 or len(np.unique(y)) < 2:
        return None
    spread = x.std(axis=0)
    x = (x - x.mean(axis=0))[:, spread > 0] / spread[spread > 0]
    squares = (x**2).sum(axis=1)
    distances = squares[:, None] + squares - 2 * x @ x.T
    np.fill_diagonal(distances, np.inf)
    near = y[np.argpartition(distances, NEIGHBOURS, axis=1)[:, :NEIGHBOURS]]
    if y.dtype.kind in "iu":
        chance = float(np.sum((np.unique(y, return_counts=True)[1] / len(y)) ** 2))
        # Neighbourhood is mutual, so that pairs count twice.
        deviation = np.sqrt(2 * chance * (1 - chance) / near.size)
        return float((np.mean(near == y[:, None]) - chance) / deviation)
    ranks, means = np.argsort(np.argsort(y)), near.mean(axis=1)
    return float(np.corrcoef(ranks, np.argsort(np.argsort(means)))[0, 1] * np.sqrt(len(y) / 2))


def _agreement_of_tokens(x: np.ndarray, y: np.ndarray) -> float | None:
    """The same for a label at every token: by what an input and its label tell of each other, beside shuffled rows.

    The mutual information of the pairs at all places, in nats, is compared with that after the rows of labels have
    been shuffled, which keeps how often each token stands at each place.
    """
    if x.shape != y.shape:
        return None
    pick = np.linspace(0, len(x) - 1, min(len(x), COMPARED)).astype(int)
    x, y, random = x[pick] % COLUMNS, y[pick] % COLUMNS, np.random.default_rng(0)

    def told(labels: np.ndarray) -> float:
        share = np.bincount((COLUMNS * x + labels).ravel(), minlength=COLUMNS**2).reshape(COLUMNS, COLUMNS) / x.size
        alone = share.sum(axis=1, keepdims=True) * share.sum(axis=0)
        return float(np.sum(share[share > 0] * np.log(share[share > 0] / alone[share > 0])))

    by_chance = [told(y[random.permutation(len(y))]) for _ in range(SHUFFLES)]
    deviation = float(np.std(by_chance, ddof=1))
    return (told(y) - float(np.mean(by_chance))) / deviation if deviation > 0 else None


def shift(examples: Examples) -> int | None:
    """By how many places labels lie ahead of their tokens: 1 where the next one is meant; 0 and −1 are known already.

    None where labels are no such tokens.
    """
    x, y = examples.inputs, examples.labels
    if x is None or y is None or x.shape != y.shape or x.dtype.kind not in "iu" or y.dtype.kind not in "iu":
        return None
    if x.shape[1] < 4:
        return None
    pairs = {1: (x[:, 1:], y[:, :-1]), 0: (x, y), -1: (x[:, :-1], y[:, 1:])}
    return next((by for by, (a, b) in pairs.items() if np.mean(a == b) > SAME), None)


def holds_label(examples: Examples) -> int | None:
    """The number of a feature that alone determines the label, exactly; None where none does.

    Within each class it is one number, and another one in each; of numbers its correlation with them is ±1.
    """
    x, y = examples.inputs, examples.labels
    if x is None or y is None or not examples.is_numeric or len(x) < 100 or y.size != len(y):
        return None
    x, y = np.asarray(x[:SAMPLE], np.float64), y[:SAMPLE].reshape(-1)
    whole = x.var(axis=0)
    if not np.isfinite(whole).all():
        return None
    if y.dtype.kind in "iu":
        classes, counts = np.unique(y, return_counts=True)
        if not 1 < len(classes) <= len(y) / 10:
            return None
        means = np.stack([x[y == c].mean(axis=0) for c in classes])
        within = np.einsum("c,cd->d", counts, np.stack([x[y == c].var(axis=0) for c in classes])) / len(y)
        apart = np.sort(means, axis=0)
        found = (whole > 0) & (within <= EXACT * whole) & np.all(np.diff(apart, axis=0) > 0, axis=0)
    else:
        with np.errstate(divide="ignore", invalid="ignore"):
            correlation = ((x - x.mean(axis=0)) * (y - y.mean())[:, None]).mean(axis=0) / np.sqrt(whole * y.var())
        found = np.nan_to_num(np.abs(correlation)) > 1 - EXACT
    return int(np.argmax(found)) if found.any() and x.shape[1] > 1 else None


def probe_data(source: Any, *, batch_size: int, seed: int = 0, draw: Draw = "shuffled") -> DataProbe:
    """Reads samples of a run's data.

    Args:
        source: as `Workload.data`.
        batch_size: the run's,
        seed: and its seed,
        draw: and how it draws.
    """
    train = source.train
    feed = as_batches(train, batch_size, seed, draw)
    per_epoch = getattr(feed, "steps_per_epoch", BATCHES)
    steps = sorted({int(t) for t in np.linspace(0, max(per_epoch - 1, 0), BATCHES)})
    batches = [feed.batch(t) for t in steps]
    labels = tuple(np.array(b["labels"]) for b in batches if "labels" in b)
    is_split = hasattr(train, "take") and hasattr(train, "__len__")
    examples = _examples(train) if is_split else _joined(batches)
    held_out = source.validation
    return DataProbe(examples, _examples(held_out) if held_out is not None and len(held_out) else None, labels)


def _examples(split: Any) -> Examples:
    size = len(split)
    each = sum(np.asarray(x).nbytes for x in split.take(np.zeros(1, np.int64)).values())
    is_whole = size * each <= ALL
    chosen = np.arange(size) if is_whole else np.unique(np.linspace(0, size - 1, SAMPLE).astype(np.int64))
    return _of_batch(split.take(chosen), is_whole)


def _joined(batches: Iterable[Any]) -> Examples:
    parts = list(batches)
    names = [name for name in ("inputs", "labels") if name in parts[0] and hasattr(parts[0][name], "shape")]
    return _of_batch({name: np.concatenate([np.asarray(b[name]) for b in parts]) for name in names}, False)


def _of_batch(batch: Any, is_whole: bool) -> Examples:
    inputs, labels = batch.get("inputs"), batch.get("labels")
    rows = np.asarray(inputs) if hasattr(inputs, "shape") else None
    if rows is not None:
        rows = rows.reshape(len(rows), -1)
    return Examples(rows, np.asarray(labels) if hasattr(labels, "shape") else None, is_whole)


def _rows(rows: np.ndarray) -> list[bytes]:
    return [row.tobytes() for row in np.ascontiguousarray(rows)]
