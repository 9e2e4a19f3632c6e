"""Checks that a loss is the mean that it measures: where its parts are averaged, another one would be another loss."""

from __future__ import annotations

from typing import Any

import jax
import jax.extend.random
import jax.numpy as jnp
import numpy as np

from optlab.data import Batch
from optlab.training.state import TrainState
from optlab.training.step import as_pairs
from optlab.training.workload import Loss

DRAWS = 64  # of a loss whose noise can't be made even


def check_mean(loss: Loss, state: TrainState, batch: Batch, accumulate: int) -> None:
    """Refuses a loss whose value of a batch isn't the mean of its values of two halves, by their weights.

    Two microbatches are looked at, since the whole batch may be too large for a device. What the loss draws is the same
    for all examples here, so that the halves see what the whole batch sees. Where it makes keys of its own of what it
    is given, they see other noise all the same: then it has to be a mean over many draws.
    """

    def some(x: Any) -> Any:
        return x.reshape(-1, accumulate, *x.shape[1:])[:, :2].reshape(-1, *x.shape[1:])

    def is_off(a: Any, b: Any, tolerance: float = 1e-3) -> bool:
        tolerance = max(tolerance, 8 * float(jnp.finfo(a.dtype).eps))
        return abs(float(a) - float(b)) > tolerance * max(abs(float(a)), abs(float(b)))

    def both(params: Any, model_state: Any, batch: Batch, key: jax.Array) -> tuple[jax.Array, jax.Array]:
        def measured(batch: Batch) -> tuple[jax.Array, jax.Array]:
            value, (_, metrics) = loss(params, model_state, batch, key, False)
            return value, as_pairs(metrics)["loss"][1]

        batch = jax.tree.map(some, batch)
        (a, of_a), (b, of_b) = (measured(jax.tree.map(lambda x, i=i: x[i::2], batch)) for i in (0, 1))
        return measured(batch)[0], (a * of_a + b * of_b) / (of_a + of_b)

    def evenly(params: Any, model_state: Any, batch: Batch) -> tuple[jax.Array, jax.Array]:
        key, model_state = _even_keys(model_state)
        return both(params, model_state, batch, key)

    def turned(params: Any, model_state: Any, batch: Batch) -> jax.Array:
        key, model_state = _even_keys(model_state)
        batch = jax.tree.map(lambda x: some(x)[::-1], batch)
        return loss(params, model_state, batch, key, False)[0]

    if len(jax.tree.leaves(batch)[0]) < 2 * accumulate:
        return
    given = (state.params, state.model_state, batch)
    try:
        value, mean = jax.jit(evenly)(*given)
    except NotImplementedError:  # jax.random.poisson draws from JAX's own generator alone, which can't be compared
        return
    if not is_off(value, mean):
        return
    if is_off(value, jax.jit(turned)(*given), 1e-4):  # an example's noise depends on its place all the same
        draw = jax.jit(both)
        off = np.array([float(a) - float(b) for a, b in (draw(*given, jax.random.key(i)) for i in range(DRAWS))])
        if abs(off.mean()) < 5 * off.std(ddof=1) / np.sqrt(DRAWS):
            return
    raise ValueError(
        f"the loss must be a mean: of a batch it is {float(value):.6g}, the mean of its halves by the weight of "
        f"its metric 'loss' is {float(mean):.6g}, and so it would be averaged over devices (pmap) and "
        "microbatches (accumulate). Return sum / weight"
    )


def _even_keys(model_state: Any) -> tuple[jax.Array, Any]:
    """A key, and a model's own, whose draws are the same number in every place of an array, however many there are.

    The number changes with every split or fold of the key, so that what draws until it accepts comes to an end.
    """

    def is_key(x: Any) -> bool:
        return jnp.issubdtype(x.dtype, jax.dtypes.prng_key)

    def even(x: Any) -> Any:
        return jnp.broadcast_to(jax.random.key(0, impl=_EVEN), x.shape) if is_key(x) else x

    return jax.random.key(0, impl=_EVEN), jax.tree.map(even, model_state)


def _next(data: jax.Array) -> jax.Array:
    return jax.extend.random.threefry_2x32(data, data + jnp.asarray([1, 2], jnp.uint32))


def _even_bits(data: jax.Array, width: int, shape: tuple[int, ...]) -> jax.Array:
    words = _next(data)
    word = words[0] if width <= 32 else words[0].astype(jnp.uint64) << 32 | words[1].astype(jnp.uint64)
    return jnp.broadcast_to(word.astype(jnp.dtype(f"uint{width}")), shape)


_EVEN: Any = jax.extend.random.define_prng_impl(
    key_shape=(2,),
    seed=lambda seed: jnp.asarray([0, 1], jnp.uint32),
    split=lambda data, shape: jnp.broadcast_to(_next(data), (*shape, 2)),
    random_bits=_even_bits,
    fold_in=lambda data, number: _next(data),
    name="optlab_even",
    tag="even",
)
