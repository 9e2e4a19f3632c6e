"""Fingerprints of data sets, computed without reading a whole data set from a disk."""

import dataclasses
import hashlib
import zlib
from typing import Any

import numpy as np

from optlab.data._damaged import take_whole
from optlab.data._rows import named_arrays
from optlab.data._types import Batch, InMemory
from optlab.data.batches import Batches, as_batches

EXAMPLES = 64  # that are read of a split, evenly spaced: milliseconds, however long it is
BYTES = 2**30  # the most that is read in full of arrays in memory, at 2 GiB/s


def fingerprint(data: Any) -> str:
    """Identifies examples by a short text: the same for the same data, in every process of a run.

    For a `Split` it is the number of examples and a hash of up to 64 of them, taken as for an evaluation, so that seed
    and batch size make no difference; for an `InMemory` split the hash covers all of its arrays too, up to 1 GiB. For
    data that makes its own batches it is a hash of the batch of step 0.

    Args:
        data: a split, or batches, as `as_batches` takes them.
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
    """Returns a checksum of each array in a split's fields; no example is made for it."""
    if not isinstance(split, InMemory):
        return {}
    fields = {f.name: getattr(split, f.name) for f in dataclasses.fields(split)}
    found = {name: x for name, x in fields.items() if isinstance(x, np.ndarray)}
    if sum(x.nbytes for x in found.values()) > BYTES:
        return {}
    return {f"whole {name}": np.asarray(zlib.crc32(np.ascontiguousarray(x).data)) for name, x in found.items()}


def _hash(examples: Batch) -> str:
    """Hashes names, dtypes, shapes and bytes."""
    digest = hashlib.sha256()
    for name, x in sorted(named_arrays(examples), key=lambda found: found[0]):
        array = np.ascontiguousarray(x)
        digest.update(f"{name} {array.dtype} {array.shape} ".encode())
        digest.update(array.tobytes())
    return digest.hexdigest()[:16]
