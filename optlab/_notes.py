"""Notes: static values in an optimizer's state."""

import dataclasses
from typing import Any

import jax


@dataclasses.dataclass(frozen=True)
class _Noted:
    said: Any

    def __call__(self) -> Any:
        return self.said


def note(said: Any) -> jax.tree_util.Partial:
    """Wraps a hashable value as a pytree node without leaves; calling the node returns the value.

    It is a `Partial` without arguments, which every library handles: JAX compares its function by value, Flax restores
    a state without changing it, and optax's `tree_get` and `tree_set` pass over it, whereas they would enter a
    NamedTuple even if it were registered as static.
    """
    return jax.tree_util.Partial(_Noted(said))
