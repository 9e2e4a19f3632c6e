"""The command line. Each command is one file: its words for --help, `add_arguments(parser)` and `run(arguments)`.

The parser imports all of them, so a command imports JAX, NumPy and whatever else takes long inside `run`.
"""

from __future__ import annotations

import argparse
import importlib
import sys
from collections.abc import Sequence

from optlab import __version__
from optlab._extras import MissingExtraError
from optlab.commands._dialect import in_words
from optlab.config import ConfigError

COMMANDS = ("train", "launch", "show", "explain", "checkpoints", "devices")  # in the order of --help


def main(argv: Sequence[str] | None = None) -> int:
    """Runs a command; the return value is the process's exit code (2: bad input, 130: Ctrl-C)."""
    arguments = parsed(argv)
    try:
        return importlib.import_module(f"optlab.commands.{arguments.command}").run(arguments)
    except (ConfigError, MissingExtraError) as error:
        print(f"optlab: {in_words(error)}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("optlab: interrupted", file=sys.stderr)
        return 130


def parsed(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """Parses the words of a command line; None: those of this process."""
    arguments, rest = _parser().parse_known_args(argv)
    unknown = [word for word in rest if word.startswith("-") or "=" not in word]
    if unknown:
        _parser().error(f"unknown arguments: {' '.join(unknown)}; see optlab {arguments.command} --help")
    if rest:
        arguments.overrides += rest  # argparse leaves over what stands behind an option
    return arguments


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="optlab", description="Research on optimizers in JAX.")
    parser.add_argument("--version", action="version", version=f"optlab {__version__}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for name in COMMANDS:
        command = importlib.import_module(f"optlab.commands.{name}")
        about = {"help": command.HELP, "description": command.DESCRIPTION, "epilog": command.EPILOG}
        command.add_arguments(commands.add_parser(name, **about))
    return parser
