"""Which checkpoints a folder holds, for those who have no JAX at hand as well."""

from pathlib import Path

LOCK = "writer.lock"  # who writes to the folder


def is_complete(path: Path) -> bool:
    """Whether Orbax committed it: it renames a folder to its name last, and leaves this mark inside."""
    return (path / "commit_success.txt").is_file()


def saved_steps(folder: Path) -> list[int]:
    """The steps that are saved completely, ascending."""
    if not folder.is_dir():
        return []
    return sorted(int(p.name) for p in folder.iterdir() if p.name.isdigit() and is_complete(p))
