"""Checks of `train`'s arguments, before anything is traced: each error names the argument and the way out."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

from optlab._integers import check_seed, is_count, is_integer
from optlab._measure import Measure
from optlab._messages import meant, nearest
from optlab.config import Config, Stop, keys
from optlab.training.identity import OTHERS
from optlab.training.workload import Workload

OPTIMIZERS = ("adam", "adamw", "lion", "muon", "sgd", "shampoo", "soap")  # that a string may mean


def check_arguments(
    workload: Any,
    tx: Any,
    *,
    seed: Any,
    stop: Any,
    checkpoints: Any,
    observers: Any,
    schedules: Any,
    measure: Any,
    allow_change: Any,
) -> None:
    """Refuses arguments of another kind than `train` takes.

    Raises:
        TypeError: For another type.
        ValueError: For a seed outside of [0, 2**32), and a key that no run has.
    """
    if not isinstance(workload, Workload):
        raise TypeError(f"workload must be a Workload, such as Workload.digits(), got {workload!r}")
    if not (callable(getattr(tx, "init", None)) and callable(getattr(tx, "update", None))):
        is_factory = callable(tx)
        call = f": call it, as {getattr(tx, '__name__', 'it')}(learning_rate)" if is_factory else ""
        usual = meant(tx, OPTIMIZERS) if isinstance(tx, str) else []
        such = (*usual, "adamw")[0]
        raise TypeError(f"tx must be an optax transformation, such as optlab.{such}(1e-3), got {tx!r}{call}")
    check_seed(seed)
    if not isinstance(stop, Stop):
        raise TypeError(f"stop must be an optlab.config.Stop, such as Stop(patience=3), got {stop!r}")
    if checkpoints is not None and not hasattr(checkpoints, "writing"):
        whole = f": say Checkpoints({str(checkpoints)!r})" if isinstance(checkpoints, str | Path) else ""
        raise TypeError(f"checkpoints must be Checkpoints(folder), or None, got {checkpoints!r}{whole}")
    if not (schedules is None or isinstance(schedules, Mapping)):
        raise TypeError(f"schedules must be a dict of functions of the step by name, got {schedules!r}")
    _check_each("observers", observers, lambda x: all(hasattr(x, name) for name in ("begin", "record", "end")))
    _check_each("measure", measure, lambda x: isinstance(x, Measure))
    _check_keys(allow_change)


def check_counts(**counts: Any) -> None:
    """Refuses what is no whole number of at least 1."""
    for name, value in counts.items():
        if not is_count(value):
            number = "" if is_integer(value) else "a whole number of "
            raise ValueError(f"{name} must be {number}at least 1, got {value!r}")


def _check_each(name: str, values: Any, is_right: Any) -> None:
    wanted = {"observers": "observers, with begin, record and end", "measure": "Measures, such as sharpness(every=50)"}
    if not isinstance(values, Sequence) or isinstance(values, str):
        raise TypeError(f"{name} must be a list of {wanted[name]}, got {values!r}")
    for value in values:
        if not is_right(value):
            raise TypeError(f"{name} must be {wanted[name]}, got {value!r}")


def _check_keys(names: Collection[str]) -> None:
    if isinstance(names, str) or not isinstance(names, Collection):
        raise TypeError(f"allow_change must be a collection of keys, such as ('seed',), got {names!r}")
    whole = {*keys(Config), *OTHERS.values()}
    known = {".".join(key.split(".")[: i + 1]) for key in whole for i in range(key.count(".") + 1)}
    parts = {"data", "schedule", *OTHERS.values()}  # each with arguments of its own
    for name in names:
        if name not in known and str(name).split(".")[0] not in parts:
            raise ValueError(f"allow_change has {name!r}, which no run has; {nearest(str(name), known)}")
