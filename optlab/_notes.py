"""Notes: what stands in a state to be read, and never changes."""

import dataclasses
from typing import Any

import jax


@dataclasses.dataclass(frozen=True)
class _Noted:
    said: Any

    def __call__(self) -> Any:
        return self.said


def note(said: Any) -> jax.tree_util.Partial:
    """What is said, hashable, as a pytree node without leaves; called, it gives it back.

    A `Partial` without arguments, which everybody knows: JAX compares what it calls by value, Flax serializes it and
    leaves what is said to the state that it restores into, and optax's `tree_get` and `tree_set` pass over it, where
    they would go into a NamedTuple even if it is registered as static.
    """
    return jax.tree_util.Partial(_Noted(said))
