"""A step's metrics as one array, under their names in the records."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from optlab.training.step import MeasuredStep
from optlab.training.workload import Metrics


@functools.partial(jax.tree_util.register_dataclass, data_fields=["pairs"], meta_fields=["names"])
@dataclass(frozen=True)
class PackedMetrics:
    """Metrics in one array, because the host pays for every array that it reads.

    Attributes:
        names: of the metrics.
        pairs: their (sum, weight), an array of shape (names, 2).
    """

    names: tuple[str, ...]
    pairs: Any

    @classmethod
    def pack(cls, metrics: Metrics) -> PackedMetrics:
        return cls(tuple(metrics), jnp.stack([jnp.stack(pair) for pair in metrics.values()]))

    def value(self, name: str) -> jax.Array:
        """The sum of that name; it may be traced."""
        return self.pairs[self.names.index(name), 0]

    def sums(self) -> dict[str, np.ndarray]:
        """(sum, weight) by name, on the host; waits until they are there."""
        return dict(zip(self.names, np.asarray(self.pairs, np.float64), strict=True))


PackedStep = Callable[[Any, Any], tuple[Any, PackedMetrics]]


def packed(step: MeasuredStep) -> PackedStep:
    """The same step, its metrics packed as "train/<name>", and with them what was measured."""

    def packing(state: Any, batch: Any) -> tuple[Any, PackedMetrics]:
        new_state, metrics, measured = step(state, batch)
        return new_state, PackedMetrics.pack({f"train/{name}": pair for name, pair in metrics.items()} | measured)

    return packing


def unless_small(step: PackedStep, gradient_norm: float | None) -> PackedStep:
    """The same packed step, but it makes no update, and counts none, where ‖∇L‖ ≤ ε: the state is what was tested."""
    if gradient_norm is None:
        return step

    def testing(state: Any, batch: Any) -> tuple[Any, PackedMetrics]:
        new_state, packed = step(state, batch)
        is_small = packed.value("train/gradient_norm") <= gradient_norm
        if "train/fault" in packed.names:
            is_small &= packed.value("train/fault") == 0  # a skipped step's gradient says nothing
        return jax.tree.map(lambda old, new: jnp.where(is_small, old, new), state, new_state), packed

    return testing


def means(sums: Mapping[str, np.ndarray]) -> dict[str, float]:
    """The means by name, without what wasn't measured: by a probe, or of a batch in which no example counts."""
    return {name: float(total / weight) for name, (total, weight) in sums.items() if weight}
