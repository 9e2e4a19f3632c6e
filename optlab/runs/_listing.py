"""Which checkpoints a folder holds, for those who have no JAX at hand as well."""

import re
from pathlib import Path

METADATA = "_CHECKPOINT_METADATA"  # Orbax's JSON file, which holds what is given to it as custom metadata
LOCK = "writer.lock"  # who writes to the folder


def is_complete(path: Path) -> bool:
    """Whether Orbax saved a checkpoint there: it gives a folder its name last, so any part of one will do.

    One that lost some of its files since is damaged, not absent: the fingerprints tell.
    """
    try:
        return any((path / part).exists() for part in ("commit_success.txt", METADATA, "state"))
    except PermissionError:  # something is there: who reads it is told
        return True


def saved_steps(folder: Path) -> list[int]:
    """The steps that are saved completely, ascending."""
    return [int(path.name) for path in numbered(folder) if is_complete(path)]


def numbered(folder: Path) -> list[Path]:
    """What has a step's name in a folder, complete or not, ascending; a folder like `020` has none."""
    if not folder.is_dir():
        return []
    found = (path for path in folder.iterdir() if re.fullmatch("0|[1-9][0-9]*", path.name))
    return sorted(found, key=lambda path: int(path.name))
