"""Lists a folder's checkpoints without importing JAX."""

import re
from pathlib import Path

from optlab.runs._place import run_place

METADATA = "_CHECKPOINT_METADATA"  # the JSON file in which Orbax keeps custom metadata
LOCK = "writer.lock"  # names the process that writes to the folder


def checkpoint_folder(run: str | Path) -> Path:
    """The folder of checkpoints of a run; or the given folder itself, if it has no such folder inside."""
    folder = run_place(run)
    return folder / "checkpoints" if (folder / "checkpoints").is_dir() else folder


def saved_steps(folder: Path) -> list[int]:
    """The steps that are saved completely, ascending."""
    return [int(path.name) for path in numbered(folder) if is_complete(path)]


def is_complete(path: Path) -> bool:
    """True if Orbax saved a checkpoint there. It names a folder last, so any part of a checkpoint is proof.

    A checkpoint that has lost some of its files since then is damaged rather than absent: its fingerprints show it.
    """
    try:
        return any((path / part).exists() for part in ("commit_success.txt", METADATA, "state"))
    except PermissionError:  # something is there, and reading it will raise the error
        return True


def numbered(folder: Path) -> list[Path]:
    """The entries that are named like a step, complete or not, ascending; `020` is not a step's name."""
    if not folder.is_dir():
        return []
    found = (path for path in folder.iterdir() if re.fullmatch("0|[1-9][0-9]*", path.name))
    return sorted(found, key=lambda path: int(path.name))
