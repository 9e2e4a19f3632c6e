"""Measurements along training: `optlab.theory` makes some, `optlab.training` runs them."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from optlab._integers import is_count


@dataclass(frozen=True)
class Measure:
    """A pure measurement in the program of a training step, made every so many steps: `train(measure=[…])`.

    Under every strategy it gets the whole state and the whole batch, and returns the numbers of one device.

    Attributes:
        function: (state, batch) -> {name: number}; a (sum, weight) in place of a number is logged as sum / weight, and
            isn't logged where the weight is 0. The state is that before the step. Keyword-only arguments by these names
            are passed too: `loss`, the workload's; `gradient`, the step's mean gradient, at no extra cost; `after`, the
            state after the step; `tx`, the optimizer.
        every: steps between two measurements; the first is made in the step of that number.
        prefix: prefix of each name in the records.
    """

    function: Callable[..., Mapping[str, Any]]
    every: int = 50
    prefix: str = "measure/"

    def __post_init__(self) -> None:
        if not callable(self.function):
            raise TypeError(f"function must be a function (state, batch) -> {{name: number}}, got {self.function!r}")
        if not is_count(self.every):
            raise ValueError(f"every must be a whole number of at least 1, got {self.every!r}")
