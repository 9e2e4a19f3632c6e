"""One program of the whole batch, which the compiler divides: jit, and zero1 and fsdp, which divide the state too."""

from __future__ import annotations

from typing import Any

import jax
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from optlab.training.sharding import MODEL_PARTS
from optlab.training.strategies._base import OnMesh, Program, Step, check_placed, without_axis


class Jit(OnMesh):
    """Every device has the whole state, apart from matrices that the axis "model" divides."""

    def program(self, step: Step) -> Program:
        return _Program(without_axis(step, self.strategy), self.mesh)


class Zero1(Jit):
    """The optimizer's state and the moving average are divided over the devices that share the batch."""

    def divides(self, part: str) -> bool:
        return part not in MODEL_PARTS


class Fsdp(Jit):
    """The whole state is divided over the devices that share the batch."""

    def divides(self, part: str) -> bool:
        return True

    def program(self, step: Step) -> Program:
        program = super().program(step)
        return program if self.mesh.size == 1 else _WithEvenBatch(program, self.count)


class _Program:
    """The step as one program over the mesh; a new state is placed like the old one."""

    def __init__(self, step: Step, mesh: Mesh):
        self.step, self.mesh, self.replicated = step, mesh, NamedSharding(mesh, P())
        self.compiled: dict[Any, Any] = {}

    def __call__(self, state: Any, batch: Any) -> tuple[Any, Any]:
        return self._for(state)(state, batch)

    def compile(self, state: Any, batch: Any) -> Any:
        return self._for(state).lower(state, batch).compile()

    def _for(self, state: Any) -> Any:
        leaves, structure = jax.tree.flatten(jax.tree.map(lambda x: getattr(x, "sharding", None), state))
        if (key := (structure, tuple(leaves))) not in self.compiled:
            check_placed(state, self.replicated.device_set)
            like = jax.tree.unflatten(structure, leaves)
            self.compiled[key] = jax.jit(self._on_mesh, donate_argnums=0, out_shardings=(like, self.replicated))
        return self.compiled[key]

    def _on_mesh(self, state: Any, batch: Any) -> tuple[Any, Any]:
        with jax.sharding.use_abstract_mesh(self.mesh.abstract_mesh):  # for what looks for a mesh: orthogonalize
            return self.step(state, batch)


class _WithEvenBatch:
    """Refuses batches that the devices don't divide: beside divided parameters a whole batch came to wrong gradients.

    Seen on 3 × 2 devices (jax 0.10.2).
    """

    def __init__(self, program: Program, count: int):
        self.program, self.count = program, count

    def __call__(self, state: Any, batch: Any) -> tuple[Any, Any]:
        examples = len(jax.tree.leaves(batch)[0])
        if examples % self.count:
            raise ValueError(
                f"strategy='fsdp' needs a batch that the {self.count} devices which share it divide, got {examples}"
            )
        return self.program(state, batch)

    def compile(self, state: Any, batch: Any) -> Any:
        return self.program.compile(state, batch)
