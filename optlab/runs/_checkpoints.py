"""Checkpoints of a run: one folder a step, complete or not counted, the latest and the best of them kept."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import json
import sys
from collections.abc import Collection, Iterator, Mapping
from concurrent.futures import Future
from pathlib import Path
from typing import Any, Literal

from optlab._integers import is_count
from optlab._processes import is_first, once, together
from optlab.runs import _aside, _background
from optlab.runs import _storage as storage
from optlab.runs._errors import CheckpointError, DamagedError, PlaceError
from optlab.runs._fingerprints import fingerprints, non_finite
from optlab.runs._listing import checkpoint_folder, is_complete, saved_steps
from optlab.runs._lock import WriterLock
from optlab.runs._manifest import Manifest, State, flatten
from optlab.runs._place import run_place
from optlab.runs._restore import restore_collection, restore_state
from optlab.runs._seal import read_sealed


@dataclasses.dataclass(frozen=True)
class _Pending:
    """A save under way.

    Attributes:
        finished: done once the checkpoint is on the disk and verified.
        step: the step whose state is saved.
        best: the best step when the save began.
        held: the folder's lock, held until the save is over.
    """

    finished: Future[None]
    step: int
    best: int | None
    held: contextlib.ExitStack


class _UnwrittenError(CheckpointError):
    """One process couldn't write its part. The others wait for it inside Orbax, and can't be asked to agree."""


class Checkpoints:
    """The checkpoints of one run: `folder/<step>/`, written in the background. Several processes share the folder.

    Args:
        folder: made if it isn't there.
        every: steps between two saves.
        keep: how many of the latest are kept; the best one is kept beside them.

    Raises:
        PlaceError: if Orbax can't read from such a folder, or it isn't on this machine.
    """

    def __init__(self, folder: str | Path, *, every: int = 500, keep: int = 2):
        for name, value in (("every", every), ("keep", keep)):
            if not is_count(value):
                raise ValueError(f"{name} must be a whole number of at least 1, got {value!r}")
        self.folder, self.every, self.keep = run_place(folder).absolute(), every, keep
        if any(sign in str(self.folder) for sign in "[]*?\\"):
            raise PlaceError(
                f"{folder}: Orbax can't read from a folder with [, ], *, ? or \\ in its path; name another one"
            )
        self._lock = WriterLock(self.folder)
        self._pending: _Pending | None = None

    @classmethod
    def of(cls, run: str | Path) -> Checkpoints:
        """The checkpoints of a run's folder, or of its folder of checkpoints."""
        return cls(checkpoint_folder(run))

    # Reading.

    def steps(self) -> list[int]:
        """The steps that are saved completely, ascending."""
        return saved_steps(self.folder)

    def notes(self, step: int) -> dict[str, Any]:
        """The JSON data that was saved beside the state."""
        return read_sealed(self.folder / str(step))["notes"]

    def contents(self, step: int) -> Manifest:
        """The saved arrays: for each its name, path, shape, dtype, kind of key and fingerprint."""
        return read_sealed(self.folder / str(step))["manifest"]

    def verify(self, step: int) -> None:
        """Reads a checkpoint and compares every array with its fingerprint.

        Raises:
            DamagedError: If an array isn't what was saved, or can't be read; it names the arrays.
        """
        storage.verify_all(self.folder / str(step), self.contents(step))

    def restore(self, like: State, step: int, *, optional: Collection[str] = ("losses",)) -> State:
        """Restores the state that was saved at a step, bit for bit.

        Args:
            like: a state of the same structure, or its shapes with shardings, which say where the restored arrays go.
            step: one of `steps()`.
            optional: "losses", "ema" or both: these may be missing on one side. A part that isn't in `like` is left
                out. A part that wasn't saved is taken from `like`, but an `ema` is a copy of the restored parameters.

        Raises:
            DamagedError: If an array isn't what was saved, or can't be read.
            CheckpointError: If the structure, a shape or a dtype differs; it names the leaves.
        """
        return restore_state(self.folder / str(step), like, optional)

    def restore_latest(
        self, like: State, *, optional: Collection[str] = ("losses",)
    ) -> tuple[State, dict[str, Any]] | None:
        """Restores the newest state that is whole, with its notes; None if nothing was ever saved.

        Damaged checkpoints on the way are renamed to `quarantine-<step>-…`, and stderr reports it; but not while
        another process writes to the folder.

        Args:
            like: As for `restore`.
            optional: likewise.

        Raises:
            CheckpointError: If all checkpoints are damaged: a run never starts again from step 0 in silence. Or as
                `restore`, for another structure.
        """
        passed = []
        once(functools.partial(_aside.report_incomplete, self.folder))
        for step in reversed(once(self.steps)):
            try:
                with together(DamagedError):
                    restored = self.restore(like, step, optional=optional)
                return restored, once(functools.partial(self.notes, step))
            except DamagedError as error:
                message = str(error)
            once(functools.partial(self._set_aside, step, message))
            passed.append(str(step))
        if bad := once(functools.partial(_aside.quarantined, self.folder)) or passed:
            raise CheckpointError(
                f"no checkpoint in {self.folder} is whole, and a run doesn't start again from 0 by itself; set aside: "
                f"{', '.join(bad)}. Move them away to start afresh, or name another folder"
            )
        return None

    def find(self, step: int | Literal["best"] | None = None) -> int:
        """The saved step that is meant: None is the latest, "best" the best by the target's metric.

        Raises:
            CheckpointError: If there is no such checkpoint.
        """
        steps, wanted = self.steps(), step
        if wanted == "best" and steps:
            best = self.notes(steps[-1]).get("best")
            if not best:
                raise CheckpointError(f"{self.folder / str(steps[-1])} notes no best step; saved are {steps}")
            wanted = best[0]
        if not steps or (wanted is not None and wanted not in steps):
            raise CheckpointError(
                f"no checkpoint {'' if wanted is None else f'of step {wanted} '}in {self.folder}; saved are {steps}"
            )
        return steps[-1] if wanted is None else int(wanted)

    # Writing.

    @contextlib.contextmanager
    def writing(self) -> Iterator[None]:
        """Keeps other processes from writing to the folder; waits for a save under way at its end.

        It may be entered again from inside. The lock is the kernel's (flock), so a kill frees it. Where Python has no
        fcntl (Windows) there is no lock.

        Raises:
            CheckpointError: If another process writes there; it is named, and nothing is changed.
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

        A thread then reads the files back and compares them with the state's fingerprints.

        Args:
            state: On any devices.
            notes: JSON data that belongs to it.
            best: the step whose checkpoint is the best so far; it is kept.

        Raises:
            CheckpointError: If this save or the one before failed, two leaves of the state have one name, the step is
                saved with other values or notes, a parameter isn't finite, or another process writes to the folder.
        """
        self.wait()
        step = int(state.step)
        arrays, manifest = flatten(state)
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
            finished = _background.start(lambda: self._finish(response, step, manifest))
            self._pending = _Pending(finished, step, best, held.pop_all())

    def wait(self) -> None:
        """Waits until the last save is on the disk and verified, and only then removes older ones.

        Raises:
            CheckpointError: If it failed. The older ones are all there, and a damaged one is set aside.
        """
        if self._pending is None:
            return
        pending, self._pending = self._pending, None
        _background.taken_over(pending.finished)
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
                    _aside.quarantine(self.folder / str(pending.step), str(error))
                raise

    def _outlast(self) -> None:
        """Waits for a save under way as an error ends the run; the other processes may be anywhere."""
        if self._pending is None:
            return
        pending, self._pending = self._pending, None
        _background.taken_over(pending.finished)
        with pending.held:
            try:
                pending.finished.result()
            except CheckpointError as error:
                print(f"optlab: {error}", file=sys.stderr)

    def _finish(self, response: Any, step: int, manifest: Manifest) -> None:
        """Waits for the commit and verifies it. Each process verifies its share alone: a thread must not wait."""
        try:
            response.result()
        except Exception as error:
            raise _UnwrittenError(str(self._failed(step, error))) from error
        try:
            storage.verify_share(self.folder / str(step), manifest)
        except Exception as error:
            raise self._failed(step, error) from error

    def _failed(self, step: int, error: Exception) -> CheckpointError:
        return CheckpointError(f"saving step {step} to {self.folder} failed: {type(error).__name__}: {error}")

    @contextlib.contextmanager
    def _holding(self) -> Iterator[None]:
        """Holds the folder's lock in the process that writes, and first removes what a kill left there."""
        if not is_first():
            yield
            return
        with self._lock.held() as is_new:
            if is_new:
                _aside.remove_leftovers(self.folder)
            yield

    def _make_room(self, held: contextlib.ExitStack, step: int, manifest: Manifest, notes: str) -> bool:
        """Locks the folder and makes room for a checkpoint; False if it is there already, whole."""
        held.enter_context(self._holding())
        return not self._holds(step, manifest, notes)

    def _holds(self, step: int, manifest: Manifest, notes: str) -> bool:
        """True if the state is saved already. Sets aside whatever has its name and isn't whole."""
        path = self.folder / str(step)
        if not is_complete(path):
            _aside.set_aside_incomplete(path)
            return False
        try:
            saved = read_sealed(path)
            if is_same := saved["manifest"] == manifest:
                storage.verify_all(path, manifest)
        except DamagedError as error:
            _aside.quarantine(path, str(error))
            return False
        if not is_same or _text(saved["notes"]) != notes:
            what = "this state with other notes" if is_same else "a state of other values"
            raise CheckpointError(f"{path} holds {what}: move it away, or name another folder")
        return True

    def _remove_older(self, saved: int, best: int | None) -> None:
        """Removes all but the latest, the best and the one just saved, which isn't of the latest after a rollback."""
        for step in self.steps()[: -self.keep]:
            if step not in (saved, best):
                _aside.remove(self.folder / str(step))

    def _set_aside(self, step: int, why: str) -> None:
        """Quarantines a damaged checkpoint, unless another process writes here and may be removing it."""
        path = self.folder / str(step)
        try:
            with self._holding():
                if path.exists():
                    _aside.quarantine(path, why)
        except CheckpointError as error:
            print(f"optlab: {why}; left where it is: {error}", file=sys.stderr)


def load_params(run: str | Path, *, step: int | Literal["best"] | None = None, collection: str = "params") -> Any:
    """Loads the parameters of a run, without its config: nested dicts (and lists) of arrays.

    In a list a {} fills each gap before its last array.

    Args:
        run: the run's folder, or its folder of checkpoints.
        step: the checkpoint's step; "best": the best one by the target's metric; None: the latest.
        collection: "params", "ema" or "model_state".

    Raises:
        CheckpointError: If there is no such checkpoint, or it holds nothing of that collection.
    """
    checkpoints = Checkpoints.of(run)
    return restore_collection(checkpoints.folder / str(checkpoints.find(step)), collection)


def _text(notes: Mapping[str, Any]) -> str:
    """Notes as text to compare: a NaN equals another one, a tuple a list, the key 1 the key "1"."""
    return json.dumps(json.loads(json.dumps(dict(notes))), sort_keys=True)
