"""Strategies: the ways of running a training step on the devices, in one table that needs no JAX."""

from __future__ import annotations

import importlib
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal


@dataclass(frozen=True)
class Strategy:
    """One way of running a training step on the devices.

    Attributes:
        name: name in configs and for `train`.
        does: description in `optlab devices`.
        code: "module:class" of the `optlab.training.Parallel` that places states and batches, and compiles the step.
        axes: axes of the mesh that may have more than one device.
        axis_name: mapped axis, if each device runs the step on its part of the batch; None if the step gets the whole
            batch.
    """

    name: str
    does: str
    code: str
    axes: tuple[str, ...] = ("data", "model")
    axis_name: str | None = None

    def load(self) -> Any:
        """Imports the class that `code` names."""
        module, _, name = self.code.partition(":")
        return getattr(importlib.import_module(module), name)


_ALL = (
    Strategy("single", "one device, and no other", "optlab.training.strategies.single:Single", axes=()),
    Strategy(
        "pmap",
        "every device has the whole state and runs the step on its part of the batch; mesh.model=1",
        "optlab.training.strategies.pmap:Pmap",
        axes=("data",),
        axis_name="data",
    ),
    Strategy(
        "jit",
        "the same as one program of the whole batch, divided by the compiler",
        "optlab.training.strategies.jit:Jit",
    ),
    Strategy(
        "zero1",
        "jit, with the optimizer's state and the moving average divided over mesh.data as well",
        "optlab.training.strategies.jit:Zero1",
    ),
    Strategy("fsdp", "zero1, with the parameters divided too", "optlab.training.strategies.jit:Fsdp"),
)
STRATEGIES = {strategy.name: strategy for strategy in _ALL}


def find_strategy(name: str) -> Strategy:
    """Finds a strategy by name.

    Raises:
        ValueError: for an unknown name; it lists the known ones.
    """
    if name not in STRATEGIES:
        raise ValueError(f"strategy must be one of {', '.join(STRATEGIES)}, got {name!r}")
    return STRATEGIES[name]


if TYPE_CHECKING:
    StrategyName = str
else:
    StrategyName = Literal[tuple(STRATEGIES)]
