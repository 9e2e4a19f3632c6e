"""`optlab show CONFIG`: every key with its value, type and meaning."""

from __future__ import annotations

import argparse
import json
from typing import Any

from optlab._extras import need
from optlab.commands._config import read
from optlab.components import explain, resolve


def run(arguments: argparse.Namespace) -> int:
    """Prints the table."""
    need("optlab show", "rich")
    from rich import box
    from rich.console import Console
    from rich.table import Table

    table = Table("key", "value", "type", "meaning", box=box.SIMPLE_HEAD, pad_edge=False)
    for key, value, kind, meaning in explain(resolve(read(arguments))):
        table.add_row(key, _text(value), kind, meaning)
    Console(highlight=False, markup=False).print(table)
    return 0


def _text(value: Any) -> str:
    """A value as an override would say it."""
    return value if isinstance(value, str) else json.dumps(value).replace("null", "none").replace('"', "")
