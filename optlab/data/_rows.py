"""Checks of the batches that splits and loaders return: as many rows as asked for, in that order, none masked."""

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from optlab.data._types import Batch, DataError


def named_arrays(batch: Any, name: str = "") -> Iterator[tuple[str, Any]]:
    """Yields every array of a batch with its path, also from dicts, tuples and lists. A list of numbers is an array."""
    if isinstance(batch, dict):
        for key, x in batch.items():
            yield from named_arrays(x, f"{name}/{key}" if name else str(key))
    elif isinstance(batch, tuple) or (isinstance(batch, list) and any(np.ndim(x) for x in batch)):
        for i, x in enumerate(batch):
            yield from named_arrays(x, f"{name}/{i}" if name else str(i))
    else:
        yield name, batch


def map_arrays(function: Callable[..., Any], *batches: Any) -> Any:
    """Applies a function to the arrays of batches of one structure."""
    first = batches[0]
    if isinstance(first, dict):
        return {key: map_arrays(function, *(batch[key] for batch in batches)) for key in first}
    if isinstance(first, tuple) or (isinstance(first, list) and any(np.ndim(x) for x in first)):
        found = [map_arrays(function, *each) for each in zip(*batches, strict=True)]
        return type(first)(*found) if hasattr(first, "_fields") else type(first)(found)
    return function(*batches)


def check_rows(batch: Any, rows: int, giver: str) -> None:
    """Refuses arrays of another length, and masks that JAX would drop.

    Args:
        batch: arrays by name, also in dicts, tuples and lists.
        rows: number of rows that each must have.
        giver: origin of the batch, for the message.

    Raises:
        DataError: for the first array that has another length or a mask.
    """
    for name, x in named_arrays(batch):
        refuse_masked(repr(name), x)
        shape = np.shape(x)
        if shape[:1] != (rows,):
            raise DataError(
                f"{giver} gave {name!r} of shape {shape} where {rows} examples were asked for: every index needs a row "
                "of its own, in their order; raise DamagedRecordError for what can't be read"
            )


def refuse_masked(name: str, x: Any) -> None:
    """Refuses a NumPy array that masks something: JAX would train on the masked values."""
    if isinstance(x, list | tuple):
        for each in x:
            refuse_masked(name, each)
    if isinstance(x, np.ma.MaskedArray) and np.ma.is_masked(x):
        raise DataError(
            f"{name} is a masked array with {int(np.ma.getmaskarray(x).sum())} masked values, which JAX doesn't know: "
            'leave those examples out, or fill them in and give them weight 0 under "weight"'
        )


def check_order(name: str, once: Batch, again: Batch, reversed_: Batch) -> None:
    """Refuses rows that come in the split's own order. Splits whose takes differ from each other can't be judged.

    Args:
        name: the split's.
        once: two rows.
        again: the same rows, taken once more.
        reversed_: the same rows, asked for in the other order.
    """
    once, again, reversed_ = (dict(named_arrays(map_arrays(np.asarray, batch))) for batch in (once, again, reversed_))
    turned = {n: x[::-1] for n, x in once.items()}
    if _same(once, again) and _same(once, reversed_) and not _same(once, turned):
        raise DataError(f"take() of the {name} split gives its rows in an order of its own, not in that of the indices")


def _same(a: Batch, b: Batch) -> bool:
    return all(a[name].tobytes() == b[name].tobytes() for name in a)
