"""What a checkpoint is on the disk: a flat dict of arrays by Orbax, and beside it a sealed list of what they were."""

from __future__ import annotations

import errno
import hashlib
import json
import logging
import math
import os
import threading
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from orbax.checkpoint import v1 as ocp

from optlab.runs._errors import CheckpointError, DamagedError
from optlab.runs._fingerprints import fingerprints, host_fingerprints
from optlab.runs._listing import METADATA

Manifest = list[dict[str, Any]]
State = Any  # training's TrainState: a dataclass of trees of arrays with `step`, `params` and, or None, `ema`, `losses`
WIDE = ("float64", "complex128", "int64", "uint64")  # of half the width where JAX isn't told to enable them


# A state as a flat dict of arrays, and a manifest that says what each of them was.


def flatten(state: State) -> tuple[dict[str, Any], Manifest]:
    """The arrays (or shapes, of a state of shapes) by name, and the manifest."""
    arrays, manifest = {}, []
    for path, leaf in jax.tree_util.tree_leaves_with_path(state):
        name = jax.tree_util.keystr(path, simple=True, separator="/")
        data, implementation = _data(name, leaf)
        entry = {"name": name, "path": [_plain(k) for k in path], "shape": list(data.shape), "dtype": str(data.dtype)}
        manifest.append({**entry, "key": implementation})
        if data.size:  # Orbax refuses arrays without elements; their shape says all that there is
            arrays[name] = data
    names = [leaf["name"] for leaf in manifest]
    if len(set(names)) < len(names):
        twice = next(n for n in names if names.count(n) > 1)
        raise CheckpointError(
            f"two leaves of the state are named {twice!r}: rename one (a key of a dict may hold no '/')"
        )
    return arrays, manifest


def _data(name: str, leaf: Any) -> tuple[Any, str | None]:
    """A leaf's array and, of random keys, their implementation; of shapes likewise."""
    if not isinstance(leaf, jax.Array | jax.ShapeDtypeStruct):
        raise CheckpointError(f"{name} is a {type(leaf).__name__}: a state holds JAX's arrays (jnp.asarray) alone")
    if not jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key):
        return leaf, None
    if not isinstance(leaf, jax.ShapeDtypeStruct):
        return jax.random.key_data(leaf), str(jax.random.key_impl(leaf))
    implementations: list[str] = []  # told inside, where the shape is a tracer

    def opened(key: jax.Array) -> jax.Array:
        implementations.append(str(jax.random.key_impl(key)))
        return jax.random.key_data(key)

    data = jax.eval_shape(opened, leaf)
    return jax.ShapeDtypeStruct(data.shape, data.dtype, sharding=leaf.sharding), implementations[0]


def _plain(key: Any) -> str | int | dict[str, Any]:
    """An entry of a leaf's path: an index, or a name; the number in a dict and the value of a variable say so."""
    if isinstance(key, jax.tree_util.SequenceKey):
        return key.idx
    if isinstance(key, jax.tree_util.DictKey) and isinstance(key.key, int | np.integer):
        return {"key": int(key.key)}
    if isinstance(key, jax.tree_util.GetAttrKey) and key.name == "value":
        return {"attribute": key.name}
    return jax.tree_util.keystr((key,), simple=True)


def unpack(data: jax.Array | None, leaf: Mapping[str, Any]) -> jax.Array:
    if data is None:
        data = jnp.zeros(leaf["shape"], leaf["dtype"])
    return jax.random.wrap_key_data(data, impl=leaf["key"]) if leaf["key"] else data


def abstract(x: Any) -> jax.ShapeDtypeStruct:
    """Shape, dtype and place of an array or a shape; without any it is the first device."""
    sharding = x.sharding or jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
    return jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding)


def placed_like(x: jax.Array, like: Any) -> jax.Array:
    """A restored array, free to go where it is needed if the one like it is (a scalar beside divided parameters)."""
    is_free = isinstance(like, jax.Array) and not like.committed
    return jnp.asarray(np.asarray(x)) if is_free else x


def copied_like(x: jax.Array, like: Any) -> jax.Array:
    """A copy of like's dtype, where that is, if it says so."""
    x = x.astype(like.dtype)
    return jnp.copy(x) if like.sharding is None else jnp.copy(jax.device_put(x, like.sharding))


def nest(items: Sequence[tuple[Sequence[Any], Any]]) -> Any:
    """Nested dicts and lists from paths; in a list a {} stands where there was nothing, so that none moves up.

    What has a value and nothing else, as NNX's variables, is that value: so `nnx.update` takes it.
    """
    if not items:
        return {}
    if not items[0][0]:
        return items[0][1]
    if [path for path, _ in items] == [[{"attribute": "value"}]]:
        return items[0][1]
    below: dict[tuple[str, Any], list[tuple[Sequence[Any], Any]]] = {}
    for path, x in items:
        below.setdefault(_head(path[0]), []).append((path[1:], x))
    parts = {head: nest(members) for head, members in below.items()}
    indices = [key for kind, key in parts if kind == "index"]
    if indices:
        return [parts.get(("index", i), {}) for i in range(max(indices) + 1)]
    return {key: part for (_, key), part in parts.items()}


def _head(entry: str | int | dict[str, Any]) -> tuple[str, Any]:
    """What kind of entry of a path it is, and its key."""
    if isinstance(entry, dict):
        return next(iter(entry.items()))
    return ("index" if isinstance(entry, int) else "name"), entry


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

_TURN = threading.Lock()  # one at a time: Orbax (0.12) mixes up the saves and loads of several threads


def save_async(path: Path, arrays: Mapping[str, jax.Array], content: Mapping[str, Any]) -> Any:
    """Starts to write arrays, and JSON data with a hash of it; `result()` of what is returned waits for the commit."""
    text = json.dumps(content)
    seal = {"content": text, "sha256": hashlib.sha256(text.encode()).hexdigest()}
    _TURN.acquire()
    try:
        with _context():
            return _Save(ocp.save_async(str(path), dict(arrays), custom_metadata=seal))
    except BaseException:
        _TURN.release()
        raise


class _Save:
    """A save that has the turn until it is over."""

    def __init__(self, response: Any):
        self.response = response

    def result(self) -> None:
        try:
            self.response.result()
        finally:
            _TURN.release()


def metadata(path: Path) -> dict[str, Any]:
    """Manifest and notes, as they were saved. From Orbax's file itself: `ocp.metadata` opens every array first."""

    def read() -> dict[str, Any]:
        seal = json.loads((path / METADATA).read_bytes())["custom_metadata"]
        if hashlib.sha256(seal["content"].encode()).hexdigest() != seal["sha256"]:
            raise DamagedError(f"{path} is damaged: its list of arrays isn't the one that was saved")
        return dict(json.loads(seal["content"]))

    content = _try(path, read)
    if "step" in content:  # not in those that are older than this check; `restore` sees them
        check_step(path, content["step"])
    return content


def check_step(path: Path, step: int) -> None:
    """Refuses a checkpoint under another step's name: a run would go on from there, and remove what is newer."""
    if path.name != str(step):
        raise DamagedError(f"{path} is a copy of step {step}: its name isn't its step's")


def load(path: Path, saved: Manifest, wanted: Mapping[str, jax.ShapeDtypeStruct]) -> dict[str, Any]:
    """The wanted arrays, every bit as it was saved; the others are left on the disk."""
    with _context():
        arrays = _read(path, saved, wanted)
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
    context = _context()
    context.multiprocessing.primary_host = jax.process_index()  # as if there were no other process
    context.multiprocessing.active_processes = {jax.process_index()}
    with context:
        arrays = _read(path, saved, like)
    _hold_against(path, saved, arrays, host_fingerprints)


def _read(path: Path, saved: Manifest, wanted: Mapping[str, Any]) -> dict[str, Any]:
    names = [leaf["name"] for leaf in saved if math.prod(leaf["shape"])]
    with _TURN:
        loaded = _try(path, lambda: ocp.load(str(path), {name: wanted.get(name, ocp.PLACEHOLDER) for name in names}))
    return {name: loaded[name] for name in names if name in wanted}


def _hold_against(path: Path, saved: Manifest, arrays: Mapping[str, Any], of: Callable[[Any], dict[str, str]]) -> None:
    there = {leaf["name"]: leaf["fingerprint"] for leaf in saved}
    found = of(arrays)
    if bad := [name for name in arrays if found[name] != there[name]]:
        more = f" and {len(bad) - 3} more" if len(bad) > 3 else ""
        raise DamagedError(f"{path} is damaged: {', '.join(bad[:3])}{more} isn't what was saved")


def _context() -> ocp.Context:
    context = ocp.Context()
    saving = context.array.saving
    saving.use_compression = False  # trained numbers shrink by 8 %, for twice the processor time
    saving.array_metadata_store = None  # files by which NumPy's arrays aren't read, but JAX's: one more to be damaged
    saving.enable_write_sharding_file = False  # who restores says where to
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
    except CheckpointError:
        raise
    except Exception as error:
        what = f"{type(error).__name__}: {str(error)[:200]}"
        if _is_passing(error):
            raise CheckpointError(f"{path} could not be read: {what}") from error
        raise DamagedError(f"{path} can't be read ({what})") from error


# Of the machine, not of what is there: too little memory, too many open files, no permission, a server that is away.
_PASSING = (
    *(errno.ENOMEM, errno.EMFILE, errno.ENFILE, errno.EACCES, errno.EPERM, errno.EAGAIN, errno.EINTR),
    *(errno.ETIMEDOUT, errno.ESTALE, errno.ENOTCONN, errno.EHOSTDOWN, errno.EHOSTUNREACH),
)
_SAID = ("RESOURCE_EXHAUSTED", *map(os.strerror, _PASSING))


def _is_passing(error: BaseException) -> bool:
    """Whether reading may succeed another time. TensorStore gives the system's words, not its numbers."""
    if isinstance(error, MemoryError) or (isinstance(error, OSError) and error.errno in _PASSING):
        return True
    return any(said in str(error) for said in _SAID) or (error.__cause__ is not None and _is_passing(error.__cause__))
