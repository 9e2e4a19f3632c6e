"""What `train` and `show` share: the config file that the command line names, with its overrides."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from optlab.config import Config, load, override


def read(arguments: argparse.Namespace) -> Config:
    """The config; modules beside it and in the working directory can be named in it as module:function."""
    sys.path[:0] = [str(Path(arguments.config).absolute().parent), str(Path.cwd())]
    return override(load(arguments.config), arguments.overrides)
