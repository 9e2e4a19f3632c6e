"""Damaged examples are left out inside their batch, so that no other example moves."""

from typing import Any

import numpy as np

from optlab.data._rows import check_rows
from optlab.data._types import Batch, DamagedRecordError, DataError, Split


def take_whole(split: Split, indices: np.ndarray, *how: Any) -> tuple[Batch, dict[int, str]]:
    """Takes the examples of these indices, and replaces the damaged ones.

    A damaged example is replaced by the next whole one, with 0 in the batch's "weight". The replacement depends on the
    index alone, not on the rest of the batch.

    Returns:
        the batch, and the indices that were left out with the reason of each.

    Raises:
        DataError: if the batches hold no "weight", or no example is whole.
    """
    damaged: dict[int, str] = {}
    standing_in = np.asarray(indices)
    while True:
        try:
            batch = split.take(standing_in, *how)
            check_rows(batch, len(standing_in), f"take() of {type(split).__name__}")
            break
        except DamagedRecordError as error:
            if not set(error.indices) & set(standing_in.tolist()):
                raise
            damaged |= dict.fromkeys(error.indices, error.why)
            if len(damaged) == len(split):
                raise DataError(f"all {len(split)} examples are damaged, the last one: {error.why}") from error
            standing_in = np.asarray([_next_whole(i, damaged, len(split)) for i in np.asarray(indices).tolist()])
    left_out = {i: damaged[i] for i in np.asarray(indices).tolist() if i in damaged}
    return (_without(batch, np.isin(indices, list(left_out)), left_out) if left_out else batch), left_out


def _next_whole(index: int, damaged: dict[int, str], count: int) -> int:
    while index in damaged:
        index = (index + 1) % count
    return index


def _without(batch: Batch, is_left_out: np.ndarray, left_out: dict[int, str]) -> Batch:
    if "weight" not in batch:
        index, why = next(iter(left_out.items()))
        raise DataError(
            f"example {index} is damaged ({why}) and can't be left out: the split's batches need a \"weight\", 1 for "
            "every value of the loss, which is then 0 for that example"
        )
    weight = np.array(batch["weight"])
    weight[is_left_out] = 0
    return {**batch, "weight": weight}
