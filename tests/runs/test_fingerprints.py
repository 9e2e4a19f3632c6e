"""Fingerprints: every bit counts, and where the parts live doesn't."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

from optlab.runs._fingerprints import fingerprints, host_fingerprints

DTYPES = ["float32", "bfloat16", "float16", "int32", "int8", "uint8", "uint16", "uint32", "int4", "bool", "complex64"]


def bytes_like(dtype, shape=(4, 6), seed=0):
    wide = np.random.default_rng(seed).integers(0, 2 if dtype == "bool" else 7, shape)
    return jnp.asarray(wide).astype(dtype)


@pytest.mark.parametrize("dtype", DTYPES)
def test_every_element_and_its_place_count(dtype):
    x = bytes_like(dtype)
    known = {fingerprints({"x": x})["x"], fingerprints({"x": x.reshape(6, 4)[::-1]})["x"]}
    for i in range(x.size):
        old = x.ravel()[i]
        known.add(fingerprints({"x": x.ravel().at[i].set(~old if dtype == "bool" else old + 1).reshape(4, 6)})["x"])
    assert len(known) == 2 + x.size


@given(st.integers(0, 23), st.integers(0, 31))
def test_every_bit_counts(place, bit):
    x = np.random.default_rng(0).standard_normal(24).astype(np.float32)
    changed = x.copy()
    changed.view(np.uint32)[place] ^= np.uint32(1) << np.uint32(bit)
    one, other = (fingerprints({"x": jnp.asarray(a)})["x"] for a in (x, changed))
    assert one[:8] != other[:8]
    assert one[8:] != other[8:]


@pytest.mark.thinned
@pytest.mark.parametrize("dtype", [*DTYPES, "float64", "int64", "complex128"])
@pytest.mark.parametrize("shape", [(4, 6), (), (0, 3)])
def test_numpys_arrays_have_the_same(dtype, shape):
    with jax.enable_x64(True):
        x = bytes_like(dtype, shape) / 3 if "float" in dtype or "complex" in dtype else bytes_like(dtype, shape)
        known = fingerprints({"x": x})
    assert host_fingerprints({"x": np.asarray(x)}) == known


def test_negative_zero_and_the_kinds_of_nan_are_told_apart():
    values = np.array([0x00000000, 0x80000000, 0x7FC00000, 0x7FC00001], np.uint32).view(np.float32)
    assert len({fingerprints({"x": jnp.asarray(values[i : i + 1])})["x"] for i in range(4)}) == 4


@pytest.mark.parametrize("spec", [P(), P("a"), P(None, "b"), P("b", "a"), P(("a", "b"))])
def test_the_same_wherever_the_parts_live(spec):
    x = jnp.asarray(np.random.default_rng(0).standard_normal((16, 8)), jnp.float32)
    mesh = jax.make_mesh((2, 4), ("a", "b"), axis_types=(AxisType.Auto,) * 2)
    assert fingerprints({"x": jax.device_put(x, NamedSharding(mesh, spec))}) == fingerprints({"x": x})


def test_float64_counts_in_full():
    with jax.enable_x64(True):
        x = jnp.asarray([1.0, 2.0])
        assert fingerprints({"x": x}) != fingerprints({"x": x.at[1].add(2.0**-51)})
