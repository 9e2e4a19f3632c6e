"""A measurement along training, apart from what runs it: `optlab.theory` has some, `optlab.training` runs them."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from optlab._checks import is_count


@dataclass(frozen=True)
class Measure:
    """A pure measurement in the program of a training step, every so many steps: `train(measure=[…])`.

    Under every strategy it sees the whole state and the whole batch, and its numbers are those of one device.

    Attributes:
        function: (state, batch) -> {name: number}; a (sum, weight) in place of a number is logged as sum / weight, and
            isn't logged where the weight is 0. The state is that before the step. What else it needs it asks for by
            keyword-only arguments of these names: `loss`, the workload's; `gradient`, the step's mean gradient, which
            costs nothing more; `after`, the state after the step.
        every: steps from one measurement to the next; the first is made in the step of that number.
        prefix: stands before each name in the records.
    """

    function: Callable[..., Mapping[str, Any]]
    every: int = 50
    prefix: str = "measure/"

    def __post_init__(self) -> None:
        if not callable(self.function):
            raise TypeError(f"function must be a function (state, batch) -> {{name: number}}, got {self.function!r}")
        if not is_count(self.every):
            raise ValueError(f"every must be a whole number of at least 1, got {self.every!r}")
