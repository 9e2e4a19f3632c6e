"""What the commands share: the config file that the command line names, with its overrides; being one of several."""

from __future__ import annotations

import argparse
import json
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

from optlab.config import Config, ConfigError, load, override, slug


def read(arguments: argparse.Namespace) -> Config:
    """The config; modules beside it and in the working directory can be named in it as module:function."""
    path = Path(arguments.config)
    sys.path += (found := places(path))
    config = load(path)
    if path.name == "config.json" and found:
        config = _anchored(config, Path(found[-1]))
    return override(config, arguments.overrides)


def text_of(value: Any) -> str:
    """A value as an override would say it."""
    return value if isinstance(value, str) else json.dumps(value).replace("null", "none").replace('"', "")


def run_folder(arguments: argparse.Namespace) -> Path:
    """Where `train` keeps the run."""
    return Path(arguments.run or Path("runs") / slug(arguments.config, arguments.overrides))


def connect(arguments: argparse.Namespace) -> None:
    """Makes this process one of several, if --processes says so."""
    if arguments.processes:
        from optlab._processes import connect

        try:
            connect(arguments.processes)
        except ValueError as error:
            raise ConfigError(str(error)) from error


def _anchored(config: Config, folder: Path) -> Config:
    """The config of an earlier run: its relative paths are those of the folder that it was run in."""
    arguments = dict(config.data.arguments)
    if isinstance(arguments.get("path"), str):
        arguments["path"] = str(folder / Path(arguments["path"]).expanduser())
    init_from = config.init_from and str(folder / Path(config.init_from).expanduser())
    return replace(config, data=replace(config.data, arguments=arguments), init_from=init_from)


def places(config: Path) -> list[str]:
    """Where a config's own modules are: beside it and in the working directory; for a config.json, of the first run."""
    if config.name == "config.json" and config.is_file():
        try:
            found = json.loads(config.read_text())["places"]
        except (ValueError, TypeError, KeyError):  # `load` says what is wrong with it
            return []
        return [place for place in found if isinstance(place, str)] if isinstance(found, list) else []
    return [str(config.absolute().parent), str(Path.cwd())]
