"""The folder that a run's place names."""

from __future__ import annotations

import os
import re
from pathlib import Path

from optlab.runs._errors import PlaceError

LONGEST = 255  # bytes of a name, which all common file systems allow


def run_place(path: str | os.PathLike[str]) -> Path:
    """Returns the folder that a run's place names; `~` is the home folder.

    Raises:
        PlaceError: For no name, an address on another machine, and a name that is too long for a file system.
    """
    text = os.fspath(path)
    if not text:
        raise PlaceError("a run's folder must have a name, got '': say 'runs/mine', or '.' for the folder you are in")
    if re.match(r"\w+://", text):
        raise PlaceError(f"a run's folder must be on this machine, got {text}: name a folder here, and copy it later")
    for name in Path(text).parts:
        if (size := len(os.fsencode(name))) > LONGEST:
            raise PlaceError(f"a folder's name can't have more than {LONGEST} bytes, got {size}: {name[:40]}…")
    return Path(text).expanduser()
