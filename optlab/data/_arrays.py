"""NumPy arrays of a user as a data source, and the statistics that standardize inputs."""

import numbers
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from optlab.data._files import check_whole, mapped
from optlab.data._held_out import held_out_size, hold_out
from optlab.data._rows import refuse_masked
from optlab.data._types import Batch, DataError, InMemory, Source


@dataclass(frozen=True, eq=False)
class ArraySplit(InMemory):
    """Rows of two arrays, unchanged."""

    inputs: np.ndarray
    labels: np.ndarray
    rows: np.ndarray

    def __len__(self) -> int:
        return len(self.rows)

    def take(self, indices: np.ndarray, epoch: int | None = None, seed: int = 0) -> Batch:
        rows = self.rows[indices]
        check_whole("inputs", self.inputs)
        check_whole("labels", self.labels)
        return {"inputs": self.inputs[rows], "labels": self.labels[rows]}


def statistics(inputs: np.ndarray, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Computes mean and 1/std of the rows along the last axis (features, channels), in float64, of shape (C,).

    Where the rows are constant 1/std is replaced by 1, so that standardizing gives 0 and not 0/0.
    """
    channels = inputs.shape[-1] if inputs.ndim > 1 else 1
    # One pass is exact enough once the data are shifted by an example's mean, even if the mean is far above the spread.
    origin = np.asarray(inputs[rows[0]], np.float64).reshape(-1, channels).mean(axis=0)
    positions = inputs[rows[0]].size // channels
    shift, count = np.tile(origin, positions), positions * len(rows)
    total, squares = np.zeros((2, channels))
    for start in range(0, len(rows), 1000):
        part = inputs[rows[start : start + 1000]].reshape(-1, shift.size) - shift
        total += part.sum(axis=0).reshape(-1, channels).sum(axis=0)
        squares += np.einsum("ij,ij->j", part, part).reshape(-1, channels).sum(axis=0)
    mean = origin + total / count
    std = np.sqrt(np.maximum(squares / count - (total / count) ** 2, 0))
    return mean, np.divide(1, std, out=np.ones(channels), where=std > 1e-10 * np.abs(mean))


def _numbers(name: str, value: ArrayLike) -> np.ndarray:
    refuse_masked(name, value)
    try:
        array = np.asarray(value)
    except ValueError as error:
        raise DataError(f"{name} must be an array with one example a row, got rows of different shapes") from error
    if array.dtype.kind not in "biuf":
        raise DataError(f"{name} must hold real numbers of a NumPy type, got dtype {array.dtype}")
    if array.size == 0 or array.ndim == 0:
        raise DataError(f"{name} must hold at least one example, got an array of shape {array.shape}")
    if array.dtype.kind == "f" and not np.isfinite(array).all():
        bad = np.argwhere(~np.isfinite(array))
        raise DataError(f"{name} has {len(bad)} values that are NaN or infinite, the first at {tuple(bad[0].tolist())}")
    if array.dtype.kind in "iu" and max(-int(array.min()), int(array.max())) > np.iinfo(np.int32).max:
        raise DataError(f"{name} has integers beyond 32 bits, up to {max(-int(array.min()), int(array.max()))}")
    return array


def _narrow(name: str, values: np.ndarray) -> np.ndarray:
    """Converts floats to float32, and integers and booleans to int32, the types that a device computes in.

    The result is a copy, since the owner may change an array later; only a memory-mapped array, which may be larger
    than the memory, isn't copied.
    """
    dtype = np.dtype(np.float32 if values.dtype.kind == "f" else np.int32)
    if values.dtype == dtype and mapped(values) is None:
        return values.copy()
    try:
        with np.errstate(over="raise"):
            return values.astype(dtype, copy=False)
    except FloatingPointError:
        largest = np.abs(values).max()
        raise DataError(f"{name} has values beyond float32, up to {largest:.3g}: scale them") from None


def _pair(name: str, inputs: ArrayLike, labels: ArrayLike) -> tuple[np.ndarray, np.ndarray]:
    x, y = _numbers(f"{name}inputs", inputs), _numbers(f"{name}labels", labels)
    if len(x) != len(y):
        raise DataError(f"{name}inputs and {name}labels must be equally long, got {len(x)} and {len(y)} examples")
    if y.dtype.kind in "iu" and y.min() < 0:
        raise DataError(
            f"integer {name}labels are classes that count from 0, got {y.min()}; pass floats if they are values"
        )
    return x, y


def _given(name: str, held: Sequence[ArrayLike], like: tuple[np.ndarray, np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    """Checks held-out arrays of the user against the training ones."""
    if not isinstance(held, list | tuple) or len(held) != 2:
        found = f"{len(held)} things" if isinstance(held, list | tuple) else repr(held)[:80]
        raise DataError(f"{name} must be a fraction in [0, 1), 0 for none, or (inputs, labels), got {found}")
    pair = _pair(f"{name} ", *held)
    for what, own, other in zip(("inputs", "labels"), pair, like, strict=True):
        if own.shape[1:] != other.shape[1:] or (own.dtype.kind == "f") != (other.dtype.kind == "f"):
            raise DataError(
                f"{name} {what} must be like the training ones, {other.dtype}{list(other.shape[1:])} an example, "
                f"got {own.dtype}{list(own.shape[1:])}"
            )
    return pair


def arrays(
    inputs: ArrayLike,
    labels: ArrayLike,
    *,
    validation: float | Sequence[ArrayLike] = 0.1,
    test: float | Sequence[ArrayLike] = 0.1,
    standardize: bool = False,
) -> Source:
    """A source made of your own arrays. They are copied, unless memory-mapped, as float32 or int32.

    Args:
        inputs: array of shape (N, …) with one example a row, its values finite.
        labels: array of shape (N,) or (N, …): integers are classes from 0 on, floats are regression targets.
        validation: fraction of the examples to hold out for validation, 0 for none, or a pair (inputs, labels).
        test: fraction of the examples to hold out for the test, 0 for none, or a pair (inputs, labels).
        standardize: whether to shift and scale the inputs to mean 0 and std 1 along their last axis, as measured on
            the training examples.

    Raises:
        DataError: if lengths differ, an array is empty or holds NaN or infinite values, or no training example is left.
    """
    x, y = own = _pair("", inputs, labels)
    held: dict[str, Any] = {"validation": validation, "test": test}
    given = {name: _given(name, part, own) for name, part in held.items() if not isinstance(part, numbers.Real)}
    counts = {name: 0 if name in given else held_out_size(name, part, len(x)) for name, part in held.items()}
    train, *held_out = hold_out(len(x), **counts)
    mean, scale = statistics(x, train) if standardize else (0, 1)

    def ready(x: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        return _narrow("inputs", (x - mean) * scale if standardize else x), _narrow("labels", y)

    inputs, labels = ready(x, y)
    splits = {name: ArraySplit(inputs, labels, rows) for name, rows in zip(held, held_out, strict=True) if len(rows)}
    splits |= {name: ArraySplit(*ready(*pair), np.arange(len(pair[0]))) for name, pair in given.items()}
    if y.dtype.kind == "f":
        outputs = int(np.prod(y.shape[1:]))
    else:
        outputs = 1 + max(int(labels.max()) for _, labels in (own, *given.values()))
    train_split = ArraySplit(inputs, labels, train)
    return Source("arrays", train_split, splits.get("validation"), splits.get("test"), {"outputs": outputs})


def as_source(data: Any) -> Source:
    """Returns a source as it is, and makes one of plain arrays by `arrays`, which holds two tenths of them out.

    Args:
        data: a `Source` or anything like it, that has `train`; or arrays, as a pair (inputs, labels) or
            as {"inputs": …, "labels": …}.

    Raises:
        TypeError: for anything else; it names the way out.
        DataError: for another dict, and as `arrays`.
    """
    if hasattr(data, "train"):
        return data
    if isinstance(data, tuple | list) and len(data) == 2:
        return arrays(*data)
    if isinstance(data, Mapping):
        if set(data) != {"inputs", "labels"}:
            raise DataError(
                f"data as a dict must hold 'inputs' and 'labels', got {', '.join(map(repr, data)) or 'nothing'}: name "
                "its arrays so, or make a split of your own"
            )
        return arrays(data["inputs"], data["labels"])
    is_part = hasattr(data, "take") or hasattr(data, "batch")
    alone = ": to train on it alone say Source('mine', it, None, None, {})" if is_part else ""
    raise TypeError(
        "data must be an optlab.data.Source, such as optlab.data.digits(), or your arrays as (inputs, labels), got "
        f"{type(data).__name__}{alone}"
    )
