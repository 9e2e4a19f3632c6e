"""Checkpoints on the disk by Orbax: a flat dict of arrays, and sealed JSON beside it."""

from __future__ import annotations

import logging
import math
import threading
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from orbax.checkpoint import v1 as ocp

from optlab.runs._errors import CheckpointError, DamagedError
from optlab.runs._fingerprints import fingerprints, host_fingerprints
from optlab.runs._manifest import Manifest
from optlab.runs._seal import read_sealed, reading, sealed

WIDE = ("float64", "complex128", "int64", "uint64")  # JAX halves their width unless JAX_ENABLE_X64 is set
_TURN = threading.Lock()  # one at a time: Orbax (0.12) mixes up the saves and loads of several threads


def save_async(path: Path, arrays: Mapping[str, jax.Array], content: Mapping[str, Any]) -> Any:
    """Starts to write arrays, and sealed JSON data; `result()` of the returned object waits for the commit."""
    _TURN.acquire()
    try:
        with _context():
            return _Save(ocp.save_async(str(path), dict(arrays), custom_metadata=sealed(content)))
    except BaseException:
        _TURN.release()
        raise


class _Save:
    """A save that keeps its turn until it is over."""

    def __init__(self, response: Any):
        self.response = response

    def result(self) -> None:
        try:
            self.response.result()
        finally:
            _TURN.release()


def load(path: Path, saved: Manifest, wanted: Mapping[str, jax.ShapeDtypeStruct]) -> dict[str, Any]:
    """Reads the wanted arrays, bit for bit, and no others.

    Raises:
        DamagedError: If one isn't what was saved.
        CheckpointError: If one is wider than JAX allows here.
    """
    with _context():
        arrays = _read(path, saved, wanted)
    halved = [x for x in saved if x["name"] in arrays and x["dtype"] in WIDE and x["dtype"] != arrays[x["name"]].dtype]
    if halved:
        name, dtype = halved[0]["name"], halved[0]["dtype"]
        raise CheckpointError(f"{path} can't be read here: {name} is {dtype}, which needs JAX_ENABLE_X64=1")
    _check(path, saved, arrays, fingerprints)
    return arrays


def verify_share(path: Path, saved: Manifest) -> None:
    """Reads this process's share of the arrays back, on its own: no barrier, no collective.

    Raises:
        DamagedError: If the share, or the list of all arrays, isn't what was saved.
    """
    if read_sealed(path)["manifest"] != saved:
        raise DamagedError(f"{path} is damaged: its list of arrays isn't the one that was saved")
    _verify(path, saved, saved[jax.process_index() :: jax.process_count()])


def verify_all(path: Path, saved: Manifest) -> None:
    """Reads all arrays back in this process, on its own.

    Raises:
        DamagedError: If one isn't what was saved, or can't be read; it names the arrays.
    """
    _verify(path, saved, saved)


def _verify(path: Path, saved: Manifest, share: Manifest) -> None:
    """Reads into NumPy's arrays: in a third of the time that JAX's take, and at every width."""
    like = {x["name"]: np.broadcast_to(np.zeros((), jnp.dtype(x["dtype"])), x["shape"]) for x in share}
    context = _context()
    context.multiprocessing.primary_host = jax.process_index()  # as if there were no other process
    context.multiprocessing.active_processes = {jax.process_index()}
    with context:
        arrays = _read(path, saved, like)
    _check(path, saved, arrays, host_fingerprints)


def _read(path: Path, saved: Manifest, wanted: Mapping[str, Any]) -> dict[str, Any]:
    names = [leaf["name"] for leaf in saved if math.prod(leaf["shape"])]
    with _TURN:
        loaded = reading(path, lambda: ocp.load(str(path), {n: wanted.get(n, ocp.PLACEHOLDER) for n in names}))
    return {name: loaded[name] for name in names if name in wanted}


def _check(path: Path, saved: Manifest, arrays: Mapping[str, Any], of: Callable[[Any], dict[str, str]]) -> None:
    """Compares the arrays' fingerprints with the manifest's."""
    there = {leaf["name"]: leaf["fingerprint"] for leaf in saved}
    found = of(arrays)
    if bad := [name for name in arrays if found[name] != there[name]]:
        more = f" and {len(bad) - 3} more" if len(bad) > 3 else ""
        raise DamagedError(f"{path} is damaged: {', '.join(bad[:3])}{more} isn't what was saved")


def _context() -> ocp.Context:
    context = ocp.Context()
    saving = context.array.saving
    saving.use_compression = False  # it shrinks trained numbers by 8 %, for twice the processor time
    saving.array_metadata_store = None  # its files serve JAX's arrays, not NumPy's: more files that may be damaged
    saving.enable_write_sharding_file = False  # the caller of `load` chooses the devices
    return context


def abstract(x: Any) -> jax.ShapeDtypeStruct:
    """Shape, dtype and sharding of an array or a shape; by default on the first device."""
    sharding = x.sharding or jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
    return jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding)


def on_device(manifest: Manifest, device: jax.Device) -> dict[str, jax.ShapeDtypeStruct]:
    """Shapes of a manifest's arrays by name, all on one device."""
    place = jax.sharding.SingleDeviceSharding(device)
    return {x["name"]: jax.ShapeDtypeStruct(x["shape"], x["dtype"], sharding=place) for x in manifest}


def placed_like(x: jax.Array, like: Any) -> jax.Array:
    """A restored array, uncommitted to its device if `like` is (a scalar beside divided parameters)."""
    is_free = isinstance(like, jax.Array) and not like.committed
    return jnp.asarray(np.asarray(x)) if is_free else x


def copied_like(x: jax.Array, like: Any) -> jax.Array:
    """A copy in the dtype of `like`, and in its sharding if it has one."""
    x = x.astype(like.dtype)
    return jnp.copy(x) if like.sharding is None else jnp.copy(jax.device_put(x, like.sharding))


def _is_news(record: logging.LogRecord) -> bool:
    """False for the dozens of lines that Orbax logs around an error which ours sums up in one."""
    if record.name == "absl":
        return not record.getMessage().startswith("Failed to get metadata for checkpointable")
    error = record.exc_info[1] if record.exc_info else None
    return not ("never retrieved" in record.getMessage() and "tensorstore_spec" in str(error))


for _name in ("absl", "asyncio"):
    logging.getLogger(_name).addFilter(_is_news)
