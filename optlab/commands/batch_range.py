"""`optlab batch-range CONFIG`: throughput and steps to the target by batch size, and the one with the least time."""

from __future__ import annotations

import argparse

from optlab._extras import need
from optlab.commands._config import add_config, read
from optlab.commands._tuning import again, new_folder, parts_of, say
from optlab.config import ConfigError

HELP = "find the batch size with the least time to the target"
DESCRIPTION = (
    "Trains to the config's target at several batch sizes, each at the best of a few learning rates, and measures "
    "steps and throughput. Prints the batch size with the least time, beside what the gradients' noise scale predicts."
)
EPILOG = "The learning rate is constant here: a schedule's length would decide when the target is reached."


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the arguments of the command."""
    add_config(parser)
    parser.add_argument(
        "--sizes", metavar="B,B,…", help="batch sizes (default: the config's times 1/8 to 8, as the data allow)"
    )
    parser.add_argument("--out", metavar="DIR", help="a new folder for picture and text (default: ranges/batch-…)")


def run(arguments: argparse.Namespace) -> int:
    """Prints the range test. Returns 1 if no batch size reaches the target."""
    need("optlab batch-range", "flax", "orbax", "rich", "matplotlib")
    need("optlab batch-range", "scipy", extra="theory")
    folder, sizes = new_folder(arguments, "batch"), _sizes(arguments.sizes)
    config = read(arguments)
    if config.target.value is None:
        raise ConfigError(
            "batch-range counts the steps to a target: say target.value=…, such as "
            "target.metric=validation/accuracy target.mode=max target.value=0.9"
        )
    parts = parts_of(config, "batch-range")
    if parts.rate is None:
        raise ConfigError("batch-range needs optimizer.learning_rate=…, which optlab lr-range finds")
    from optlab.tuning import batch_range

    found = batch_range(
        parts.workload,
        parts.factory,
        learning_rate=parts.rate,
        steps=parts.config.steps,
        sizes=sizes,
        before=parts.before,
        seed=parts.config.seed,
    )
    command, notes = None, parts.notes
    if parts.schedule is not None:
        notes = (*notes, f"schedule={parts.config.schedule.name} is left out")
    if found.suggestion is not None:
        command = again("lr-range", arguments, f"batch_size={found.suggestion}", without="optimizer.learning_rate")
    say(folder, str(found), notes, command, found.plot)
    return 0 if found.suggestion is not None else 1


def _sizes(text: str | None) -> list[int] | None:
    if text is None:
        return None
    try:
        return [int(word) for word in text.split(",")]
    except ValueError:
        raise ConfigError(
            f"--sizes must be batch sizes with commas between them, such as 32,64,128, got {text}"
        ) from None
