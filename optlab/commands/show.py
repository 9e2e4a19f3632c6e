"""`optlab show CONFIG`: lists every key with its value, type, meaning, and whether a continued run may change it."""

from __future__ import annotations

import argparse
import os
import sys

from optlab._extras import need
from optlab.commands._config import add_config, read
from optlab.config import text_of
from optlab.experiment import explain_keys, kind_of_change, resolve

HELP = "list every key of a config: its value, its type, what it means"
DESCRIPTION = "Lists every key of a config: its value, its type, what it means."
EPILOG = None


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the arguments of the command."""
    add_config(parser)


def run(arguments: argparse.Namespace) -> int:
    """Prints the table."""
    need("optlab show", "rich")
    from rich import box
    from rich.console import Console
    from rich.table import Table

    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for column in ("key", "value", "type", "continued", "meaning"):
        table.add_column(column, no_wrap=column == "key", min_width=36 if column == "key" else None, overflow="fold")
    config = resolve(read(arguments))
    for key, value, kind, meaning in explain_keys(config):
        table.add_row(key, text_of(value), kind, kind_of_change(key, config), meaning)
    is_terminal = sys.stdout.isatty() or "COLUMNS" in os.environ
    Console(highlight=False, markup=False, width=None if is_terminal else 200).print(table)
    return 0
