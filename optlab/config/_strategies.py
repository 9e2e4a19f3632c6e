"""The strategies: how a training step can run on the devices. One table, which needs no JAX to be read."""

from __future__ import annotations

import importlib
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal


@dataclass(frozen=True)
class Strategy:
    """One way of running a training step on the devices.

    Attributes:
      name: as configs and `train` name it.
      does: what it does, for people.
      code: "module:class" of the `optlab.training.Parallel` that places states and batches, and compiles the step.
      axes: the mesh's axes along which it can have more than one device.
      axis_name: the mapped axis under which each device runs the step on its part of the batch; None where the step
        gets the whole batch.
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
    """The strategy of that name.

    Raises:
      ValueError: if there is none; it names those that there are.
    """
    if name not in STRATEGIES:
        raise ValueError(f"strategy must be one of {', '.join(STRATEGIES)}, got {name!r}")
    return STRATEGIES[name]


if TYPE_CHECKING:
    StrategyName = str
else:
    StrategyName = Literal[tuple(STRATEGIES)]
