"""A fingerprint that tells one data set from another without reading all of it from a disk."""

import dataclasses
import hashlib
import zlib
from typing import Any

import numpy as np

from optlab.data._arrays import ArraySplit
from optlab.data._damaged import take_whole
from optlab.data._images import ImageSplit
from optlab.data._rows import named_arrays
from optlab.data._text import EvaluationWindows, TrainingWindows
from optlab.data._types import Batch
from optlab.data.batches import Batches, as_batches

EXAMPLES = 64  # read of a split, evenly spaced: a number that costs milliseconds, whatever the length
IN_MEMORY = (ArraySplit, ImageSplit, TrainingWindows, EvaluationWindows)
BYTES = 2**30  # of arrays in memory that are read in full, at 2 GB/s


def fingerprint(data: Any) -> str:
    """What the examples are, in a few words: the same for the same data, in every process of several.

    Args:
        data: As `as_batches` takes it. Of a `Split` it is the number of examples and a hash over up to 64 of them, as
            they are taken for an evaluation, so that seed and batch size make no difference, and over all of the arrays
            that optlab's own splits keep in memory, up to 1 GiB; of anything that makes its own batches a hash over
            that of step 0.
    """
    batches = as_batches(data, 1)
    if batches is data or not isinstance(batches, Batches):
        return f"batch 0 {_hash(batches.batch(0))}"
    count = len(data)
    read = min(EXAMPLES, count)
    indices = np.arange(read) * (count - 1) // max(read - 1, 1)
    whole = _in_memory(data)
    return f"{count} examples{' in memory' if whole else ''} {_hash(take_whole(data, indices)[0] | whole)}"


def _in_memory(split: Any) -> Batch:
    """A checksum of each array that a split is made of, for which none of its examples need be made."""
    if type(split) not in IN_MEMORY:
        return {}
    fields = {f.name: getattr(split, f.name) for f in dataclasses.fields(split)}
    found = {name: x for name, x in fields.items() if isinstance(x, np.ndarray)}
    if sum(x.nbytes for x in found.values()) > BYTES:
        return {}
    return {f"whole {name}": np.asarray(zlib.crc32(np.ascontiguousarray(x).data)) for name, x in found.items()}


def _hash(examples: Batch) -> str:
    """Names, dtypes, shapes and bytes."""
    digest = hashlib.sha256()
    for name, x in sorted(named_arrays(examples), key=lambda found: found[0]):
        array = np.ascontiguousarray(x)
        digest.update(f"{name} {array.dtype} {array.shape} ".encode())
        digest.update(array.tobytes())
    return digest.hexdigest()[:16]
