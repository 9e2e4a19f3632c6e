"""Tables in the terminal, for all commands."""

from __future__ import annotations

from collections.abc import Collection, Iterable

from rich import box
from rich.console import Console
from rich.measure import Measurement
from rich.table import Table

from optlab.commands._pages import width


def console(*, quiet: bool = False) -> Console:
    """Returns the terminal; output into a pipe isn't wrapped."""
    return Console(highlight=False, markup=False, width=width() or 1000, quiet=quiet)


def empty(columns: Iterable[str], *, numbers: Collection[str] = ()) -> Table:
    """Returns a table without rows; columns of numbers are flush right.

    The first column names the row, so that it isn't wrapped: the others give way.
    """
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, padding=(0, 1, 0, 0))
    for i, column in enumerate(columns):
        table.add_column(column, overflow="fold", no_wrap=not i, justify="right" if column in numbers else "left")
    return table


def show(table: Table, console: Console) -> None:
    """Prints a table; one whose longest words don't fit the terminal is wider than it, so that none is broken."""
    least = Measurement.get(console, console.options.update(max_width=1000), table).minimum
    console.width = max(console.width, least)
    console.print(table)
