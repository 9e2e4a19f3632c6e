"""`optlab checkpoints RUN`: lists a run's checkpoints, and verifies each."""

from __future__ import annotations

import argparse
import math
import time
from typing import TYPE_CHECKING, Any

from optlab._extras import need
from optlab.config import ConfigError
from optlab.runs._listing import LOCK
from optlab.runs._place import run_place

if TYPE_CHECKING:
    from optlab.training import Checkpoints

HELP = "list a run's checkpoints, what each holds, and whether it is whole"
DESCRIPTION = "Reads every checkpoint of a run and holds each array against its fingerprint. Nothing is changed."
EPILOG = None

COLUMNS = ("step", "saved", "MiB", "holds", "is")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the arguments of the command."""
    parser.add_argument("folder", metavar="RUN", help="the run's folder")


def run(arguments: argparse.Namespace) -> int:
    """Prints a table. Returns 1 if a checkpoint is damaged, or all are set aside."""
    need("optlab checkpoints", "rich")
    from optlab.commands import _tables
    from optlab.training import Checkpoints

    folder = run_place(arguments.folder)
    if not folder.is_dir():
        raise ConfigError(f"{folder} is no folder; optlab checkpoints RUN wants a run's, such as runs/digits")
    checkpoints = Checkpoints.of(folder)
    table, damaged = _tables.empty(COLUMNS, numbers=("step", "MiB")), 0
    steps = checkpoints.steps()
    best = next(filter(None, (_best(checkpoints, step) for step in reversed(steps))), None)
    for step in steps:
        holds, verdict = _read(checkpoints, step)
        holds += ", the best" if verdict == "whole" and step == best else ""
        path = checkpoints.folder / str(step)
        try:
            when = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(path.stat().st_mtime))
            size = sum(p.stat().st_size for p in path.rglob("*") if p.is_file())
        except FileNotFoundError:  # a run that writes there has removed it meanwhile
            continue
        damaged += verdict != "whole"
        table.add_row(str(step), when, f"{size / 2**20:.2f}", holds, verdict)
    names = {path.name for path in checkpoints.folder.iterdir()} - {LOCK, *map(str, checkpoints.steps())}
    if not table.row_count and not any(name.startswith("quarantine-") for name in names):
        raise ConfigError(f"no checkpoint in {checkpoints.folder}")
    console = _tables.console()
    _tables.show(table, console)
    for name in sorted(names):
        console.print(f"beside them: {name}", soft_wrap=True)
    return 1 if damaged or not table.row_count else 0


def _read(checkpoints: Checkpoints, step: int) -> tuple[str, str]:
    """Returns (contents, "whole" or the error)."""
    from optlab.training import CheckpointError

    try:
        holds = _summary(checkpoints.contents(step))
    except CheckpointError as error:
        return "", str(error)
    try:
        checkpoints.verify(step)
    except CheckpointError as error:
        return holds, str(error)
    return holds, "whole"


def _best(checkpoints: Checkpoints, step: int) -> int | None:
    """Reads the best step so far from a checkpoint's notes."""
    from optlab.training import CheckpointError

    try:
        best = checkpoints.notes(step).get("best")
    except CheckpointError:
        return None
    return best[0] if best else None


def _summary(manifest: list[dict[str, Any]]) -> str:
    """Counts the numbers in each collection."""
    sizes: dict[str, int] = {}
    for leaf in manifest:
        sizes[leaf["path"][0]] = sizes.get(leaf["path"][0], 0) + math.prod(leaf["shape"])
    return ", ".join(f"{name} {size:,}" for name, size in sizes.items() if name not in ("step", "key"))
