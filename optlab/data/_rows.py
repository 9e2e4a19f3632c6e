"""What a split or a loader gives is held against what was asked for: as many rows, in that order, none hidden."""

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from optlab.data._types import Batch, DataError


def named_arrays(batch: Any, name: str = "") -> Iterator[tuple[str, Any]]:
    """Every array of a batch by its path: those in dicts, tuples and lists too. A list of numbers is an array."""
    if isinstance(batch, dict):
        for key, x in batch.items():
            yield from named_arrays(x, f"{name}/{key}" if name else str(key))
    elif isinstance(batch, tuple) or (isinstance(batch, list) and any(np.ndim(x) for x in batch)):
        for i, x in enumerate(batch):
            yield from named_arrays(x, f"{name}/{i}" if name else str(i))
    else:
        yield name, batch


def map_arrays(function: Callable[..., Any], *batches: Any) -> Any:
    """A batch of what a function gives of each array of batches that are made alike."""
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
        batch: Arrays by name, also in dicts, tuples and lists below.
        rows: How many rows each is to have.
        giver: What gave it, for the message.

    Raises:
        DataError: For the first array that isn't as it has to be.
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
    """Refuses a masked array of NumPy's that masks something: what lies behind would be trained on."""
    if isinstance(x, list | tuple):
        for each in x:
            refuse_masked(name, each)
    if isinstance(x, np.ma.MaskedArray) and np.ma.is_masked(x):
        raise DataError(
            f"{name} is a masked array with {int(np.ma.getmaskarray(x).sum())} masked values, which JAX doesn't know: "
            'leave those examples out, or fill them in and give them weight 0 under "weight"'
        )


def check_order(name: str, once: Batch, again: Batch, reversed_: Batch) -> None:
    """Refuses rows in an order of the split's own, where two takes of the same rows are alike.

    Args:
        name: The split's.
        once: Two rows.
        again: The same rows, taken once more.
        reversed_: The same rows, asked for in the other order.
    """
    flat = lambda batch: {name: np.asarray(x) for name, x in named_arrays(batch)}
    once, again, reversed_ = flat(once), flat(again), flat(reversed_)
    same = lambda a, b: all(a[name].tobytes() == b[name].tobytes() for name in once)
    if same(once, again) and same(once, reversed_) and not same(once, {n: x[::-1] for n, x in once.items()}):
        raise DataError(f"take() of the {name} split gives its rows in an order of its own, not in that of the indices")
