"""What a checkpoint is on the disk: a flat dict of arrays by Orbax, and beside it a sealed list of what they were."""

from __future__ import annotations

import hashlib
import json
import logging
import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from orbax.checkpoint import v1 as ocp

from optlab.training.fingerprint import fingerprints, host_fingerprints
from optlab.training.state import TrainState

Manifest = list[dict[str, Any]]
METADATA = "_CHECKPOINT_METADATA"  # Orbax's JSON file, which holds what is given to it as custom metadata
WIDE = ("float64", "complex128", "int64", "uint64")  # of half the width where JAX isn't told to enable them


class CheckpointError(RuntimeError):
    """A checkpoint that can't be made or used. The message names the folder and the way out."""


class DamagedError(CheckpointError):
    """A checkpoint that isn't what was saved any more."""


# A state as a flat dict of arrays, and a manifest that says what each of them was.


def flatten(state: TrainState) -> tuple[dict[str, jax.Array], Manifest]:
    arrays, manifest = {}, []
    for path, leaf in jax.tree_util.tree_leaves_with_path(state):
        is_key = jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key)
        data = jax.random.key_data(leaf) if is_key else leaf
        name = jax.tree_util.keystr(path, simple=True, separator="/")
        entry = {"name": name, "path": [_plain(k) for k in path], "shape": list(data.shape), "dtype": str(data.dtype)}
        manifest.append({**entry, "key": str(jax.random.key_impl(leaf)) if is_key else None})
        if data.size:  # Orbax refuses arrays without elements; their shape says all that there is
            arrays[name] = data
    names = [leaf["name"] for leaf in manifest]
    if len(set(names)) < len(names):
        twice = next(n for n in names if names.count(n) > 1)
        raise CheckpointError(
            f"two leaves of the state are named {twice!r}: rename one (a key of a dict may hold no '/')"
        )
    return arrays, manifest


def _plain(key: Any) -> str | int:
    """An entry of a leaf's path: an index of a list or tuple, or a name."""
    if isinstance(key, jax.tree_util.SequenceKey):
        return key.idx
    return jax.tree_util.keystr((key,), simple=True)


def unpack(data: jax.Array | None, leaf: Mapping[str, Any]) -> jax.Array:
    if data is None:
        data = jnp.zeros(leaf["shape"], leaf["dtype"])
    return jax.random.wrap_key_data(data, impl=leaf["key"]) if leaf["key"] else data


def abstract(x: jax.Array) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding)


def nest(items: Sequence[tuple[Sequence[str | int], Any]]) -> Any:
    """Nested dicts and lists from paths; in a list a {} stands where there was nothing, so that none moves up."""
    if not items:
        return {}
    if not items[0][0]:
        return items[0][1]
    heads = dict.fromkeys(path[0] for path, _ in items)
    parts = {head: nest([(path[1:], x) for path, x in items if path[0] == head]) for head in heads}
    indices = [head for head in heads if isinstance(head, int)]
    return [parts.get(i, {}) for i in range(max(indices) + 1)] if indices else parts


def compare(path: Path, *, saved: Manifest, wanted: Manifest) -> None:
    kind = lambda leaf: f"{leaf['dtype']}{leaf['shape']}" + (f" key {leaf['key']}" if leaf["key"] else "")
    had, needs = ({leaf["name"]: kind(leaf) for leaf in side} for side in (saved, wanted))
    differ = [
        f"{n} ({had.get(n, 'absent')} there, {needs.get(n, 'absent')} here)"
        for n in {**had, **needs}
        if had.get(n) != needs.get(n)
    ]
    if differ:
        more = f" and {len(differ) - 3} more" if len(differ) > 3 else ""
        raise CheckpointError(
            f"{path} is of another model or optimizer: {', '.join(differ[:3])}{more}; name another folder"
        )


# Orbax.


def save_async(path: Path, arrays: Mapping[str, jax.Array], content: Mapping[str, Any]) -> Any:
    """Starts to write arrays, and JSON data with a hash of it; `result()` of what is returned waits for the commit."""
    text = json.dumps(content)
    seal = {"content": text, "sha256": hashlib.sha256(text.encode()).hexdigest()}
    context = ocp.Context()
    context.array.saving.use_compression = False  # trained numbers shrink by 8 %, for twice the processor time
    with context:
        return ocp.save_async(str(path), dict(arrays), custom_metadata=seal)


def metadata(path: Path) -> dict[str, Any]:
    """Manifest and notes, as they were saved. From Orbax's file itself: `ocp.metadata` opens every array first."""
    seal = _try(path, lambda: json.loads((path / METADATA).read_bytes())["custom_metadata"])
    text = seal.get("content", "")
    if hashlib.sha256(text.encode()).hexdigest() != seal.get("sha256"):
        raise DamagedError(f"{path} is damaged: its list of arrays isn't the one that was saved")
    content = json.loads(text)
    if "step" in content:  # not in those that are older than this check; `restore` sees them
        check_step(path, content["step"])
    return content


def check_step(path: Path, step: int) -> None:
    """Refuses a checkpoint under another step's name: a run would go on from there, and remove what is newer."""
    if path.name != str(step):
        raise DamagedError(f"{path} is a copy of step {step}: its name isn't its step's")


def load(path: Path, saved: Manifest, wanted: Mapping[str, jax.ShapeDtypeStruct]) -> dict[str, Any]:
    """The wanted arrays, every bit as it was saved; the others are left on the disk."""
    arrays = _load(path, saved, wanted)
    halved = [x for x in saved if x["name"] in arrays and x["dtype"] in WIDE and x["dtype"] != arrays[x["name"]].dtype]
    if halved:
        name, dtype = halved[0]["name"], halved[0]["dtype"]
        raise CheckpointError(f"{path} can't be read here: {name} is {dtype}, which needs JAX_ENABLE_X64=1")
    _hold_against(path, saved, arrays, fingerprints)
    return arrays


def verify_share(path: Path, saved: Manifest) -> None:
    """Reads this process' share of the arrays back, without a word to the other processes: no barrier, no collective.

    Raises:
      DamagedError: if the share, or the list of all arrays, isn't what was saved.
    """
    if metadata(path)["manifest"] != saved:
        raise DamagedError(f"{path} is damaged: its list of arrays isn't the one that was saved")
    _verify(path, saved, saved[jax.process_index() :: jax.process_count()])


def verify_all(path: Path, saved: Manifest) -> None:
    """Reads all arrays back in this process, without a word to the others.

    Raises:
      DamagedError: if one isn't what was saved, or can't be read; it names the arrays.
    """
    _verify(path, saved, saved)


def _verify(path: Path, saved: Manifest, share: Manifest) -> None:
    """By NumPy: in a third of the time that JAX's arrays take, and of every width."""
    like = {x["name"]: np.broadcast_to(np.zeros((), jnp.dtype(x["dtype"])), x["shape"]) for x in share}
    with _alone():
        _hold_against(path, saved, _load(path, saved, like), host_fingerprints)


def _load(path: Path, saved: Manifest, wanted: Mapping[str, Any]) -> dict[str, Any]:
    names = [leaf["name"] for leaf in saved if math.prod(leaf["shape"])]
    loaded = _try(path, lambda: ocp.load(str(path), {name: wanted.get(name, ocp.PLACEHOLDER) for name in names}))
    return {name: loaded[name] for name in names if name in wanted}


def _hold_against(path: Path, saved: Manifest, arrays: Mapping[str, Any], of: Callable[[Any], dict[str, str]]) -> None:
    there = {leaf["name"]: leaf["fingerprint"] for leaf in saved}
    found = _try(path, lambda: of(arrays))
    if bad := [name for name in arrays if found[name] != there[name]]:
        more = f" and {len(bad) - 3} more" if len(bad) > 3 else ""
        raise DamagedError(f"{path} is damaged: {', '.join(bad[:3])}{more} isn't what was saved")


def _alone() -> ocp.Context:
    """Orbax as if there were no other process."""
    context = ocp.Context()
    context.multiprocessing.primary_host = jax.process_index()
    context.multiprocessing.active_processes = {jax.process_index()}
    return context


def on_device(manifest: Manifest, device: jax.Device) -> dict[str, jax.ShapeDtypeStruct]:
    place = jax.sharding.SingleDeviceSharding(device)
    return {x["name"]: jax.ShapeDtypeStruct(x["shape"], x["dtype"], sharding=place) for x in manifest}


def _is_news(record: logging.LogRecord) -> bool:
    """Whether a log's line isn't one of dozens with which Orbax surrounds what our error says in one."""
    if record.name == "absl":
        return not record.getMessage().startswith("Failed to get metadata for checkpointable")
    error = record.exc_info[1] if record.exc_info else None
    return not ("never retrieved" in record.getMessage() and "tensorstore_spec" in str(error))


for _name in ("absl", "asyncio"):
    logging.getLogger(_name).addFilter(_is_news)


def _try(path: Path, read: Callable[[], Any]) -> Any:
    try:
        return read()
    except (PermissionError, MemoryError) as error:  # nothing is wrong with what is there
        raise CheckpointError(f"{path} could not be read: {type(error).__name__}: {error}") from error
    except Exception as error:
        if "RESOURCE_EXHAUSTED" in str(error):
            raise CheckpointError(f"{path} could not be read for want of memory: {str(error)[:200]}") from error
        message = f"{path} can't be read ({type(error).__name__}: {str(error)[:200]})"
        raise DamagedError(message) from error
