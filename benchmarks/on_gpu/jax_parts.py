"""What the sides that measure JAX share: arrays to work on, and an optimizer's update as a program."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from on_gpu.bench import Advance, Make, Wait

POOL = 2**22 + 15  # different numbers; no row length divides it, so that no matrix gets its rows twice


def random_like(tree: Any, seed: int = 0) -> Any:
    """Normal numbers, of a standard deviation of 0.02, in the tree's shapes and dtypes.

    They are those of one pool again and again, cut elsewhere for each leaf: an initializer would be one more program to
    compile, and a leaf's own numbers seconds on the host.
    """
    pool = np.random.default_rng(seed).standard_normal(POOL, np.float32) * np.float32(0.02)
    leaves, structure = jax.tree.flatten(tree)
    numbers = [np.resize(np.roll(pool, 7919 * i), x.shape).astype(x.dtype) for i, x in enumerate(leaves)]
    return jax.tree.unflatten(structure, jax.device_put(numbers))


def copy(tree: Any) -> Any:
    """For a program that gives its arguments' buffers away."""
    return jax.tree.map(jnp.copy, tree)


def lower_update(tx: optax.GradientTransformation, leaves: Any) -> Any:
    """Update and step as one program, which gives state and parameters away."""

    def step(grads: Any, state: Any, params: Any) -> tuple[Any, Any]:
        updates, state = tx.update(grads, state, params)
        return optax.apply_updates(params, updates), state

    return jax.jit(step, donate_argnums=(1, 2)).lower(leaves, jax.eval_shape(tx.init, leaves), leaves)


def update_arm(program: Any, tx: optax.GradientTransformation, grads: Any, params: Any) -> Make:
    """Steps of such a program with the same gradients."""

    def make() -> tuple[Advance, Wait]:
        box = [(copy(params), tx.init(params))]

        def advance() -> None:
            params, state = box[0]
            box[0] = program(grads, state, params)

        return advance, lambda: jax.block_until_ready(box[0])

    return make
