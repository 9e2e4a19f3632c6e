"""A state as a flat dict of arrays, and the manifest: a JSON list of each array's name, path, shape and dtype."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from optlab.runs._errors import CheckpointError

Manifest = list[dict[str, Any]]
State = Any  # training's TrainState: a dataclass of trees of arrays with `step`, `params` and, or None, `ema`, `losses`


def flatten(state: State) -> tuple[dict[str, Any], Manifest]:
    """The arrays by name (or the shapes, of a state of shapes), and the manifest."""
    arrays, manifest = {}, []
    for path, leaf in jax.tree_util.tree_leaves_with_path(state):
        name = jax.tree_util.keystr(path, simple=True, separator="/")
        data, implementation = _data(name, leaf)
        entry = {"name": name, "path": [_plain(k) for k in path], "shape": list(data.shape), "dtype": str(data.dtype)}
        manifest.append({**entry, "key": implementation})
        if data.size:  # Orbax refuses arrays without elements; their shape is all that is to be saved
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
    implementations: list[str] = []  # a shape has none to ask for; the tracer that stands for it below has

    def opened(key: jax.Array) -> jax.Array:
        implementations.append(str(jax.random.key_impl(key)))
        return jax.random.key_data(key)

    data = jax.eval_shape(opened, leaf)
    return jax.ShapeDtypeStruct(data.shape, data.dtype, sharding=leaf.sharding), implementations[0]


def _plain(key: Any) -> str | int | dict[str, Any]:
    """An entry of a leaf's path as JSON: an index, a name, or {"key": number} and {"attribute": "value"}."""
    if isinstance(key, jax.tree_util.SequenceKey):
        return key.idx
    if isinstance(key, jax.tree_util.DictKey) and isinstance(key.key, int | np.integer):
        return {"key": int(key.key)}
    if isinstance(key, jax.tree_util.GetAttrKey) and key.name == "value":
        return {"attribute": key.name}
    return jax.tree_util.keystr((key,), simple=True)


def unpack(data: jax.Array | None, leaf: Mapping[str, Any]) -> jax.Array:
    """The leaf that a manifest's entry describes, from its saved array; None: it has no elements."""
    if data is None:
        data = jnp.zeros(leaf["shape"], leaf["dtype"])
    return jax.random.wrap_key_data(data, impl=leaf["key"]) if leaf["key"] else data


def nest(items: Sequence[tuple[Sequence[Any], Any]]) -> Any:
    """Nested dicts and lists from (path, array) pairs. In a list a {} fills each gap, so that no index moves.

    A node with nothing but a "value", as NNX's variables are, becomes that value: `nnx.update` takes it so.
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
    """(kind, key) of an entry of a path."""
    if isinstance(entry, dict):
        return next(iter(entry.items()))
    return ("index" if isinstance(entry, int) else "name"), entry


def compare(path: Path, *, saved: Manifest, wanted: Manifest) -> None:
    """Refuses a checkpoint of another structure, shape or dtype; names up to three leaves that differ."""
    there, here = ({leaf["name"]: _kind(leaf) for leaf in side} for side in (saved, wanted))
    differ = [
        f"{name} ({there.get(name, 'absent')} there, {here.get(name, 'absent')} here)"
        for name in {**there, **here}
        if there.get(name) != here.get(name)
    ]
    if differ:
        more = f" and {len(differ) - 3} more" if len(differ) > 3 else ""
        raise CheckpointError(
            f"{path} is of another model or optimizer: {', '.join(differ[:3])}{more}; name another folder"
        )


def _kind(leaf: Mapping[str, Any]) -> str:
    return f"{leaf['dtype']}{leaf['shape']}" + (f" key {leaf['key']}" if leaf["key"] else "")
