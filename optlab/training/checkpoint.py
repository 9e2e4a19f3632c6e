"""Checkpoints on Orbax: one folder a step, complete or not counted, the latest and the best of them kept."""

from __future__ import annotations

import functools
import hashlib
import json
import math
import shutil
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import jax
import jax.numpy as jnp
from orbax.checkpoint import v1 as ocp

from optlab._saved import is_complete, saved_steps
from optlab.training.fingerprint import fingerprints
from optlab.training.processes import is_first, once, together
from optlab.training.state import TrainState

Manifest = list[dict[str, Any]]


class CheckpointError(RuntimeError):
    """A checkpoint that can't be made or used. The message names the folder and the way out."""


class DamagedError(CheckpointError):
    """A checkpoint that isn't what was saved any more."""


class Checkpoints:
    """The checkpoints of one run: `folder/<step>/`, written in the background. Several processes share the folder.

    Args:
      folder: made if it isn't there.
      every: steps between two saves.
      keep: how many of the latest are kept; the best one is kept beside them.
    """

    def __init__(self, folder: str | Path, *, every: int = 500, keep: int = 2):
        for name, value in (("every", every), ("keep", keep)):
            if value < 1:
                raise ValueError(f"{name} must be at least 1, got {value}")
        self.folder, self.every, self.keep = Path(folder).absolute(), every, keep
        self._pending: tuple[Any, int | None] | None = None

    @classmethod
    def of(cls, run: str | Path) -> Checkpoints:
        """Those of a run's folder, or of its folder of checkpoints."""
        inner = Path(run) / "checkpoints"
        return cls(inner if inner.is_dir() else run)

    def steps(self) -> list[int]:
        """The steps that are saved completely, ascending."""
        return saved_steps(self.folder)

    def notes(self, step: int) -> dict[str, Any]:
        """What was noted beside the state at a step: JSON data."""
        return _metadata(self.folder / str(step))["notes"]

    def save(self, state: TrainState, notes: Mapping[str, Any], *, best: int | None = None) -> None:
        """Starts to save a state under its step, and returns once its arrays are copied.

        Args:
          state: on any devices.
          notes: JSON data that belongs to it.
          best: the step whose checkpoint is the best so far; it is kept.

        Raises:
          CheckpointError: if this save or the one before failed, or two leaves of the state have one name.
        """
        self.wait()
        path = self.folder / str(int(state.step))
        arrays, manifest = _flatten(state)
        prints = fingerprints(arrays)
        manifest = [{**leaf, "fingerprint": prints.get(leaf["name"])} for leaf in manifest]
        metadata = _sealed({"manifest": manifest, "notes": dict(notes)})
        try:
            if not once(lambda: self._is_free(path)):
                return
            self._pending = (ocp.save_async(str(path), arrays, custom_metadata=metadata), best)
        except Exception as error:
            raise self._failed(error) from error

    def wait(self) -> None:
        """Waits until the last save is on the disk, and only then removes older ones."""
        if self._pending is None:
            return
        (response, best), self._pending = self._pending, None
        try:
            response.result()
        except Exception as error:
            raise self._failed(error) from error
        for step in self.steps()[: -self.keep] if is_first() else []:
            if step != best:
                doomed = (self.folder / str(step)).rename(self.folder / f"removing-{step}")  # never half a checkpoint
                shutil.rmtree(doomed)

    def _is_free(self, path: Path) -> bool:
        """Makes room for a checkpoint, unless it is there."""
        if is_complete(path):
            return False
        self.folder.mkdir(parents=True, exist_ok=True)
        if path.exists():
            _set_aside(path)
        return True

    def _failed(self, error: Exception) -> CheckpointError:
        return CheckpointError(f"saving to {self.folder} failed: {type(error).__name__}: {error}")

    def restore(self, like: TrainState, step: int) -> TrainState:
        """The state that was saved at a step, every bit of it.

        Args:
          like: a state of the same structure, or its shapes with shardings: those of the devices where the restored one
            is to be.
          step: one of `steps()`.

        Raises:
          DamagedError: if what is there isn't what was saved, or can't be read.
          CheckpointError: if what was saved is of another structure, shape or dtype; it names the leaves.
        """
        path = self.folder / str(step)
        arrays, manifest = _flatten(like)
        saved = _metadata(path)["manifest"]
        _compare(path, saved=saved, wanted=manifest)
        loaded = _load(path, saved, {name: _abstract(x) for name, x in arrays.items()})
        leaves = [_unpack(loaded.get(leaf["name"]), leaf) for leaf in manifest]
        return jax.tree.unflatten(jax.tree.structure(like), leaves)

    def restore_latest(self, like: TrainState) -> tuple[TrainState, dict[str, Any]] | None:
        """The newest state that is as it was saved, and its notes; None where nothing was ever saved.

        Damaged checkpoints on the way are renamed to `quarantine-<step>-…`, and a line on stderr says so.

        Raises:
          CheckpointError: if there are checkpoints, all of them damaged: a run never starts again from 0 in silence; or
            as `restore`, for another structure.
        """
        for step in reversed(once(self.steps)):
            try:
                with together(DamagedError):
                    restored = self.restore(like, step)
                return restored, once(functools.partial(self.notes, step))
            except DamagedError as error:
                message = str(error)
            once(functools.partial(self._quarantine, step, message))
        if bad := once(self._quarantined):
            raise CheckpointError(
                f"no checkpoint in {self.folder} is whole, and a run doesn't start again from 0 by itself; set aside: "
                f"{', '.join(bad)}. Move them away to start afresh, or name another folder"
            )
        return None

    def contents(self, step: int) -> Manifest:
        """What was saved at a step: for every array its name, path, shape, dtype, kind of key and fingerprint."""
        return _metadata(self.folder / str(step))["manifest"]

    def verify(self, step: int) -> None:
        """Reads a checkpoint and holds every array against its fingerprint.

        Raises:
          DamagedError: if what is there isn't what was saved, or can't be read; it names the arrays.
        """
        saved = self.contents(step)
        _load(self.folder / str(step), saved, _on_one_device(saved))

    def _quarantined(self) -> list[str]:
        return sorted(p.name for p in self.folder.glob("quarantine-*"))

    def _quarantine(self, step: int, why: str) -> None:
        aside = self.folder / f"quarantine-{step}-{time.time_ns()}"
        (self.folder / str(step)).rename(aside)
        print(f"optlab: {why}; set aside as {aside.name}", file=sys.stderr)


def load_params(run: str | Path, *, step: int | Literal["best"] | None = None, collection: str = "params") -> Any:
    """The parameters of a run, without its config: nested dicts (and lists) of arrays.

    Args:
      run: the run's folder, or its folder of checkpoints.
      step: which checkpoint; "best": the one that was best by the target's metric; None: the latest.
      collection: "params", "ema" or "model_state".

    Raises:
      CheckpointError: if there is no such checkpoint, or nothing of that collection in it.
    """
    checkpoints = Checkpoints.of(run)
    steps = checkpoints.steps()
    if step == "best" and steps:
        step = (checkpoints.notes(steps[-1])["best"] or [None])[0]
    if not steps or (step is not None and step not in steps):
        raise CheckpointError(
            f"no checkpoint {'' if step is None else f'of step {step} '}in {Path(run)}; saved are {steps}"
        )
    path = checkpoints.folder / str(steps[-1] if step is None else step)
    saved = _metadata(path)["manifest"]
    manifest = [leaf for leaf in saved if leaf["path"][0] == collection]
    if not manifest and collection != "model_state":
        raise CheckpointError(f"{path} holds no {collection}")
    loaded = _load(path, saved, _on_one_device(manifest))
    return _nest([(leaf["path"][1:], _unpack(loaded.get(leaf["name"]), leaf)) for leaf in manifest])


# A state as a flat dict of arrays, and a manifest that says what each of them was.


def _flatten(state: TrainState) -> tuple[dict[str, jax.Array], Manifest]:
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


def _unpack(data: jax.Array | None, leaf: Mapping[str, Any]) -> jax.Array:
    if data is None:
        data = jnp.zeros(leaf["shape"], leaf["dtype"])
    return jax.random.wrap_key_data(data, impl=leaf["key"]) if leaf["key"] else data


def _abstract(x: jax.Array) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding)


def _nest(items: Sequence[tuple[Sequence[str | int], Any]]) -> Any:
    """Nested dicts and lists from paths."""
    if not items:
        return {}
    if not items[0][0]:
        return items[0][1]
    heads = dict.fromkeys(path[0] for path, _ in items)
    parts = {head: _nest([(path[1:], x) for path, x in items if path[0] == head]) for head in heads}
    return list(parts.values()) if isinstance(items[0][0][0], int) else parts


def _compare(path: Path, *, saved: Manifest, wanted: Manifest) -> None:
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


def _set_aside(path: Path) -> Path:
    """Renames what stands where a checkpoint is to be: it may be somebody's."""
    return path.rename(path.with_name(f"incomplete-{path.name}-{time.time_ns()}"))


def _sealed(content: Mapping[str, Any]) -> dict[str, str]:
    """JSON data with a hash of it."""
    text = json.dumps(content)
    return {"content": text, "sha256": hashlib.sha256(text.encode()).hexdigest()}


def _metadata(path: Path) -> dict[str, Any]:
    """Manifest and notes, as they were saved."""
    sealed = _try(path, lambda: dict(ocp.metadata(str(path)).custom_metadata))
    text = sealed.get("content", "")
    if hashlib.sha256(text.encode()).hexdigest() != sealed.get("sha256"):
        raise DamagedError(f"{path} is damaged: its list of arrays isn't the one that was saved")
    return json.loads(text)


def _load(path: Path, saved: Manifest, wanted: Mapping[str, jax.ShapeDtypeStruct]) -> dict[str, Any]:
    """The wanted arrays, every bit as it was saved; the others are left on the disk."""
    there = {leaf["name"]: leaf["fingerprint"] for leaf in saved if math.prod(leaf["shape"])}
    loaded = _try(path, lambda: ocp.load(str(path), {name: wanted.get(name, ocp.PLACEHOLDER) for name in there}))
    arrays = {name: loaded[name] for name in there if name in wanted}
    found = _try(path, lambda: fingerprints(arrays))
    if bad := [name for name in arrays if found[name] != there[name]]:
        more = f" and {len(bad) - 3} more" if len(bad) > 3 else ""
        raise DamagedError(f"{path} is damaged: {', '.join(bad[:3])}{more} isn't what was saved")
    return arrays


def _on_one_device(manifest: Manifest) -> dict[str, jax.ShapeDtypeStruct]:
    device = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
    return {x["name"]: jax.ShapeDtypeStruct(x["shape"], x["dtype"], sharding=device) for x in manifest}


def _try(path: Path, read: Callable[[], Any]) -> Any:
    try:
        return read()
    except PermissionError as error:  # nothing is wrong with what is there
        raise CheckpointError(f"{path} may not be read: {error}") from error
    except Exception as error:
        message = f"{path} can't be read ({type(error).__name__}: {str(error)[:200]})"
        raise DamagedError(message) from error
