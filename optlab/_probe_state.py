"""What probes hold, apart from the block that measures it: whoever logs it imports no transform."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

NORMS = ("update_norm", "param_norm", "update_to_weight", "gradient_cosine")
SPECTRUM = ("sigma_max", "sigma_median", "sigma_min", "stable_rank")
METRICS = NORMS + SPECTRUM


class ProbeState(NamedTuple):
    """What a probe measured last; `read_probes` gives it by name.

    Attributes:
        note: the probe's name, by `state.name`.
        count: updates seen so far, shape (), int32.
        values: one for each of `METRICS`, shape (8,), at least float32.
        measured: the update at which each was measured, 1 the first, 0 for never; shape (8,), int32.
    """

    note: jax.tree_util.Partial
    count: jax.Array  # type: ignore[assignment]  # a tuple has a method of that name
    values: jax.Array
    measured: jax.Array

    @property
    def name(self) -> str:
        return self.note()


def find_probes(state: Any) -> dict[str, ProbeState]:
    """The states of all probes in a tree, by name, in the tree's order.

    Raises:
        ValueError: if two have one name.
    """
    is_probe = lambda x: isinstance(x, ProbeState)
    found: dict[str, tuple[str, ProbeState]] = {}
    for path, x in jax.tree_util.tree_leaves_with_path(state, is_leaf=is_probe):
        if not is_probe(x):
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


def read_probes(state: Any) -> dict[str, dict[str, jax.Array]]:
    """What the probes in an optimizer's state measured: {name: {metric: value}}; see `optlab.probe` for the metrics.

    A value is NaN where it was never measured. "sigma_age" is the number of updates since the singular values were
    measured, 0 if that was the last one. Under vmap every value has the population's axis.

    Args:
        state: an optimizer's state, however deeply the probes are wrapped in it, or anything that holds one: a
            `TrainState`, an `nnx.Optimizer`.

    Raises:
        ValueError: if two probes have one name; it names it.
    """
    return {name: _readings(probe) for name, probe in find_probes(state).items()}


def _readings(probe: ProbeState) -> dict[str, jax.Array]:
    count, values, measured = (x[...] for x in probe[1:])  # [...] since nnx.Optimizer wraps every array
    age = count[..., None] - measured
    values, age = (jnp.where(measured > 0, x, jnp.nan) for x in (values, age))
    readings = {metric: values[..., i] for i, metric in enumerate(METRICS)}
    return {**readings, "sigma_age": age[..., METRICS.index("sigma_max")]}
