"""Sets aside what isn't a whole checkpoint, and removes what a kill left of one.

Nothing that may be somebody's is deleted.
"""

from __future__ import annotations

import re
import shutil
import sys
import time
from pathlib import Path

from optlab.runs._listing import is_complete, numbered

# What a kill leaves of a save or a removal. Only Orbax and this file give such names.
_LEFT = re.compile(r"\d+\.orbax-checkpoint-tmp.*|removing-\d+-\d+")


def remove(path: Path) -> None:
    """Removes a checkpoint; a kill never leaves a part of one under a step's name."""
    doomed = path.with_name(f"removing-{path.name}-{time.time_ns()}")
    path.rename(doomed)
    shutil.rmtree(doomed, ignore_errors=True)  # the next writer removes what is left


def remove_leftovers(folder: Path) -> None:
    """Removes what a kill left of a save or a removal."""
    for path in folder.iterdir():
        if _LEFT.fullmatch(path.name):
            shutil.rmtree(path, ignore_errors=True)


def quarantine(path: Path, why: str) -> None:
    """Sets a damaged checkpoint aside as `quarantine-<step>-…`, and reports why."""
    aside = path.with_name(f"quarantine-{path.name}-{time.time_ns()}")
    path.rename(aside)
    print(f"optlab: {why}; set aside as {aside.name}", file=sys.stderr)


def quarantined(folder: Path) -> list[str]:
    """The names of the checkpoints in quarantine."""
    return sorted(path.name for path in folder.glob("quarantine-*"))


def set_aside_incomplete(path: Path) -> None:
    """Renames whatever has a step's name and holds no checkpoint to `incomplete-<step>-…`, and reports it."""
    if path.exists():
        path.rename(aside := path.with_name(f"incomplete-{path.name}-{time.time_ns()}"))
        print(f"optlab: {path} is no whole checkpoint; set aside as {aside.name}", file=sys.stderr)


def report_incomplete(folder: Path) -> None:
    """Reports the folders that have a step's name and hold no checkpoint."""
    for path in (p for p in numbered(folder) if (p.is_dir() or p.is_symlink()) and not is_complete(p)):
        print(f"optlab: {path} holds no whole checkpoint: passed over", file=sys.stderr)
