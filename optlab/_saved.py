"""Which checkpoints a folder holds, for those who have no JAX at hand as well."""

import re
from pathlib import Path

LOCK = "writer.lock"  # who writes to the folder


def is_complete(path: Path) -> bool:
    """Whether Orbax saved a checkpoint there: it gives a folder its name last, so any part of one will do.

    One that lost some of its files since is damaged, not absent: the fingerprints tell.
    """
    try:
        return any((path / part).exists() for part in ("commit_success.txt", "_CHECKPOINT_METADATA", "state"))
    except PermissionError:  # something is there: who reads it is told
        return True


def saved_steps(folder: Path) -> list[int]:
    """The steps that are saved completely, ascending; a folder like `020` is none."""
    if not folder.is_dir():
        return []
    return sorted(int(p.name) for p in folder.iterdir() if re.fullmatch("0|[1-9][0-9]*", p.name) and is_complete(p))
