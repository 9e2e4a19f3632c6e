"""Runs a transform in float64 beside an oracle: gradients in, updates or iterates out, as NumPy arrays."""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax


def gradients(steps: int = 20, size: int = 5, seed: int = 0) -> np.ndarray:
    """Gradients of `steps` steps (steps, size), of very different sizes from coordinate to coordinate."""
    rng = np.random.default_rng(seed)
    return rng.standard_normal((steps, size)) * 10.0 ** rng.uniform(-3, 3, size)


def ravine(seed: int = 0, size: int = 5) -> tuple[Callable[[Any], Any], np.ndarray, np.ndarray]:
    """The gradient of ½(θ − θ*)ᵀH(θ − θ*) with curvatures from 0.01 to 1, a start, and H."""
    rng = np.random.default_rng(seed)
    Q, _ = np.linalg.qr(rng.standard_normal((size, size)))
    H = (Q * np.geomspace(0.01, 1, size)) @ Q.T
    target = rng.standard_normal(size)
    return lambda theta: H @ (theta - target), rng.standard_normal(size), H


def weighted(weights: Sequence[Sequence[float]], grads: np.ndarray) -> np.ndarray:
    """Σ_k weights[t][k]·g_k for every t: an average, unrolled."""
    return np.stack([sum(w * g for w, g in zip(row, grads, strict=False)) for row in weights])


def updates(tx: optax.GradientTransformation, grads: np.ndarray) -> np.ndarray:
    """What `tx` makes of the gradients (T, …), one after another: (T, …)."""
    return in_float64(scan_updates, tx)(grads)


def iterates(
    tx: optax.GradientTransformation, gradient: Callable[[Any], Any], theta: np.ndarray, steps: int = 100
) -> np.ndarray:
    """θ₀, θ₁, … θ_T of θ ← θ + tx(gradient(θ))."""
    return in_float64(scan_iterates, tx, gradient, steps=steps)(theta)


def in_float64(f: Callable[..., Any], *first: Any, **static: Any) -> Callable[..., Any]:
    """f(*first, …, **static), jitted over what is left, from NumPy to NumPy."""
    jitted = jax.jit(lambda *arrays: f(*first, *arrays, **static))

    def call(*arrays: Any) -> Any:
        with jax.enable_x64(True):
            return jax.tree.map(np.asarray, jitted(*map(np.float64, arrays)))

    return call


def scan_updates(tx: optax.GradientTransformation, grads: jax.Array) -> jax.Array:
    params = jnp.ones_like(grads[0])
    step = lambda state, g: tx.update(g, state, params)[::-1]
    return jax.lax.scan(step, tx.init(params), grads)[1]


def scan_iterates(
    tx: optax.GradientTransformation, gradient: Callable[[Any], Any], theta: jax.Array, steps: int
) -> jax.Array:
    def step(carry: Any, _: None) -> tuple[Any, jax.Array]:
        theta, state = carry
        update, state = tx.update(gradient(theta), state, theta)
        theta = optax.apply_updates(theta, update)
        return (theta, state), theta

    _, path = jax.lax.scan(step, (theta, tx.init(theta)), None, steps)
    return jnp.concatenate([theta[None], path])
