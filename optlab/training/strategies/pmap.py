"""Every device runs the step on its part of the batch, and the step itself takes the means over the devices."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from optlab._trees import shapes_of
from optlab.runs._fingerprints import array_fingerprint
from optlab.training.strategies._base import DATA, OnMesh, Program, Step, is_of_axis


class Pmap(OnMesh):
    """Every device has the whole state, and a part of the batch of its own."""

    @property
    def compiles_shapes(self) -> bool:
        return jax.process_count() == 1

    def program(self, step: Step) -> Program:
        return _Program(step, self.mesh)


class _Program:
    """The step under `jax.pmap`; state and metrics keep their shapes."""

    def __init__(self, step: Step, mesh: Mesh):
        self.count, self.calls = mesh.shape[DATA], 0
        self.compiled: dict[Any, Any] = {}
        devices = list(mesh.devices.flat)
        settings: dict[str, Any] = {"axis_name": DATA, "in_axes": (None, 0), "out_axes": None, "devices": devices}
        self.run = jax.pmap(step, donate_argnums=0, **settings)
        # What pmap is made of, and can be traced with shapes alone, those of several processes' arrays too.
        self.mapped = jax.shard_map(step, mesh=mesh, in_specs=(P(), P(DATA)), out_specs=P(), check_vma=False)
        on_each = jax.shard_map(_fingerprints, mesh=mesh, in_specs=P(), out_specs=P(DATA), check_vma=False)
        self.fingerprints = jax.jit(on_each, out_shardings=NamedSharding(mesh, P()))  # every process sees all
        self.divided = jax.jit(self._divided, out_shardings=NamedSharding(mesh, P(DATA)))

    def __call__(self, state: Any, batch: Any) -> tuple[Any, Any]:
        new, metrics = self.compile(state, batch)(state, self._parts(batch))
        self.calls += 1
        if self.calls.bit_count() == 1:  # after 1, 2, 4, 8 … steps: with a learning rate of 0 a fault shows late
            self._check_equal(new, metrics)
        return new, metrics

    def compile(self, state: Any, batch: Any) -> Any:
        leaves, structure = jax.tree.flatten((state, batch))
        shapes = (structure, *((x.shape, x.dtype) for x in leaves))
        if shapes not in self.compiled:  # kept here, since pmap's own cache isn't filled by compile()
            parts = self._parts(batch)
            self._check_mean(state, batch)
            self.compiled[shapes] = self.run.lower(state, parts).compile()
        return self.compiled[shapes]

    def _parts(self, batch: Any) -> Any:
        examples = len(jax.tree.leaves(batch)[0])
        if examples % self.count:
            raise ValueError(f"strategy='pmap' needs a batch that its {self.count} devices divide, got {examples}")
        return self.divided(batch)

    def _divided(self, batch: Any) -> Any:
        return jax.tree.map(lambda x: x.reshape(self.count, -1, *x.shape[1:]), batch)

    def _check_mean(self, state: Any, batch: Any) -> None:
        advice = f"make_step(..., axis_name={DATA!r}), or jax.lax.pmean(gradients, {DATA!r}) in a step of your own"
        try:
            # Shapes alone: arrays would show a mesh, which in pmap is not to be seen.
            jaxpr = jax.make_jaxpr(self.mapped)(*shapes_of((state, batch)))
        except NameError as error:
            if not is_of_axis(error):
                raise
            raise ValueError(f"{error}: strategy='pmap' has the axis {DATA!r}, so {advice}") from error
        if not _reduces(jaxpr.jaxpr, DATA):
            raise ValueError(
                f"strategy='pmap' needs a step that takes the mean over the devices, and this one never does: {advice}"
            )

    def _check_equal(self, state: Any, metrics: Any) -> None:
        leaves = jax.tree_util.tree_leaves_with_path((state, metrics))
        for ((which, *path), _), found in zip(leaves, self.fingerprints([x for _, x in leaves]), strict=True):
            if (np.asarray(found) != np.asarray(found)[0]).any():
                name = jax.tree_util.keystr(tuple(path), simple=True, separator="/")
                things, what = (("states", "goes into the state"), ("metrics", "is measured"))[which.idx]
                raise ValueError(
                    f"after {self.calls} steps under strategy='pmap' the devices' {things} differ in {name!r}: "
                    f"whatever {what} must be averaged over the axis {DATA!r} first, as gradients by jax.lax.pmean"
                )


def _fingerprints(leaves: list[jax.Array]) -> list[jax.Array]:
    """One row for each leaf: a device's own, of what it holds."""
    return [array_fingerprint(_bits(x))[None] for x in leaves]


def _bits(x: jax.Array) -> jax.Array:
    return jax.random.key_data(x) if jnp.issubdtype(x.dtype, jax.dtypes.prng_key) else x


def _reduces(jaxpr: Any, axis: str) -> bool:
    """True if a program sums or gathers over an axis anywhere."""
    for equation in jaxpr.eqns:
        axes = equation.params.get("axes", equation.params.get("axis_name", ()))
        axes = axes if isinstance(axes, tuple | list) else (axes,)
        if axis in axes and any(word in equation.primitive.name for word in ("psum", "gather", "reduce", "pmax")):
            return True
        for inner in jax.tree.leaves(list(equation.params.values()), is_leaf=lambda x: _as_jaxpr(x) is not None):
            if (found := _as_jaxpr(inner)) is not None and _reduces(found, axis):
                return True
    return False


def _as_jaxpr(x: Any) -> Any:
    x = getattr(x, "jaxpr", x)
    return x if hasattr(x, "eqns") else None
