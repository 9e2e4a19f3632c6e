"""`optlab compare CONFIG`: runs a study in its folder, and prints the verdict."""

from __future__ import annotations

import argparse
import functools
import inspect
import shlex
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from optlab._extras import need
from optlab.compare.settings import Comparison, overridden
from optlab.config import Component, Config, ConfigError, load, nearest, slug
from optlab.experiment import build, clipping_of, find, schedule_of
from optlab.runs._folder import places

if TYPE_CHECKING:
    from optlab.compare.study import Study

STUDIES = ("trials", "studies", "seeds", "finals", "widen")  # more of these go on in the same folder


HELP = "compare optimizers fairly: each is tuned anew several times under one budget"
DESCRIPTION = (
    "Tunes every contender of a config anew in each study, trains the winners afresh, and reports how they differ. The "
    "same command again continues; with more studies, trials or contenders it trains only what is new."
)
EPILOG = None


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the arguments of the command."""
    parser.add_argument("config", metavar="CONFIG", help="a Python file whose get_config() returns a Comparison")
    parser.add_argument(
        "overrides", metavar="KEY=VALUE", nargs="*", default=[], help="such as studies=3, trials=16, steps=500"
    )
    parser.add_argument("--plan", action="store_true", help="show what would be trained and found; train nothing")
    parser.add_argument("--folder", metavar="DIR", help="the study's folder (default: studies/<config>-<overrides>)")
    parser.add_argument("--workers", metavar="N", type=int, help="train in so many processes of this machine")
    parser.add_argument(
        "--scheduler", metavar="ADDRESS", help="train on the workers of a Dask scheduler: tcp://…, tls://…"
    )
    parser.add_argument(
        "--executor",
        choices=("population", "series", "runs"),
        help="many trials side by side in one program, or in turn, or one run after another (default: what is faster)",
    )


def run(arguments: argparse.Namespace) -> int:
    """Says the plan, or runs the study to its end and prints the verdict."""
    need("optlab compare", "scipy", "plotly", extra="compare")
    path = Path(arguments.config)
    sys.path += places(path)
    comparison = overridden(load(path, Comparison), arguments.overrides)
    study = _study(comparison, arguments.executor)
    fixed = [a for a in arguments.overrides if a.partition("=")[0] not in STUDIES]
    folder = Path(arguments.folder or Path("studies") / slug(path, fixed))
    if arguments.plan:
        from optlab.compare.plan import make_plan

        print(make_plan(study, folder))
        return 0
    from optlab.compare._face import conclude

    workers = _workers(arguments)
    options = [f"--{k}={v}" for k in ("folder", "executor", "workers", "scheduler") if (v := getattr(arguments, k))]
    again = shlex.join(["optlab", "compare", str(path), *arguments.overrides, *options])
    try:
        verdict = conclude(study, folder, widen=comparison.widen, workers=workers, command=again)
    except KeyboardInterrupt:
        print(f"optlab: interrupted; what is finished is in {folder}, the same command goes on", file=sys.stderr)
        return 130
    print(f"{verdict}\n  folder      {folder}  (verdict.md, verdict.json, study.json, trials.jsonl)")
    print(f"  report      {folder / 'report.html'}")
    return 0


def _workers(arguments: argparse.Namespace) -> Any:
    """The processes, or Dask's executor, that the command line names."""
    if arguments.scheduler is None:
        return arguments.workers
    if arguments.workers is not None:
        raise ConfigError(
            "--workers are this machine's processes, and --scheduler has its own workers: say one of them"
        )
    need("optlab compare --scheduler", "distributed", extra="cluster")
    from distributed import Client

    try:
        return Client(arguments.scheduler, timeout=10).get_executor(pure=False)
    except (OSError, ValueError) as error:
        raise ConfigError(
            f"no Dask scheduler answers at {arguments.scheduler} ({error}): start one, dask scheduler --host 127.0.0.1"
        ) from error


def _study(comparison: Comparison, executor: Any) -> Study:
    from optlab.compare.study import make_study

    config, everyone = comparison.baseline, comparison.everyone
    factories = {name: _factory(name, part) for name, part in everyone.items()}
    return make_study(
        factories,
        _workload(config, factories[config.optimizer.name], comparison.spaces.get(config.optimizer.name)),
        steps=config.steps,
        trials=comparison.trials,
        studies=comparison.studies,
        seeds=comparison.seeds,
        finals=comparison.finals,
        spaces=comparison.spaces,
        schedule=schedule_of(config),
        before=clipping_of(config),
        design=comparison.design,
        paired=comparison.paired,
        seed=config.seed,
        evaluate_every=config.evaluate_every,
        executor=executor,
    )


def _factory(name: str, part: Component) -> Callable[..., Any]:
    """A contender's factory with what the config says of it fixed."""
    factory = find("optimizer", part.name)
    known = inspect.signature(factory).parameters
    takes_any = any(p.kind is p.VAR_KEYWORD for p in known.values())
    for argument, value in part.arguments.items():
        if argument not in known and not takes_any:
            raise ConfigError(f"contender {name!r} has {argument}, which {part.name} doesn't take; "
                              f"{nearest(argument, known)}")  # fmt: skip
        if isinstance(value, Component):
            raise ConfigError(
                f"contender {name!r} has a component as its {argument}: make it in a function of yours, and name that "
                "as module:function"
            )
    return functools.partial(factory, **part.arguments) if part.arguments else factory


def _workload(config: Config, factory: Callable[..., Any], space: Any) -> Any:
    """The baseline's, built and checked as that of a run in the middle of its space."""
    from optlab.compare.contenders import contend

    name = config.optimizer.name
    middle = contend(name, factory, space=space, schedule=None, steps=config.steps).middle
    said = {k: v for k, v in middle.items() if not k.startswith("schedule.")}
    return build(replace(config, optimizer=Component(name, {**config.optimizer.arguments, **said}))).workload
