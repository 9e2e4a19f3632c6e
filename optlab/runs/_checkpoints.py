"""Checkpoints on Orbax: one folder a step, complete or not counted, the latest and the best of them kept."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import json
import os
import re
import shutil
import sys
import threading
import time
from collections.abc import Callable, Collection, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any, Literal

import jax

from optlab._checks import is_count
from optlab._processes import CRASHED, is_first, once, together
from optlab.config import ConfigError
from optlab.runs import _storage as storage
from optlab.runs._errors import CheckpointError, DamagedError
from optlab.runs._fingerprints import fingerprints, non_finite
from optlab.runs._listing import is_complete, numbered, saved_steps
from optlab.runs._lock import WriterLock
from optlab.runs._storage import Manifest, State

# Folders that nobody but this file and Orbax makes, left by a kill: a half-written save, a half-removed checkpoint.
_LEFT = re.compile(r"\d+\.orbax-checkpoint-tmp.*|removing-\d+-\d+")


@dataclasses.dataclass(frozen=True)
class _Pending:
    """A save under way.

    Attributes:
      finished: is over when the checkpoint is on the disk and verified.
      step: whose state is saved.
      best: the best step when the save began.
      held: the folder's lock, held until the save is over.
    """

    finished: Future[None]
    step: int
    best: int | None
    held: contextlib.ExitStack


class _UnwrittenError(CheckpointError):
    """What one process couldn't write. The others wait for its part in Orbax, so that nobody can be asked or told."""


_UNAWAITED: set[Future[None]] = set()  # saves that nobody waited for yet: their errors are still to be told


class Checkpoints:
    """The checkpoints of one run: `folder/<step>/`, written in the background. Several processes share the folder.

    Args:
      folder: made if it isn't there.
      every: steps between two saves.
      keep: how many of the latest are kept; the best one is kept beside them.
    """

    def __init__(self, folder: str | Path, *, every: int = 500, keep: int = 2):
        for name, value in (("every", every), ("keep", keep)):
            if not is_count(value):
                raise ValueError(f"{name} must be a whole number of at least 1, got {value!r}")
        if any(sign in str(Path(folder).absolute()) for sign in "[]*?"):
            raise ConfigError(
                f"{folder}: Orbax can't read from a folder with [, ], * or ? in its path; name another one"
            )
        self.folder, self.every, self.keep = Path(folder).absolute(), every, keep
        self._lock = WriterLock(self.folder)
        self._pending: _Pending | None = None

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
        return storage.metadata(self.folder / str(step))["notes"]

    @contextlib.contextmanager
    def writing(self) -> Iterator[None]:
        """Keeps other processes from writing to the folder; at its end a save under way is waited for.

        May be entered again by who is inside. The lock is the kernel's (flock), so a kill frees it; where Python has no
        fcntl (Windows) there is none.

        Raises:
          CheckpointError: if another process writes there; it is named, and nothing is changed.
        """
        with contextlib.ExitStack() as held:
            with together(CheckpointError):
                held.enter_context(self._holding())
            try:
                yield
                self.wait()
            except BaseException:
                self._outlast()
                raise

    def save(self, state: State, notes: Mapping[str, Any], *, best: int | None = None) -> None:
        """Starts to save a state under its step, and returns once its arrays are copied.

        What is then on the disk is read back and held against the state's fingerprints in the background.

        Args:
          state: on any devices.
          notes: JSON data that belongs to it.
          best: the step whose checkpoint is the best so far; it is kept.

        Raises:
          CheckpointError: if this save or the one before failed, two leaves of the state have one name, the step is
            saved with other values or notes, a parameter isn't finite, or another process writes to the folder.
        """
        self.wait()
        step = int(state.step)
        arrays, manifest = storage.flatten(state)
        kept = {leaf["name"] for leaf in manifest if leaf["path"][0] in ("params", "ema")}
        if bad := non_finite({name: x for name, x in arrays.items() if name in kept}):
            raise CheckpointError(f"step {step}: {bad[0]} isn't finite; such parameters are never saved")
        prints = fingerprints(arrays)
        manifest = [{**leaf, "fingerprint": prints.get(leaf["name"])} for leaf in manifest]
        with contextlib.ExitStack() as held:
            try:
                if not once(functools.partial(self._make_room, held, step, manifest, _text(notes))):
                    return
                content = {"step": step, "manifest": manifest, "notes": dict(notes)}
                response = storage.save_async(self.folder / str(step), arrays, content)
            except CheckpointError:
                raise
            except Exception as error:
                raise self._failed(step, error) from error
            finished = _in_background(lambda: self._finish(response, step, manifest))
            self._pending = _Pending(finished, step, best, held.pop_all())

    def wait(self) -> None:
        """Waits until the last save is on the disk and verified, and only then removes older ones.

        Raises:
          CheckpointError: if it failed; the older ones are all there, and what isn't whole is set aside.
        """
        if self._pending is None:
            return
        pending, self._pending = self._pending, None
        _UNAWAITED.discard(pending.finished)
        with pending.held:
            try:
                if isinstance(error := pending.finished.exception(), _UnwrittenError):
                    raise error
                with together(CheckpointError):
                    pending.finished.result()
                if is_first():
                    self._remove_older(pending.step, pending.best)
            except CheckpointError as error:
                if is_first() and is_complete(self.folder / str(pending.step)):
                    self._quarantine(pending.step, str(error))
                raise

    def _finish(self, response: Any, step: int, manifest: Manifest) -> None:
        """What follows a save's start. Every process verifies its share alone: a thread must not wait for others."""
        try:
            response.result()
        except Exception as error:
            raise _UnwrittenError(str(self._failed(step, error))) from error
        try:
            storage.verify_share(self.folder / str(step), manifest)
        except Exception as error:
            raise self._failed(step, error) from error

    def _outlast(self) -> None:
        """Waits for a save under way as an error ends the run; the other processes may be anywhere."""
        if self._pending is None:
            return
        pending, self._pending = self._pending, None
        _UNAWAITED.discard(pending.finished)
        with pending.held:
            try:
                pending.finished.result()
            except CheckpointError as error:
                print(f"optlab: {error}", file=sys.stderr)

    def _remove_older(self, saved: int, best: int | None) -> None:
        """Removes all but the latest, the best and the one just saved, which after a rollback isn't of the latest."""
        for step in self.steps()[: -self.keep]:
            if step not in (saved, best):
                doomed = self.folder / f"removing-{step}-{time.time_ns()}"
                (self.folder / str(step)).rename(doomed)  # never half a checkpoint
                shutil.rmtree(doomed, ignore_errors=True)  # what stays is tried again by the next writer

    @contextlib.contextmanager
    def _holding(self) -> Iterator[None]:
        """Holds the folder's lock in the process that writes, and first removes what a kill left there."""
        if not is_first():
            yield
            return
        with self._lock.held() as is_new:
            for path in self.folder.iterdir() if is_new else ():
                if _LEFT.fullmatch(path.name):
                    shutil.rmtree(path, ignore_errors=True)
            yield

    def _make_room(self, held: contextlib.ExitStack, step: int, manifest: Manifest, notes: str) -> bool:
        """Locks the folder and makes room for a checkpoint; False if it is there already, whole."""
        held.enter_context(self._holding())
        return not self._holds(step, manifest, notes)

    def _holds(self, step: int, manifest: Manifest, notes: str) -> bool:
        """Whether a state is saved already; what is in its place and isn't whole is set aside."""
        path = self.folder / str(step)
        if not is_complete(path):
            if path.exists():  # it may be somebody's
                path.rename(aside := path.with_name(f"incomplete-{step}-{time.time_ns()}"))
                print(f"optlab: {path} is no whole checkpoint; set aside as {aside.name}", file=sys.stderr)
            return False
        try:
            saved = storage.metadata(path)
            if is_same := saved["manifest"] == manifest:
                storage.verify_all(path, manifest)
        except DamagedError as error:
            self._quarantine(step, str(error))
            return False
        if not is_same or _text(saved["notes"]) != notes:
            what = "this state with other notes" if is_same else "a state of other values"
            raise CheckpointError(f"{path} holds {what}: move it away, or name another folder")
        return True

    def _failed(self, step: int, error: Exception) -> CheckpointError:
        return CheckpointError(f"saving step {step} to {self.folder} failed: {type(error).__name__}: {error}")

    def restore(self, like: State, step: int, *, optional: Collection[str] = ("losses",)) -> State:
        """The state that was saved at a step, every bit of it.

        Args:
          like: a state of the same structure, or its shapes with shardings: those of the devices where the restored one
            is to be.
          step: one of `steps()`.
          optional: what may be there on one side only, of "losses" and "ema": what isn't in `like` is left out, what
            wasn't saved is like's own, but an `ema` the restored parameters'.

        Raises:
          DamagedError: if what is there isn't what was saved, or can't be read.
          CheckpointError: if what was saved is of another structure, shape or dtype; it names the leaves.
        """
        path = self.folder / str(step)
        saved = storage.metadata(path)["manifest"]
        there = {leaf["path"][0] for leaf in saved}
        given = {name for name in optional if getattr(like, name) is not None and name not in there}
        if given:
            without: dict[str, Any] = dict.fromkeys(given)
            restored = self.restore(dataclasses.replace(like, **without), step, optional=optional)
            average = jax.tree.map(storage.copied_like, restored.params, like.ema) if "ema" in given else None
            own: dict[str, Any] = {name: average if name == "ema" else getattr(like, name) for name in given}
            return dataclasses.replace(restored, **own)
        left_out = {name for name in optional if getattr(like, name) is None}
        arrays, manifest = storage.flatten(like)
        storage.compare(path, saved=[leaf for leaf in saved if leaf["path"][0] not in left_out], wanted=manifest)
        loaded = storage.load(path, saved, {name: storage.abstract(x) for name, x in arrays.items()})
        loaded = {name: storage.placed_like(x, arrays[name]) for name, x in loaded.items()}
        leaves = [storage.unpack(loaded.get(leaf["name"]), leaf) for leaf in manifest]
        restored = jax.tree.unflatten(jax.tree.structure(like), leaves)
        storage.check_step(path, int(restored.step))
        return restored

    def restore_latest(
        self, like: State, *, optional: Collection[str] = ("losses",)
    ) -> tuple[State, dict[str, Any]] | None:
        """The newest state that is as it was saved, and its notes; None where nothing was ever saved.

        Damaged checkpoints on the way are renamed to `quarantine-<step>-…`, and a line on stderr says so; but not while
        another process writes to the folder.

        Args:
          like: as for `restore`.
          optional: likewise.

        Raises:
          CheckpointError: if there are checkpoints, all of them damaged: a run never starts again from 0 in silence; or
            as `restore`, for another structure.
        """
        passed = []
        once(self._tell_incomplete)
        for step in reversed(once(self.steps)):
            try:
                with together(DamagedError):
                    restored = self.restore(like, step, optional=optional)
                return restored, once(functools.partial(self.notes, step))
            except DamagedError as error:
                message = str(error)
            once(functools.partial(self._set_aside, step, message))
            passed.append(str(step))
        if bad := once(self._quarantined) or passed:
            raise CheckpointError(
                f"no checkpoint in {self.folder} is whole, and a run doesn't start again from 0 by itself; set aside: "
                f"{', '.join(bad)}. Move them away to start afresh, or name another folder"
            )
        return None

    def contents(self, step: int) -> Manifest:
        """What was saved at a step: for every array its name, path, shape, dtype, kind of key and fingerprint."""
        return storage.metadata(self.folder / str(step))["manifest"]

    def verify(self, step: int) -> None:
        """Reads a checkpoint and holds every array against its fingerprint.

        Raises:
          DamagedError: if what is there isn't what was saved, or can't be read; it names the arrays.
        """
        storage.verify_all(self.folder / str(step), self.contents(step))

    def _quarantined(self) -> list[str]:
        return sorted(p.name for p in self.folder.glob("quarantine-*"))

    def _tell_incomplete(self) -> None:
        for path in (p for p in numbered(self.folder) if (p.is_dir() or p.is_symlink()) and not is_complete(p)):
            print(f"optlab: {path} holds no whole checkpoint: passed over", file=sys.stderr)

    def _set_aside(self, step: int, why: str) -> None:
        """Puts a damaged checkpoint into quarantine, unless somebody else writes here, who may be removing it."""
        try:
            with self._holding():
                if (self.folder / str(step)).exists():
                    self._quarantine(step, why)
        except CheckpointError as error:
            print(f"optlab: {why}; left where it is: {error}", file=sys.stderr)

    def _quarantine(self, step: int, why: str) -> None:
        aside = self.folder / f"quarantine-{step}-{time.time_ns()}"
        (self.folder / str(step)).rename(aside)
        print(f"optlab: {why}; set aside as {aside.name}", file=sys.stderr)


def load_params(run: str | Path, *, step: int | Literal["best"] | None = None, collection: str = "params") -> Any:
    """The parameters of a run, without its config: nested dicts (and lists) of arrays.

    Of a list what held no array before its last one is a {}.

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
        best = checkpoints.notes(steps[-1]).get("best")
        if not best:
            raise CheckpointError(f"{checkpoints.folder / str(steps[-1])} notes no best step; saved are {steps}")
        step = best[0]
    if not steps or (step is not None and step not in steps):
        raise CheckpointError(
            f"no checkpoint {'' if step is None else f'of step {step} '}in {Path(run)}; saved are {steps}"
        )
    path = checkpoints.folder / str(steps[-1] if step is None else step)
    saved = storage.metadata(path)["manifest"]
    manifest = [leaf for leaf in saved if leaf["path"][0] == collection]
    if not manifest and collection != "model_state":
        raise CheckpointError(f"{path} holds no {collection}")
    loaded = storage.load(path, saved, storage.on_device(manifest, jax.local_devices()[0]))
    return storage.nest([(leaf["path"][1:], storage.unpack(loaded.get(leaf["name"]), leaf)) for leaf in manifest])


def _text(notes: Mapping[str, Any]) -> str:
    """Notes as they are compared: a NaN equals another one, a tuple a list, 1 as a key `"1"`."""
    return json.dumps(json.loads(json.dumps(dict(notes))), sort_keys=True)


def _in_background(work: Callable[[], None]) -> Future[None]:
    worker = ThreadPoolExecutor(1, thread_name_prefix="optlab-checkpoint")
    finished = worker.submit(work)
    worker.shutdown(wait=False)
    _UNAWAITED.add(finished)
    return finished


def _await_saves() -> None:
    """Waits for saves that nobody waited for. Where Python ends in a way that Orbax can't (3.12 on), it says so.

    Orbax's threads would then keep the process for minutes, so it is ended here.
    """
    for finished in list(_UNAWAITED):
        if error := finished.exception():
            print(f"optlab: {error}; Checkpoints.wait() has to come before Python's end", file=sys.stderr, flush=True)
            sys.stdout.flush()
            os._exit(CRASHED)


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_UNAWAITED.clear)  # the thread that saves isn't there: nothing would end it
threading._register_atexit(_await_saves)  # type: ignore[attr-defined]  # atexit's own come after the executors' end
