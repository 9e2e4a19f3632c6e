"""One device, and no other."""

from __future__ import annotations

from typing import Any

import jax
from jax.sharding import Mesh, SingleDeviceSharding

from optlab.config import Strategy
from optlab.training.handover import owned
from optlab.training.sharding import Rules
from optlab.training.strategies._base import Bounded, Parallel, Step, make, shape, without_axis


class Single(Parallel):
    """The step on JAX's default device."""

    def __init__(self, strategy: Strategy, step: Step, mesh: Mesh | None, rules: Rules):
        if rules:
            raise ValueError(f"strategy='single' divides nothing, got rules for {', '.join(rules)}: say strategy='jit'")
        if jax.process_count() > 1:
            raise ValueError(f"strategy='single' is one process, here are {jax.process_count()}: say strategy='jit'")
        if mesh is not None and mesh.size > 1:
            raise ValueError(f"strategy='single' is one device, got a mesh of {mesh.size}: say strategy='jit'")
        self.strategy, self.mesh, self.replicated = strategy, None, None
        self.device = SingleDeviceSharding(jax.local_devices()[0])
        self.step = Bounded(_Program(without_axis(step, strategy)), 1)

    def place_state(self, state: Any, *arguments: Any) -> Any:
        if callable(state):
            return make(state, arguments, None)
        return jax.device_put(state, self.device, may_alias=False)

    def place_batch(self, batch: Any, examples: int | None = None) -> Any:
        return jax.device_put(owned(batch))

    def rows(self, examples: int) -> slice:
        return slice(examples)

    def shapes(self, state: Any) -> Any:
        return jax.tree.map(lambda x: shape(x, self.device), state)


class _Program:
    def __init__(self, step: Step):
        self.run = jax.jit(step, donate_argnums=0)

    def __call__(self, state: Any, batch: Any) -> tuple[Any, Any]:
        return self.run(state, batch)

    def compile(self, state: Any, batch: Any) -> Any:
        return self.run.lower(state, batch).compile()
