"""`optlab lr-range CONFIG`: finds a learning rate by short trainings, and says why that one."""

from __future__ import annotations

import argparse

from optlab._extras import need
from optlab.commands._config import add_config, read
from optlab.commands._tuning import again, new_folder, parts_of, say

HELP = "find a learning rate by short trainings"
DESCRIPTION = (
    "Trains for a tenth of the steps at learning rates two octaves apart, from where the loss stays flat to where it "
    "explodes, then for half of the steps around the best. Prints a suggestion with its reason, and draws a picture."
)
EPILOG = "A short training runs through the whole schedule. The config's other settings hold, its strategy excepted."


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the arguments of the command."""
    add_config(parser)
    parser.add_argument(
        "--low", metavar="RATE", type=float, help="lowest rate of the first trainings (with --high; default: as needed)"
    )
    parser.add_argument("--high", metavar="RATE", type=float, help="highest rate of them")
    parser.add_argument("--short", metavar="STEPS", type=int, help="of the first trainings (default: steps / 10)")
    parser.add_argument("--sweep", action="store_true", help="compare the suggestion with a sweep at full length")
    parser.add_argument("--out", metavar="DIR", help="a new folder for picture and text (default: ranges/lr-…)")


def run(arguments: argparse.Namespace) -> int:
    """Prints the range test. Returns 1 if no learning rate lowers the loss."""
    need("optlab lr-range", "flax", "orbax", "rich", "matplotlib")
    need("optlab lr-range", "scipy", extra="compare")
    folder = new_folder(arguments, "lr")
    parts = parts_of(read(arguments), "lr-range")
    from optlab.tuning import lr_range

    found = lr_range(
        parts.workload,
        parts.factory,
        steps=parts.config.steps,
        schedule=parts.schedule,
        before=parts.before,
        low=arguments.low,
        high=arguments.high,
        middle=parts.rate,
        short=arguments.short,
        sweep=arguments.sweep,
        seed=parts.config.seed,
    )
    command = None
    if found.suggestion is not None:
        command = again("train", arguments, f"optimizer.learning_rate={found.suggestion:.2g}")
    say(folder, str(found), parts.notes, command, found.plot)
    return 0 if found.suggestion is not None else 1
