"""The command line. Each command is a file of its own, imported when it runs; nothing here imports JAX."""

from __future__ import annotations

import argparse
import importlib
import os
import sys
from collections.abc import Sequence

from optlab import __version__
from optlab._extras import MissingExtraError
from optlab.config import ConfigError

CONFIG = "a Python file with get_config(), or the config.json of a run"
OVERRIDES = "such as steps=500, optimizer=adamw, optimizer.learning_rate=0.01"


def main(argv: Sequence[str] | None = None) -> int:
    """Runs a command; the return value is the process's exit code (2: bad input, 130: Ctrl-C)."""
    arguments = parsed(argv)
    try:
        return importlib.import_module(f"optlab.commands.{arguments.command}").run(arguments)
    except (ConfigError, MissingExtraError) as error:
        print(f"optlab: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("optlab: interrupted", file=sys.stderr)
        return 130


def parsed(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """The words of a command line; without any, those of this process."""
    arguments, rest = _parser().parse_known_args(argv)
    unknown = [word for word in rest if word.startswith("-") or "=" not in word]
    if unknown:
        _parser().error(f"unknown arguments: {' '.join(unknown)}; see optlab {arguments.command} --help")
    if rest:
        arguments.overrides += rest  # those that stood behind an option
    return arguments


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="optlab", description="Research on optimizers in JAX.")
    parser.add_argument("--version", action="version", version=f"optlab {__version__}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")

    train = commands.add_parser(
        "train",
        help="train what a config says; the same command again continues the run",
        description="Trains what a config says. The same command again continues the run from its last checkpoint.",
        epilog="optlab show CONFIG lists every key. Ctrl-C saves and exits with 130, SIGTERM and SIGUSR1 with 75.",
    )
    train.add_argument("config", metavar="CONFIG", help=CONFIG)
    train.add_argument("overrides", metavar="KEY=VALUE", nargs="*", default=[], help=OVERRIDES)
    train.add_argument("--run", metavar="DIR", help="the run's folder (default: runs/<config>-<overrides>)")
    train.add_argument(
        "--allow-change",
        metavar="KEY",
        action="append",
        default=[],
        help="continue although this key is fixed and differs from the run's (optimizer: its arguments, too)",
    )
    train.add_argument("--profile", action="store_true", help="write a profiler trace of ten steps to DIR/profile")

    launch = commands.add_parser(
        "launch",
        help="start several processes of optlab train on this machine, again when one dies",
        description="Starts several processes of optlab train on this machine. When one dies, all start again from the "
        "last checkpoint. On a cluster the scheduler does that: see optlab train --processes.",
        epilog="optlab launch -n 2 -- train CONFIG strategy=fsdp",
    )
    launch.add_argument("-n", dest="count", metavar="N", type=int, required=True, help="how many processes")
    launch.add_argument("--restarts", metavar="N", type=int, default=3, help="how often at most (default: 3)")
    launch.add_argument("words", metavar="-- train CONFIG …", nargs=argparse.REMAINDER, help="the command")

    compare = commands.add_parser(
        "compare",
        help="compare optimizers fairly: each tuned anew several times under one budget",
        description="Tunes every contender of a config anew in each study, trains the winners afresh, and says how "
        "they differ, and how surely. The same command again goes on where it stood; with more studies, trials or "
        "contenders it trains what is new.",
    )
    compare.add_argument("config", metavar="CONFIG", help="a Python file whose get_config() returns a Comparison")
    compare.add_argument(
        "overrides", metavar="KEY=VALUE", nargs="*", default=[], help="such as studies=3, trials=16, steps=500"
    )
    compare.add_argument("--plan", action="store_true", help="say what would be trained and found; train nothing")
    compare.add_argument("--folder", metavar="DIR", help="the study's folder (default: studies/<config>-<overrides>)")
    compare.add_argument(
        "--executor",
        choices=("population", "runs"),
        help="many trials in one program, or one run after another (default: whichever suits the model)",
    )

    show = commands.add_parser(
        "show",
        help="list every key of a config: its value, its type, what it means",
        description="Lists every key of a config: its value, its type, what it means.",
    )
    show.add_argument("config", metavar="CONFIG", help=CONFIG)
    show.add_argument("overrides", metavar="KEY=VALUE", nargs="*", default=[], help=OVERRIDES)

    explain = commands.add_parser(
        "explain",
        help="say which rule of the optimizer moves which parameter, and at what cost",
        description="Says of every parameter what it is, which rule of the optimizer moves it, its state and its work.",
    )
    explain.add_argument("config", metavar="CONFIG", help=CONFIG)
    explain.add_argument("overrides", metavar="KEY=VALUE", nargs="*", default=[], help=OVERRIDES)
    explain.add_argument("--devices", metavar="N", type=int, default=1, help="divide the work over N devices")

    checkpoints = commands.add_parser(
        "checkpoints",
        help="list a run's checkpoints, what each holds, and whether it is whole",
        description="Reads every checkpoint of a run and holds each array against its fingerprint. Nothing is changed.",
    )
    checkpoints.add_argument("folder", metavar="RUN", help="the run's folder")

    devices = commands.add_parser(
        "devices",
        help="say what JAX sees, which strategies fit, and what memory a config's step needs under each",
        description="Says what JAX sees and which strategies fit. With a config: what a step of it needs under each.",
        epilog="XLA_FLAGS=--xla_force_host_platform_device_count=8 simulates eight devices on a CPU.",
    )
    devices.add_argument("config", metavar="CONFIG", nargs="?", help=CONFIG)
    devices.add_argument("overrides", metavar="KEY=VALUE", nargs="*", default=[], help=OVERRIDES)

    for command in (train, devices):
        command.add_argument(
            "--processes",
            metavar="WHERE",
            default=os.environ.get("OPTLAB_PROCESSES"),
            help="one of several: auto (SLURM, Open MPI, TPU pods), or HOST:PORT,COUNT,INDEX (default: "
            "$OPTLAB_PROCESSES)",
        )
    return parser
