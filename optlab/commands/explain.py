"""`optlab explain CONFIG`: shows which rule of the optimizer moves which parameter, and at what cost."""

from __future__ import annotations

import argparse

from optlab._extras import need
from optlab.commands._config import add_config, read
from optlab.config import ConfigError
from optlab.experiment import build

HELP = "show which rule of the optimizer moves which parameter, and at what cost"
DESCRIPTION = "Shows each parameter's role, the rule of the optimizer that moves it, its state and its work."
EPILOG = None


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the arguments of the command."""
    add_config(parser)
    parser.add_argument("--devices", metavar="N", type=int, default=1, help="divide the work over N devices")


def run(arguments: argparse.Namespace) -> int:
    """Prints the table and its sums. Nothing is compiled."""
    need("optlab explain", "rich")
    from optlab.commands import _tables

    if arguments.devices < 1:
        raise ConfigError(f"--devices must be at least 1, got {arguments.devices}")
    experiment = build(read(arguments), reads_data=False)

    import jax

    from optlab._explanation import COLUMNS, explain
    from optlab.roles import layout_around

    params, _ = jax.eval_shape(experiment.workload.init, jax.random.key(experiment.config.seed))
    with layout_around(experiment.workload.layout):
        explanation = explain(experiment.tx, params, devices=arguments.devices)
    # A column in which nothing stands would take room from the parameters' paths.
    filled = [i for i in range(len(COLUMNS)) if any(row.cells()[i] for row in explanation.rows)]
    table = _tables.empty([COLUMNS[i] for i in filled], numbers=("state", "GFLOP"))
    for i, row in enumerate(explanation.rows):
        if i and row.rule != explanation.rows[i - 1].rule:
            table.add_section()
        table.add_row(*(row.cells()[i] for i in filled), style="bold" if row.is_said else None)
    console = _tables.console()
    _tables.show(table, console)
    console.print(explanation.summary(), soft_wrap=True)
    return 0
