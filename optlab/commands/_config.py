"""What `train` and `show` share: the config file that the command line names, with its overrides."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

from optlab.config import Config, load, override


def read(arguments: argparse.Namespace) -> Config:
    """The config; modules beside it and in the working directory can be named in it as module:function."""
    sys.path += places(Path(arguments.config))
    return override(load(arguments.config), arguments.overrides)


def places(config: Path) -> list[str]:
    """Where a config's own modules are: beside it and in the working directory; for a config.json, of the first run."""
    if config.name == "config.json" and config.is_file():
        about = json.loads(config.read_text())
        return about.get("places", []) if isinstance(about, dict) else []
    return [str(config.absolute().parent), str(Path.cwd())]
