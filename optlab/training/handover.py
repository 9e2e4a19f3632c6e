"""A batch on its way to a device: a copy that nobody else can fill again, in the dtypes of the device."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from optlab.data import DataError


def owned(batch: Any, name: str = "") -> Any:
    """A copy of a batch's arrays on the host, narrowed to what JAX computes with.

    `jax.device_put` returns before it has read an array, and on a CPU goes on to read the array itself: whoever fills
    it again would change a batch that was handed on. An array of JAX's on a CPU may be such a view, too. Arrays on
    other devices are as they are.

    Raises:
        DataError: for numbers that don't fit, and what are no numbers.
    """
    if isinstance(batch, dict):
        return {key: owned(x, f"{name}/{key}" if name else str(key)) for key, x in batch.items()}
    if isinstance(batch, list | tuple):
        return jax.tree.map(lambda x: owned(x, name), batch)
    if isinstance(batch, jax.Array):
        is_view = batch.is_fully_addressable and len(batch.devices()) == 1 and jax.default_backend() == "cpu"
        is_key = jnp.issubdtype(batch.dtype, jax.dtypes.prng_key)
        return np.array(batch) if is_view and not is_key else batch
    array = np.asarray(batch)
    if array.dtype.kind in "OSUMm" or array.dtype.names is not None:
        raise DataError(f"the batch's {name!r} must hold numbers, got dtype {array.dtype}")
    return _narrowed(array, jax.dtypes.canonicalize_dtype(array.dtype), name)


def _narrowed(array: np.ndarray, dtype: np.dtype, name: str) -> np.ndarray:
    """A copy of that dtype."""
    if dtype == array.dtype:
        return np.array(array)
    if array.dtype.kind in "iu" and array.size:
        low, high, bounds = int(array.min()), int(array.max()), np.iinfo(dtype)
        if low < bounds.min or high > bounds.max:
            raise DataError(f"the batch's {name!r} has {high if high > bounds.max else low}, which is beyond {dtype}")
    try:
        with np.errstate(over="raise"):
            return array.astype(dtype)
    except FloatingPointError:
        raise DataError(f"the batch's {name!r} has {np.abs(array).max():.3g}, which is beyond {dtype}") from None
