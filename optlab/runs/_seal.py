"""The sealed JSON beside a checkpoint's arrays: step, manifest and notes, with a hash of their text. No JAX is needed.

Orbax keeps it in the file `_CHECKPOINT_METADATA`, as custom metadata.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar

from optlab.runs._errors import CheckpointError, DamagedError
from optlab.runs._listing import METADATA

T = TypeVar("T")


def sealed(content: Mapping[str, Any]) -> dict[str, str]:
    """Seals JSON data: its text, and a hash of the text."""
    text = json.dumps(content)
    return {"content": text, "sha256": _hash(text)}


def read_sealed(path: Path) -> dict[str, Any]:
    """Reads a checkpoint's step, manifest and notes from Orbax's file: `ocp.metadata` would open every array first.

    Raises:
        DamagedError: If they aren't what was saved, or are another step's.
    """

    def read() -> dict[str, Any]:
        seal = json.loads((path / METADATA).read_bytes())["custom_metadata"]
        if _hash(seal["content"]) != seal["sha256"]:
            raise DamagedError(f"{path} is damaged: its list of arrays isn't the one that was saved")
        content = dict(json.loads(seal["content"]))
        check_step(path, content["step"])
        return content

    return reading(path, read)


def check_step(path: Path, step: int) -> None:
    """Refuses a checkpoint under another step's name: a run would continue from it, and remove newer ones."""
    if path.name != str(step):
        raise DamagedError(f"{path} is a copy of step {step}: its name isn't its step's")


def reading(path: Path, read: Callable[[], T]) -> T:
    """Calls `read`, and names the checkpoint in whatever error it raises.

    Raises:
        CheckpointError: If reading may succeed another time.
        DamagedError: If not.
    """
    try:
        return read()
    except CheckpointError:
        raise
    except Exception as error:
        what = f"{type(error).__name__}: {str(error)[:200]}"
        if _is_passing(error):
            raise CheckpointError(f"{path} could not be read: {what}") from error
        raise DamagedError(f"{path} can't be read ({what})") from error


def _hash(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


# Errors of the machine rather than of the files: too little memory, too many open files, no permission, a server that
# is away.
_PASSING = (
    *(errno.ENOMEM, errno.EMFILE, errno.ENFILE, errno.EACCES, errno.EPERM, errno.EAGAIN, errno.EINTR),
    *(errno.ETIMEDOUT, errno.ESTALE, errno.ENOTCONN, errno.EHOSTDOWN, errno.EHOSTUNREACH),
)
_PHRASES = ("RESOURCE_EXHAUSTED", *map(os.strerror, _PASSING))  # TensorStore gives the system's words, not its numbers


def _is_passing(error: BaseException) -> bool:
    """True if reading may succeed another time."""
    if isinstance(error, MemoryError) or (isinstance(error, OSError) and error.errno in _PASSING):
        return True
    if any(phrase in str(error) for phrase in _PHRASES):
        return True
    return error.__cause__ is not None and _is_passing(error.__cause__)
