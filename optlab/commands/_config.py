"""Arguments that several commands share: a config file with its overrides, and the other processes of a run."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from optlab.config import Config, ConfigError, override, slug
from optlab.config._overrides import EPOCHS
from optlab.runs._folder import load_anchored, places
from optlab.runs._place import run_place


def add_config(parser: argparse.ArgumentParser, *, nargs: str | None = None) -> None:
    """Adds the config file and its overrides; `read` reads them."""
    parser.add_argument(
        "config", metavar="CONFIG", nargs=nargs, help="a Python file with get_config(), or the config.json of a run"
    )
    parser.add_argument(
        "overrides",
        metavar="KEY=VALUE",
        nargs="*",
        default=[],
        help="such as steps=500, optimizer=adamw, optimizer.learning_rate=0.01",
    )


def add_processes(parser: argparse.ArgumentParser) -> None:
    """Adds --processes; `connect` reads it."""
    parser.add_argument(
        "--processes",
        metavar="WHERE",
        default=os.environ.get("OPTLAB_PROCESSES"),
        help="one of several: auto (SLURM, Open MPI, TPU pods), or HOST:PORT,COUNT,INDEX (default: $OPTLAB_PROCESSES)",
    )


def read(arguments: argparse.Namespace) -> Config:
    """Loads the config. It can name functions of modules beside it or in the working directory: module:function."""
    path = Path(arguments.config)
    sys.path += places(path)
    config = load_anchored(path)
    _check_epochs(config, arguments.overrides)
    return override(config, arguments.overrides)


def _check_epochs(config: Config, overrides: Sequence[str]) -> None:
    """Answers epochs=10 with the steps that they are, where the data are at hand to be counted.

    Raises:
        ConfigError: it names the steps.
    """
    said = [o for o in overrides if o.partition("=")[0] in EPOCHS]
    if not said:
        return
    from optlab.experiment._build import training_examples

    try:
        epochs = float(said[0].partition("=")[2])
        config = override(config, [o for o in overrides if o not in said])
        examples = training_examples(config)
    except (ConfigError, ValueError):  # `override` says how to count them
        return
    if examples is not None:
        steps = max(1, round(epochs * examples / config.batch_size))
        raise ConfigError(
            f"a run is steps long: say steps={steps:d}, which is {said[0]} with {examples:,} training examples and "
            f"batch_size={config.batch_size}"
        )


def run_folder(arguments: argparse.Namespace) -> Path:
    """Returns the folder of the run that `train` starts or continues."""
    return run_place(arguments.run or Path("runs") / slug(arguments.config, arguments.overrides))


def connect(arguments: argparse.Namespace) -> None:
    """Connects this process with the others of its run, if --processes is given."""
    if arguments.processes:
        from optlab._processes import connect

        try:
            connect(arguments.processes)
        except ValueError as error:
            raise ConfigError(str(error)) from error
