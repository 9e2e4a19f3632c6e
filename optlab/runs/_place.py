"""The place that a run is given: a folder on this machine."""

from __future__ import annotations

import os
import re
from pathlib import Path

LONGEST = 255  # bytes of a name, which all common file systems allow


def run_place(path: str | os.PathLike[str]) -> Path:
    """Returns the folder that a run's place names; `~` is the home folder.

    Raises:
      ValueError: for an address of another machine, a backslash (Orbax can't read such a folder again), and a name
        that is too long for a file system.
    """
    text = os.fspath(path)
    if re.match(r"\w+://", text):
        raise ValueError(f"a run's folder must be on this machine, got {text!r}: name a folder, and copy it afterwards")
    if "\\" in text:
        raise ValueError(f"a run's folder can't have a backslash in its name, got {text!r}: write {_forward(text)!r}")
    long = [name for name in Path(text).parts if len(os.fsencode(name)) > LONGEST]
    if long:
        size = len(os.fsencode(long[0]))
        raise ValueError(
            f"a folder's name can have {LONGEST} bytes, and {long[0][:40]!r}… has {size}: name a shorter one"
        )
    return Path(text).expanduser()


def _forward(text: str) -> str:
    return text.replace("\\", "/")
