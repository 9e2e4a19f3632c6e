"""The command line. Each command is one file: its words for --help, `add_arguments(parser)` and `run(arguments)`.

The parser imports all of them, so a command imports JAX, NumPy and whatever else takes long inside `run`.
"""

from __future__ import annotations

import argparse
import importlib
import io
import os
import re
import sys
import traceback
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from optlab import __version__
from optlab._extras import MissingExtraError
from optlab._messages import meant, nearest
from optlab.commands._dialect import in_words
from optlab.compare import StudyError
from optlab.config import Config, ConfigError
from optlab.runs._errors import PlaceError
from optlab.tuning import RangeError

COMMANDS = (
    "train",
    "compare",
    "diagnose",
    "lr-range",
    "batch-range",
    "report",
    "launch",
    "list",
    "show",
    "explain",
    "checkpoints",
    "devices",
)  # in the order of --help


def main(argv: Sequence[str] | None = None) -> int:
    """Runs a command; the return value is the process's exit code (2: bad input, 130: Ctrl-C)."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")  # a terminal that isn't UTF-8 shows ? for …
    if not (sys.argv[1:] if argv is None else argv):
        _parser().print_help()
        return 0
    arguments = parsed(argv)
    try:
        return _command(arguments.command).run(arguments)
    except (ConfigError, PlaceError, StudyError, RangeError, MissingExtraError) as error:
        print(f"optlab: {in_words(error)}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("optlab: interrupted", file=sys.stderr)
        return 130
    except (RuntimeError, AssertionError) as error:
        # Without a CUDA plugin JAX 0.10 fails an assertion.
        is_backend = Path(traceback.extract_tb(error.__traceback__)[-1].filename).name == "xla_bridge.py"
        if not is_backend:
            raise
        print(f"optlab: {_no_platform(error)}", file=sys.stderr)
        return 2
    except BrokenPipeError:  # the reader of the output has left, as head does
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0


def _no_platform(error: Exception) -> str:
    wanted = os.environ.get("JAX_PLATFORMS")
    if not wanted:
        return str(error).splitlines()[0]
    return (
        f"JAX_PLATFORMS={wanted} names a platform that JAX doesn't find here: unset it, or install JAX for it "
        "(such as jax[cuda13])"
    )


def parsed(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """Parses the words of a command line; None: those of this process."""
    words = sys.argv[1:] if argv is None else argv
    if words and not words[0].startswith("-") and words[0] not in COMMANDS:
        _parser().error(f"there is no command {words[0]!r}; {_way(words)}")
    arguments, rest = _parser().parse_known_args(words)
    rest = _with_epochs(rest)
    unknown = [word for word in rest if word.startswith("-") or "=" not in word]
    if unknown and (said := _assignment(unknown)):
        _parser().error(f"{unknown[0]} is no option; a config's keys are said without dashes: {said}")
    if unknown:
        way = _option(arguments.command, unknown[0]) or f"see optlab {arguments.command} --help"
        _parser().error(f"unknown arguments: {' '.join(unknown)}; {way}")
    if rest:
        arguments.overrides += rest  # argparse leaves over what stands behind an option
    return arguments


def _way(words: Sequence[str]) -> str:
    """The command that was probably meant, or all of them."""
    if words[0].endswith((".py", ".json")):
        return f"did you mean optlab train {' '.join(words)}?"
    return nearest(words[0], COMMANDS)


def _with_epochs(words: Sequence[str]) -> list[str]:
    """The words with `--epochs 3` as epochs=3, which is answered once the size of the data is known."""
    if "--epochs" in words[:-1]:
        at = words.index("--epochs")
        words = [*words[:at], f"--epochs={words[at + 1]}", *words[at + 2 :]]
    return [word.lstrip("-") if word.startswith("--epochs=") else word for word in words]


def _assignment(words: Sequence[str]) -> str | None:
    """The override that was probably meant by an option: `--steps 100` is steps=100."""
    key, _, value = words[0].lstrip("-").replace("-", "_").partition("=")
    found = meant(key, [*Config.__dataclass_fields__, "learning_rate", "weight_decay"])
    if not words[0].startswith("--"):
        return None
    value = value or (words[1] if len(words) > 1 else "…")
    owner = lambda name: "" if name in Config.__dataclass_fields__ else "optimizer."
    return " or ".join(f"{owner(name)}{name}={value}" for name in found)


def _option(command: str, word: str) -> str | None:
    """The option of a command that was probably meant by a word: --run for --runs."""
    parser = argparse.ArgumentParser(add_help=False)
    _command(command).add_arguments(parser)
    options = {option.lstrip("-"): option for option in re.findall(r"--[a-z-]+", parser.format_usage())}
    found = meant(word.partition("=")[0].lstrip("-"), options) if word.startswith("-") else []
    return f"did you mean {' or '.join(options[name] for name in found)}?" if found else None


def _command(name: str) -> Any:
    return importlib.import_module(f"optlab.commands.{name.replace('-', '_')}")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="optlab", description="Research on optimizers in JAX.")
    parser.add_argument("--version", action="version", version=f"optlab {__version__}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for name in COMMANDS:
        command = _command(name)
        about = {"help": command.HELP, "description": command.DESCRIPTION, "epilog": command.EPILOG}
        command.add_arguments(commands.add_parser(name, **about))
    return parser
