"""State of probes, apart from the block that measures: a log needs no transform to read it."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

NORMS = ("update_norm", "param_norm", "update_to_weight", "gradient_cosine")
SPECTRUM = ("sigma_max", "sigma_median", "sigma_min", "stable_rank")
METRICS = NORMS + SPECTRUM


class ProbeState(NamedTuple):
    """A probe's last measurements; `read_probes` returns them by name.

    Attributes:
        note: the probe's name, which `name` returns, and the paths of the parameters that it measures one by one.
        count: number of updates so far, shape (), int32.
        values: a value for each of `METRICS`, shape (8,), at least float32; (n, 8) for each of n parameters.
        measured: the update that measured each value, counted from 1; 0 for never; of the same shape, int32.
    """

    note: jax.tree_util.Partial
    count: jax.Array  # type: ignore[assignment]  # a tuple has a method of that name
    values: jax.Array
    measured: jax.Array

    @property
    def name(self) -> str:
        said = self.note()
        return said if isinstance(said, str) else said[0]

    @property
    def rows(self) -> list[tuple[str, tuple[int, ...]]]:
        """The path of each parameter, with its index in front of the metric's; of one row, ("", ())."""
        said = self.note()
        return [("", ())] if isinstance(said, str) else [(path, (i,)) for i, path in enumerate(said[1])]


def find_probes(state: Any) -> dict[str, ProbeState]:
    """Returns the states of all probes in a tree by name, in the tree's order.

    Raises:
        ValueError: if two have one name.
    """
    found: dict[str, tuple[str, ProbeState]] = {}
    for path, x in jax.tree_util.tree_leaves_with_path(state, is_leaf=_is_probe):
        if not _is_probe(x):
            continue
        where = jax.tree_util.keystr(path, simple=True, separator="/")
        name = x.name
        if name in found:
            raise ValueError(
                f"two probes are named {name!r}, at {found[name][0]!r} and {where!r}: give each a name of its own "
                "(a chain with a probe that stands under two keys of by_role is two chains: make one for each)"
            )
        found[name] = (where, x)
    return {name: probe for name, (_, probe) in found.items()}


def _is_probe(x: Any) -> bool:
    return isinstance(x, ProbeState)


def read_probes(state: Any) -> dict[str, dict[str, Any]]:
    """Reads the probes in an optimizer's state: {name: {metric: value}}; see `optlab.probe` for the metrics.

    With per="parameter" it is {name: {path: {metric: value}}}.

    A value that was never measured is NaN. "sigma_age" counts the updates since the last one that measured singular
    values. Under vmap every value has the population's axis.

    Args:
        state: an optimizer's state, however deeply the probes are wrapped in it, or anything that holds one: a
            `TrainState`, an `nnx.Optimizer`.

    Raises:
        ValueError: if two probes have one name.
    """
    return {name: _readings(probe) for name, probe in find_probes(state).items()}


def _readings(probe: ProbeState) -> dict[str, Any]:
    count, values, measured = (x[...] for x in probe[1:])  # [...] since nnx.Optimizer wraps every array
    age = count.reshape(*count.shape, *[1] * (measured.ndim - count.ndim)) - measured
    values, age = (jnp.where(measured > 0, x, jnp.nan) for x in (values, age))
    found = {}
    for path, index in probe.rows:
        readings = {metric: values[(..., *index, i)] for i, metric in enumerate(METRICS)}
        found[path] = {**readings, "sigma_age": age[(..., *index, METRICS.index("sigma_max"))]}
    return found[""] if isinstance(probe.note(), str) else found
