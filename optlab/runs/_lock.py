"""One writer at a time: a lock on a folder, which the kernel frees when its holder ends, however it ends."""

from __future__ import annotations

import contextlib
import os
import socket
import weakref
from collections.abc import Iterator
from pathlib import Path
from typing import IO

from optlab.runs._errors import CheckpointError
from optlab.runs._listing import LOCK

try:
    import fcntl
except ImportError:  # Windows has no flock: nothing is locked there
    fcntl = None  # type: ignore[assignment]


class WriterLock:
    """The right to write to a folder. One process has it at a time, and may take it again while it has it."""

    def __init__(self, folder: Path):
        self.folder = folder
        self._file: IO[str] | None = None
        self._holds = 0

    @contextlib.contextmanager
    def held(self) -> Iterator[bool]:
        """Holds the lock, making the folder if need be; yields whether this is the first hold.

        Raises:
            CheckpointError: If another process holds it, or the folder can't be written to.
        """
        if self._file is None:
            self._file = self._locked()
            _HELD.add(self)
        elif not self._is_in_place():
            raise CheckpointError(f"{self.folder} was deleted or replaced while this process wrote to it")
        self._holds += 1
        try:
            yield self._holds == 1
        finally:
            self._holds -= 1
            if self._holds == 0 and self._file is not None:
                if fcntl is not None:  # closing is not enough: a child process may have inherited the open file
                    fcntl.flock(self._file, fcntl.LOCK_UN)
                self._file.close()
                self._file = None

    def forget(self) -> None:
        """Closes the file without unlocking it: in a forked worker, the run goes on to hold the lock."""
        if self._file is not None:
            self._file.close()
        self._file, self._holds = None, 0

    def _locked(self) -> IO[str]:
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            file = (self.folder / LOCK).open("a+")
        except OSError as error:
            raise CheckpointError(f"{self.folder} can't be written to: {type(error).__name__}: {error}") from error
        try:
            if fcntl is not None:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            file.truncate(0)
            file.write(f"process {os.getpid()} on {socket.gethostname()}")
            file.flush()
        except BlockingIOError:
            file.seek(0)
            holder = file.read() or "another process"
            file.close()
            raise CheckpointError(
                f"{self.folder} is being written by {holder}: wait for its end, or name another folder"
            ) from None
        except OSError as error:
            file.close()
            raise CheckpointError(f"{self.folder} can't be locked: {type(error).__name__}: {error}") from error
        return file

    def _is_in_place(self) -> bool:
        """True if another process would find the very file that is locked."""
        try:
            there = os.stat(self.folder / LOCK)
        except OSError:
            return False
        return self._file is not None and os.path.samestat(os.fstat(self._file.fileno()), there)


_HELD: weakref.WeakSet[WriterLock] = weakref.WeakSet()


def _forget_all() -> None:
    """Drops every lock in a forked worker: its copy of the open file would hold the lock after the run's end."""
    for lock in list(_HELD):
        lock.forget()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget_all)
