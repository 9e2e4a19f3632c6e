"""Fingerprints: two numbers for the bits of an array, the same wherever its parts live."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

Name = TypeVar("Name")

# Finalizers of MurmurHash3 and of Mueller's hash: each a bijection of 32 bits, so that one changed word is always seen.
_MIXERS = (((16, 0x85EBCA6B), (13, 0xC2B2AE35), (16, 1)), ((16, 0x45D9F3B), (16, 0x45D9F3B), (16, 1)))


def fingerprints(arrays: Mapping[str, jax.Array | np.ndarray]) -> dict[str, str]:
    """16 hexadecimal digits of every array; a change of any bit changes them.

    Every 32-bit word is mixed with its place, and the results are summed modulo 2³². The order of the sum doesn't
    matter, so neither do the devices that hold the parts. Fingerprints find faults, not forgeries. Random keys are
    given as their data.
    """
    return {name: "".join(f"{int(n):08x}" for n in pair) for name, pair in _of_each(array_fingerprint, arrays).items()}


def host_fingerprints(arrays: Mapping[str, np.ndarray]) -> dict[str, str]:
    """`fingerprints` of NumPy's arrays, which may be wider than JAX's are allowed to be here."""
    with jax.default_device(_host()):
        return fingerprints({name: _halves(x) for name, x in arrays.items()})


def non_finite(arrays: Mapping[Name, jax.Array]) -> list[Name]:
    """The names of the arrays that hold a NaN or an infinity."""
    return [name for name, is_finite in _of_each(_is_finite, arrays).items() if not is_finite]


def array_fingerprint(x: jax.Array) -> jax.Array:
    """The two numbers of an array, uint32 of shape (2,); they may be computed inside a program on the device."""
    words = _words(x)
    strides = [math.prod(words.shape[d + 1 :]) % 2**32 for d in range(words.ndim)]
    place = sum(
        (lax.broadcasted_iota(jnp.uint32, words.shape, d) * np.uint32(s) for d, s in enumerate(strides)),
        jnp.zeros(words.shape, jnp.uint32),
    )
    salted = words ^ _mixed(place + np.uint32(0x9E3779B9), _MIXERS[0])
    mixed = [_mixed(salted, mixer) for mixer in _MIXERS]
    # One sum of pairs: 12 GB/s on one core of a CPU, where two of `jnp.sum` came to 0.7.
    add = lambda a, b: [x + y for x, y in zip(a, b, strict=True)]
    return jnp.stack(lax.reduce(mixed, [np.uint32(0)] * len(mixed), add, range(words.ndim)))


def _halves(x: np.ndarray) -> np.ndarray:
    """An array whose numbers are wider than 32 bits as uint32, in the order of `_words`."""
    if x.dtype == np.complex128:
        x = np.stack([x.real, x.imag])
    if x.dtype.itemsize != 8 or x.dtype == np.complex64:
        return x
    return np.ascontiguousarray(x)[..., None].view(np.uint32)


def _host() -> jax.Device:
    """JAX's CPU, so that no memory of an accelerator is taken; else the first device."""
    try:
        return jax.local_devices(backend="cpu")[0]
    except RuntimeError:  # JAX_PLATFORMS leaves the CPU out
        return jax.local_devices()[0]


def _is_finite(x: jax.Array) -> jax.Array:
    return jnp.all(jnp.isfinite(x))


def _of_each(measure: Callable[[jax.Array], jax.Array], arrays: Mapping[Name, Any]) -> dict[Name, np.ndarray]:
    """Measures each array, and returns the values on the host. Arrays in one place share one program."""
    groups: dict[Any, list[Name]] = {}
    for name, x in arrays.items():
        groups.setdefault(_place(x), []).append(name)
    found: dict[Name, np.ndarray] = {}
    for place, names in groups.items():
        sharding = NamedSharding(place, P()) if isinstance(place, Mesh) else None
        values = _jitted(measure, sharding)([arrays[name] for name in names])
        found |= zip(names, np.asarray(values), strict=True)
    return found


def _place(x: Any) -> Mesh | frozenset[jax.Device] | None:
    """The key of the arrays that one program can take together: their mesh, their devices, or None for NumPy's."""
    sharding = getattr(x, "sharding", None)
    if isinstance(sharding, NamedSharding) and isinstance(sharding.mesh, Mesh):
        return sharding.mesh
    return None if sharding is None else frozenset(sharding.device_set)


@functools.lru_cache
def _jitted(measure: Callable[[jax.Array], jax.Array], sharding: NamedSharding | None) -> Any:
    return jax.jit(lambda arrays: jnp.stack([measure(x) for x in arrays]), out_shardings=sharding)


def _words(x: jax.Array) -> jax.Array:
    """An array's bits as uint32; wider numbers and random keys get one more axis."""
    if jnp.issubdtype(x.dtype, jax.dtypes.prng_key):
        x = jax.random.key_data(x)
    if x.dtype == jnp.bool_:
        return x.astype(jnp.uint32)
    if jnp.issubdtype(x.dtype, jnp.complexfloating):
        return jnp.stack([_words(x.real), _words(x.imag)])
    if x.dtype.itemsize == 8:
        return lax.bitcast_convert_type(x, jnp.uint32)
    if jnp.issubdtype(x.dtype, jnp.integer) and jnp.iinfo(x.dtype).bits < 8:
        return x.astype(jnp.int32).astype(jnp.uint32)
    return lax.bitcast_convert_type(x, jnp.dtype(f"uint{8 * x.dtype.itemsize}")).astype(jnp.uint32)


def _mixed(words: jax.Array, mixer: tuple[tuple[int, int], ...]) -> jax.Array:
    for shift, factor in mixer:
        words = (words ^ (words >> np.uint32(shift))) * np.uint32(factor)
    return words
