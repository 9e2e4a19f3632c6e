"""What a split or a loader gives is held against what was asked for: as many rows, in that order, none hidden."""

from typing import Any

import numpy as np

from optlab.data._types import Batch, DataError


def check_rows(batch: Any, rows: int, giver: str, name: str = "") -> None:
    """Refuses arrays of another length, and masks that JAX would drop.

    Args:
        batch: Arrays by name, also in dicts of dicts.
        rows: How many rows each is to have.
        giver: What gave it, for the message.
        name: That of the batch in its own dict.

    Raises:
        DataError: For the first array that isn't as it has to be.
    """
    if isinstance(batch, dict):
        for key, x in batch.items():
            check_rows(x, rows, giver, f"{name}/{key}" if name else str(key))
        return
    refuse_masked(repr(name), batch)
    shape = np.shape(batch)
    if shape[:1] != (rows,):
        raise DataError(
            f"{giver} gave {name!r} of shape {shape} where {rows} examples were asked for: every index needs a row of "
            "its own, in their order; raise DamagedRecordError for what can't be read"
        )


def refuse_masked(name: str, x: Any) -> None:
    """Refuses a masked array of NumPy's that masks something: what lies behind would be trained on."""
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
    flat = lambda batch: {name: np.asarray(x) for name, x in batch.items() if not isinstance(x, dict)}
    once, again, reversed_ = flat(once), flat(again), flat(reversed_)
    same = lambda a, b: all(a[name].tobytes() == b[name].tobytes() for name in once)
    if same(once, again) and same(once, reversed_) and not same(once, {n: x[::-1] for n, x in once.items()}):
        raise DataError(f"take() of the {name} split gives its rows in an order of its own, not in that of the indices")
