"""Range tests: which learning rate, and which batch size, a workload and an optimizer should start with.

>>> print(optlab.lr_range(Workload.digits(), optlab.adamw, steps=300))

Both train for real, in few compiled programs, and say why they suggest what they suggest.
"""

import importlib
from typing import TYPE_CHECKING, Any

from optlab.tuning._errors import RangeError

if TYPE_CHECKING:
    from optlab.tuning._batches import BatchRange as BatchRange
    from optlab.tuning._batches import batch_range as batch_range
    from optlab.tuning._learning_rates import LrRange as LrRange
    from optlab.tuning._learning_rates import lr_range as lr_range

_HOME = {
    "BatchRange": "_batches",
    "LrRange": "_learning_rates",
    "batch_range": "_batches",
    "lr_range": "_learning_rates",
}

__all__ = ["RangeError", *_HOME]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'optlab.tuning' has no attribute {name!r}")
    value = getattr(importlib.import_module(f"optlab.tuning.{_HOME[name]}"), name)
    globals()[name] = value  # so that it is looked up once
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
