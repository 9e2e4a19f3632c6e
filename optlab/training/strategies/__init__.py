"""The strategies, a file for each kind: where a state and a batch go, and how a step is compiled.

`optlab.config.STRATEGIES` is the table that names them; `optlab.training.parallelize` makes one. A new one is a
subclass of `Parallel` or `OnMesh` in a file of its own, and a row of that table.
"""

from optlab.training.strategies._base import DATA, IN_FLIGHT, MODEL, Parallel, Step, check_processes

__all__ = ["DATA", "IN_FLIGHT", "MODEL", "Parallel", "Step", "check_processes"]
