"""Data: sources of examples, and batches as a function of (seed, step). NumPy only; nothing here imports JAX.

>>> from optlab import data
>>> digits = data.digits()
>>> batches = data.Batches(digits.train, 128, seed=0)
>>> batches.batch(0)["inputs"].shape
(128, 8, 8, 1)
"""

from optlab.data._fingerprint import fingerprint
from optlab.data._types import Batch, DamagedRecordError, DataError, Source, Split
from optlab.data.batches import Batches, Share, StepBatches, as_batches, check_splits, evaluation_batches, prefetch
from optlab.data.sources import arrays, cifar10, digits, fashion_mnist, text

__all__ = [
    "Batch",
    "Batches",
    "DamagedRecordError",
    "DataError",
    "Share",
    "Source",
    "Split",
    "StepBatches",
    "arrays",
    "as_batches",
    "check_splits",
    "cifar10",
    "digits",
    "evaluation_batches",
    "fashion_mnist",
    "fingerprint",
    "prefetch",
    "text",
]
