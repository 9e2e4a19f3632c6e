"""Arguments that several commands share: a config file with its overrides, and the other processes of a run."""

from __future__ import annotations

import argparse
import json
import os
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

from optlab.config import Config, ConfigError, load, override, slug


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
    sys.path += (found := places(path))
    config = load(path)
    if path.name == "config.json" and found:
        config = _anchored(config, Path(found[-1]))
    return override(config, arguments.overrides)


def text_of(value: Any) -> str:
    """Writes a value as an override has it."""
    return value if isinstance(value, str) else json.dumps(value).replace("null", "none").replace('"', "")


def run_folder(arguments: argparse.Namespace) -> Path:
    """Returns the folder of the run that `train` starts or continues."""
    return Path(arguments.run or Path("runs") / slug(arguments.config, arguments.overrides))


def connect(arguments: argparse.Namespace) -> None:
    """Connects this process with the others of its run, if --processes is given."""
    if arguments.processes:
        from optlab._processes import connect

        try:
            connect(arguments.processes)
        except ValueError as error:
            raise ConfigError(str(error)) from error


def _anchored(config: Config, folder: Path) -> Config:
    """Resolves the relative paths in the config of an earlier run: they start at the folder that it was run in."""
    arguments = dict(config.data.arguments)
    if isinstance(arguments.get("path"), str):
        arguments["path"] = str(folder / Path(arguments["path"]).expanduser())
    init_from = config.init_from and str(folder / Path(config.init_from).expanduser())
    return replace(config, data=replace(config.data, arguments=arguments), init_from=init_from)


def places(config: Path) -> list[str]:
    """Lists the folders of a config's own modules: its own and the working directory; of a config.json, the run's."""
    if config.name == "config.json" and config.is_file():
        try:
            found = json.loads(config.read_text())["places"]
        except (ValueError, TypeError, KeyError):  # `load` raises the error
            return []
        return [place for place in found if isinstance(place, str)] if isinstance(found, list) else []
    return [str(config.absolute().parent), str(Path.cwd())]
