"""`optlab list [KIND]`: the components that a config can name."""

from __future__ import annotations

import argparse
import inspect

from optlab.commands._pages import hanging, width
from optlab.experiment import find, names_of_kind

HELP = "list the optimizers, schedules, models, data, losses, metrics or measures that a config can name"
DESCRIPTION = "Lists the components that a config can name, with a line each; without a kind, the names of all kinds."
EPILOG = "optlab show NAME explains one. A config can also name optax's, and your own as module:function."

KINDS = {
    "optimizers": "optimizer",
    "schedules": "schedule",
    "models": "model",
    "data": "data",
    "losses": "loss",
    "metrics": "metrics",
    "measures": "measure",
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the arguments of the command."""
    parser.add_argument("kind", metavar="KIND", nargs="?", choices=[*KINDS], help=", ".join(KINDS))


def run(arguments: argparse.Namespace) -> int:
    """Prints the names."""
    if arguments.kind is None:
        for words, kind in KINDS.items():
            print(hanging(f"{words:11} ", ", ".join(names_of_kind(kind)), width()))
        return 0
    kind = KINDS[arguments.kind]
    names = names_of_kind(kind)
    longest = max(map(len, names))
    for name in names:
        first_line = (inspect.getdoc(find(kind, name)) or "").partition("\n")[0]
        print(hanging(f"{name:{longest}}  ", first_line, width()))
    return 0
