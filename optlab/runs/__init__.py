"""The run folder, read and written: config, metrics, summary, checkpoints, curves.

`Run(folder)` reads it. Only checkpoints need JAX, which is imported when they are used.
"""

import importlib
from typing import TYPE_CHECKING, Any

from optlab._extras import need
from optlab.runs._curves import plot_curves
from optlab.runs._errors import CheckpointError, DamagedError, PlaceError
from optlab.runs._metrics import (
    MetricsFile,
    Observer,
    Record,
    StateObserver,
    StepLog,
    TensorBoard,
    WeightsAndBiases,
    read_metrics,
)
from optlab.runs._run import Run
from optlab.runs._summary import SummaryFile

if TYPE_CHECKING:
    from optlab.runs._checkpoints import Checkpoints as Checkpoints
    from optlab.runs._checkpoints import load_params as load_params

_OF_ARRAYS = ("Checkpoints", "load_params")  # these need JAX and Orbax

__all__ = [
    "CheckpointError",
    "DamagedError",
    "MetricsFile",
    "Observer",
    "PlaceError",
    "Record",
    "Run",
    "StateObserver",
    "StepLog",
    "SummaryFile",
    "TensorBoard",
    "WeightsAndBiases",
    "plot_curves",
    "read_metrics",
    *_OF_ARRAYS,
]


def __getattr__(name: str) -> Any:
    if name not in _OF_ARRAYS:
        raise AttributeError(f"module 'optlab.runs' has no attribute {name!r}")
    need(f"optlab.runs.{name}", "jax", "orbax")
    value = getattr(importlib.import_module("optlab.runs._checkpoints"), name)
    globals()[name] = value  # so that it is looked up once
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
