"""A fingerprint that tells one data set from another without reading all of it."""

import hashlib
from typing import Any

import numpy as np

from optlab.data._damaged import take_whole
from optlab.data._types import Batch
from optlab.data.batches import Batches, as_batches

EXAMPLES = 64  # read of a split, evenly spaced: a number that costs milliseconds, whatever the length


def fingerprint(data: Any) -> str:
    """What the examples are, in a few words: the same for the same data, in every process of several.

    Args:
        data: As `as_batches` takes it. Of a `Split` it is the number of examples and a hash over up to 64 of them, as
            they are taken for an evaluation, so that seed and batch size make no difference; of anything that makes
            its own batches a hash over that of step 0.
    """
    batches = as_batches(data, 1)
    if batches is data or not isinstance(batches, Batches):
        return f"batch 0 {_hash(batches.batch(0))}"
    count = len(data)
    read = min(EXAMPLES, count)
    indices = np.arange(read) * (count - 1) // max(read - 1, 1)
    return f"{count} examples {_hash(take_whole(data, indices)[0])}"


def _hash(examples: Batch) -> str:
    """Names, dtypes, shapes and bytes."""
    digest = hashlib.sha256()
    for name in sorted(examples):
        array = np.ascontiguousarray(examples[name])
        digest.update(f"{name} {array.dtype} {array.shape} ".encode())
        digest.update(array.tobytes())
    return digest.hexdigest()[:16]
