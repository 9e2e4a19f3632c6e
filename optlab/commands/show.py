"""`optlab show CONFIG`: lists every key with its value, type, meaning, and whether a continued run may change it."""

from __future__ import annotations

import argparse
import inspect
from pathlib import Path

from optlab._extras import need
from optlab.commands._config import add_config, read
from optlab.commands._pages import hanging, width, wrapped
from optlab.commands.list import KINDS
from optlab.config import text_of
from optlab.experiment import explain_keys, find, kind_of_change, names_of_kind, resolve

HELP = "list every key of a config: its value, its type, what it means"
DESCRIPTION = (
    "Lists every key of a config: its value, its type, what it means. Or explains one component, such as muon."
)
EPILOG = "optlab list names the components."
TABLE = 140  # columns of a terminal from which on a table breaks no words; below it each key has lines of its own


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the arguments of the command."""
    add_config(parser)


def run(arguments: argparse.Namespace) -> int:
    """Prints the table, or a component's arguments."""
    need("optlab show", "rich")
    if (found := _component(arguments.config)) is not None:
        print(found)
        return 0
    from rich.console import Console
    from rich.padding import Padding

    from optlab.commands import _tables

    config = resolve(read(arguments))
    rows = [
        (key, text_of(value), kind, kind_of_change(key, config), meaning)
        for key, value, kind, meaning in explain_keys(config)
    ]
    console = Console(highlight=False, markup=False, width=width() or 200)
    if console.width < TABLE:
        for key, value, kind, change, meaning in rows:
            console.print(f"{key}={value}", style="bold")
            console.print(Padding(f"{meaning.rstrip('.')} ({kind}; {change})", (0, 0, 0, 4)))
        return 0
    table = _tables.empty(("key", "value", "type", "continued", "meaning"))
    for row in rows:
        table.add_row(*row)
    _tables.show(table, console)
    return 0


def _component(name: str) -> str | None:
    """The signature and docstring of a component of that name; None for a file's name."""
    if not name.isidentifier() or Path(name).exists():
        return None
    for kind in KINDS.values():
        if name in names_of_kind(kind):
            factory = find(kind, name)
            arguments = ", ".join(map(_written, inspect.signature(factory).parameters.values()))
            signature = hanging(f"{name}(", f"{arguments})", width())
            about = wrapped(inspect.getdoc(factory) or "", width())
            return f"{signature}\n\n{about}\n\nIn a config: {kind}={name}, {kind}.ARGUMENT=VALUE"
    return None


def _written(parameter: inspect.Parameter) -> str:
    """An argument with its default, without its type."""
    return str(parameter.replace(annotation=inspect.Parameter.empty))
