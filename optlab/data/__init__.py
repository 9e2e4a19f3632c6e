"""Data: sources of examples, and batches as a function of (seed, step). Built on NumPy; nothing here imports JAX.

>>> from optlab import data
>>> digits = data.digits()
>>> batches = data.Batches(digits.train, 128, seed=0)
>>> batches.batch(0)["inputs"].shape
(128, 8, 8, 1)
"""

from optlab.data import sources
from optlab.data._arrays import as_source
from optlab.data._fingerprint import fingerprint
from optlab.data._types import Batch, DamagedRecordError, DataError, Facts, Source, Split
from optlab.data.batches import (
    Batches,
    Draw,
    Share,
    StepBatches,
    as_batches,
    check_splits,
    evaluation_batches,
    prefetch,
)
from optlab.data.sources import *  # noqa: F403

__all__ = [
    "Batch",
    "Batches",
    "DamagedRecordError",
    "DataError",
    "Draw",
    "Facts",
    "Share",
    "Source",
    "Split",
    "StepBatches",
    "as_batches",
    "as_source",
    "check_splits",
    "evaluation_batches",
    "fingerprint",
    "prefetch",
]
__all__ += sources.__all__
