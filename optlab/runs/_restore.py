"""Restores a checkpoint's arrays: as a state like the given one, or one collection as nested dicts."""

from __future__ import annotations

import dataclasses
from collections.abc import Collection
from pathlib import Path
from typing import Any

import jax

from optlab.runs import _storage as storage
from optlab.runs._errors import CheckpointError
from optlab.runs._manifest import State, compare, flatten, nest, unpack
from optlab.runs._seal import check_step, read_sealed


def restore_state(path: Path, like: State, optional: Collection[str]) -> State:
    """Restores the state of a checkpoint; see `Checkpoints.restore`."""
    saved = read_sealed(path)["manifest"]
    there = {leaf["path"][0] for leaf in saved}
    given = {name for name in optional if getattr(like, name) is not None and name not in there}
    if given:
        without: dict[str, Any] = dict.fromkeys(given)
        restored = restore_state(path, dataclasses.replace(like, **without), optional)
        average = jax.tree.map(storage.copied_like, restored.params, like.ema) if "ema" in given else None
        own: dict[str, Any] = {name: average if name == "ema" else getattr(like, name) for name in given}
        return dataclasses.replace(restored, **own)
    left_out = {name for name in optional if getattr(like, name) is None}
    arrays, manifest = flatten(like)
    compare(path, saved=[leaf for leaf in saved if leaf["path"][0] not in left_out], wanted=manifest)
    loaded = storage.load(path, saved, {name: storage.abstract(x) for name, x in arrays.items()})
    loaded = {name: storage.placed_like(x, arrays[name]) for name, x in loaded.items()}
    leaves = [unpack(loaded.get(leaf["name"]), leaf) for leaf in manifest]
    restored = jax.tree.unflatten(jax.tree.structure(like), leaves)
    check_step(path, int(restored.step))
    return restored


def restore_collection(path: Path, collection: str) -> Any:
    """Restores "params", "ema" or "model_state" on the first device; see `load_params`.

    Raises:
        CheckpointError: If the checkpoint holds nothing of it; a model may have no state.
    """
    saved = read_sealed(path)["manifest"]
    manifest = [leaf for leaf in saved if leaf["path"][0] == collection]
    if not manifest and collection != "model_state":
        raise CheckpointError(f"{path} holds no {collection}")
    loaded = storage.load(path, saved, storage.on_device(manifest, jax.local_devices()[0]))
    return nest([(leaf["path"][1:], unpack(loaded.get(leaf["name"]), leaf)) for leaf in manifest])
