"""Checks of the range tests' arguments: each error names the argument, its value and the way out."""

from __future__ import annotations

import math
from typing import Any

from optlab._integers import check_seed
from optlab.training import Workload
from optlab.tuning._errors import RangeError


def check_kinds(workload: Any, factory: Any, seed: Any) -> None:
    """Refuses what is no workload, no factory and no seed."""
    if not isinstance(workload, Workload):
        raise RangeError(f"workload must be an optlab.training.Workload, got {type(workload).__name__}")
    if hasattr(factory, "init") and hasattr(factory, "update"):
        raise RangeError(
            "tx_factory must be a function of the learning rate, got a transformation: give lambda learning_rate: …"
        )
    try:
        check_seed(seed)
    except (TypeError, ValueError) as error:
        raise RangeError(str(error)) from None


def check_positive(name: str, value: Any) -> None:
    """Refuses what is no positive number."""
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    if not (is_number and 0 < value < math.inf):
        raise RangeError(f"{name} must be a positive number, got {value!r}")
