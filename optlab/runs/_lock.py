"""One writer at a time: a lock on a folder, which the kernel frees when its holder ends, however it ends."""

from __future__ import annotations

import os
import socket
import weakref
from pathlib import Path
from typing import IO

from optlab.runs._errors import CheckpointError
from optlab.runs._listing import LOCK

try:
    import fcntl
except ImportError:  # Windows: nothing is locked there
    fcntl = None  # type: ignore[assignment]


_HELD: weakref.WeakSet[WriterLock] = weakref.WeakSet()


def _let_go() -> None:
    """A forked worker holds nothing: with the file open it would hold the lock for as long as it outlives the run."""
    for lock in list(_HELD):
        lock.forget()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_let_go)


class WriterLock:
    """The right to write to a folder, held by one process at a time; who holds it may take it again."""

    def __init__(self, folder: Path):
        self.folder = folder
        self._file: IO[str] | None = None
        self._holds = 0

    def acquire(self) -> bool:
        """Takes the lock, making the folder if need be; whether it wasn't held here before.

        Raises:
          CheckpointError: if another process holds it, or the folder can't be written to.
        """
        if self._file is None:
            self._file = self._taken()
            _HELD.add(self)
        elif not self._is_in_place():
            raise CheckpointError(f"{self.folder} was deleted or replaced while this process wrote to it")
        self._holds += 1
        return self._holds == 1

    def forget(self) -> None:
        """Closes the file without unlocking it, which its other holder goes on to hold."""
        if self._file is not None:
            self._file.close()
        self._file, self._holds = None, 0

    def release(self) -> None:
        self._holds -= 1
        if self._holds == 0 and self._file is not None:
            if fcntl is not None:
                fcntl.flock(self._file, fcntl.LOCK_UN)  # a forked child may have the file open for long
            self._file.close()
            self._file = None

    def _taken(self) -> IO[str]:
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
        """Whether the file that is locked is the one that another process would find."""
        try:
            there = os.stat(self.folder / LOCK)
        except OSError:
            return False
        return self._file is not None and os.path.samestat(os.fstat(self._file.fileno()), there)
