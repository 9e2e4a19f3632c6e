"""Tables in the terminal, for all commands."""

from __future__ import annotations

import sys
from collections.abc import Collection, Iterable

from rich import box
from rich.console import Console
from rich.table import Table


def console(*, quiet: bool = False) -> Console:
    """Returns the terminal; output into a pipe isn't wrapped."""
    return Console(highlight=False, markup=False, width=None if sys.stdout.isatty() else 1000, quiet=quiet)


def empty(columns: Iterable[str], *, numbers: Collection[str] = ()) -> Table:
    """Returns a table without rows; columns of numbers are flush right."""
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for column in columns:
        table.add_column(column, overflow="fold", justify="right" if column in numbers else "left")
    return table
