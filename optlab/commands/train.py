"""`optlab train CONFIG`: trains in a run folder, or continues the run that is there."""

from __future__ import annotations

import argparse
import errno
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

from optlab._extras import MissingExtraError
from optlab.commands._config import add_config, add_processes, connect, read, run_folder
from optlab.commands._deterministic import make_deterministic
from optlab.commands._dialect import in_words
from optlab.config import Config, ConfigError, covers, flatten
from optlab.experiment import Experiment, build, kind_of_change
from optlab.runs._errors import PlaceError
from optlab.runs._folder import ChangedConfig, make_folder, open_folder

if TYPE_CHECKING:
    from optlab.training import Checkpoints, History, Observer

NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EACCES, errno.EPERM)
EXIT_CODES = {"interrupted by SIGINT": 130} | dict.fromkeys(
    ("interrupted by SIGTERM", "interrupted by SIGUSR1", "interrupted by SIGHUP"), 75
)


HELP = "train as a config describes; the same command again continues the run"
DESCRIPTION = "Trains as a config describes. The same command again continues the run from its last checkpoint."
EPILOG = "optlab show CONFIG lists every key. Ctrl-C saves and exits with 130; SIGTERM, SIGUSR1 and SIGHUP with 75."


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the arguments of the command."""
    add_config(parser)
    parser.add_argument(
        "--run",
        metavar="DIR",
        help="the run's folder (default: runs/<config>-<overrides>, without keys that a continued run may change)",
    )
    parser.add_argument(
        "--allow-change",
        metavar="KEY",
        action="append",
        default=[],
        help="continue although this key is fixed and differs from the run's (optimizer: its arguments, too)",
    )
    parser.add_argument(
        "--smoke",
        action="store_true",
        help="try everything in a few steps and a folder that is removed: train, evaluate, save, continue",
    )
    parser.add_argument("--profile", action="store_true", help="write a profiler trace of ten steps to DIR/profile")
    add_processes(parser)


def run(arguments: argparse.Namespace) -> int:
    """Trains, draws the curves and prints a summary; of several processes the first one prints."""
    if arguments.smoke:
        return _smoke(arguments)
    if not arguments.processes:
        return _run(arguments, _experiment(arguments))  # a bad config is refused before JAX is imported
    from optlab._processes import is_first, leaving, together

    connect(arguments)
    try:
        with leaving(apart_from=(ConfigError, PlaceError, MissingExtraError)):
            with together(ConfigError):
                experiment = _experiment(arguments)
            return _run(arguments, experiment)
    except (ConfigError, PlaceError):
        if is_first():
            raise
        return 2  # `together` made it the first one's, too


def _smoke(arguments: argparse.Namespace) -> int:
    """Two steps, each evaluated and the last one saved; then the same run goes on for two more."""
    if arguments.processes or arguments.run:
        raise ConfigError("--smoke is one process in a folder of its own: leave --processes and --run away")
    with tempfile.TemporaryDirectory(prefix="optlab-smoke-") as folder:
        for steps in (2, 4):
            words = [f"steps={steps}", "evaluate_every=1", "log.every=1", "log.tensorboard=false", "log.wandb=null"]
            allowed = [*arguments.allow_change, *(["steps"] if steps > 2 else [])]
            trial = {
                "smoke": False,
                "run": folder,
                "allow_change": allowed,
                "overrides": [*arguments.overrides, *words],
            }
            code = run(argparse.Namespace(**{**vars(arguments), **trial}))
            if code:
                return code
    print("smoke: trained, evaluated, saved and continued; nothing is left behind")
    return 0


def _experiment(arguments: argparse.Namespace) -> Experiment:
    config = read(arguments)
    if config.deterministic:
        make_deterministic()  # before `build`, which may ask JAX for its devices
    return build(config)


def _run(arguments: argparse.Namespace, experiment: Experiment) -> int:
    from optlab._processes import is_first, leave, once, together
    from optlab.data import DataError
    from optlab.training import CheckpointError, Checkpoints, DeviceMemoryError, GuardError
    from optlab.training.folder import draw_curves
    from optlab.training.loop import StepsError

    folder = run_folder(arguments)
    config = experiment.config
    with together(ConfigError):
        observers = _observers(experiment, folder)
    checkpoints = Checkpoints(folder / "checkpoints", every=config.checkpoint.every, keep=config.checkpoint.keep)
    is_new = not once(checkpoints.steps)
    initial = _initial(config.init_from, experiment) if config.init_from and is_new else None
    with together(ConfigError):
        if is_first():
            make_folder(folder, config, kind_of_change, arguments.allow_change)
    try:
        with checkpoints.writing():
            with together(ConfigError):
                if is_first():
                    source, allowed = Path(arguments.config), arguments.allow_change
                    changed = open_folder(folder, config, source, kind_of_change, allowed)
                    observers.insert(0, ChangedConfig(folder, config, changed))
                    for name in allowed:
                        if not any(covers([name], c.key) for c in changed):
                            print(f"--allow-change {name} has nothing to allow: {folder / 'config.json'} says the same")
            history = _train(
                experiment,
                folder,
                checkpoints,
                observers,
                initial,
                arguments.allow_change,
                profile=arguments.profile,
            )
    except StepsError as error:
        raise ConfigError(str(error)) from error
    except (GuardError, CheckpointError, DeviceMemoryError, DataError) as error:
        if is_first() or isinstance(error, CheckpointError | DataError):  # the others are every process' alike
            print(f"optlab: {in_words(error)}", file=sys.stderr)
        leave(1)
        return 1
    except OSError as error:
        if error.errno not in NO_ROOM:
            raise
        print(f"optlab: {folder} can't be written to: {error}; the same command continues", file=sys.stderr)
        leave(1)
        return 1
    if not is_first():
        return EXIT_CODES.get(history.outcome, 0)
    print(_summary(history, folder))
    return EXIT_CODES.get(history.outcome, 0 if draw_curves(folder) else 1)


def _observers(experiment: Experiment, folder: Path) -> list[Observer]:
    from optlab.diagnosis import Watch
    from optlab.training import MetricsFile, Progress, TensorBoard, WeightsAndBiases

    config = experiment.config
    metric = config.target.metric if config.target.metric != "validation/loss" else _first_metric(config)
    observers: list[Observer] = [MetricsFile(folder / "metrics.jsonl")]
    if config.log.tensorboard:
        observers.append(TensorBoard(folder))
    if config.log.wandb:
        observers.append(WeightsAndBiases(config.log.wandb, folder=folder, config=flatten(config)))
    return [
        *observers,
        Watch(flatten(config)),
        Progress(batch_size=config.batch_size, metric=metric, about=experiment.workload.sizes()),
    ]


def _train(
    experiment: Experiment,
    folder: Path,
    checkpoints: Checkpoints,
    observers: list[Observer],
    initial: tuple[Any, Any] | None,
    allow_change: list[str],
    *,
    profile: bool,
) -> History:
    from optlab.training import StepLog, train
    from optlab.training.identity import PROGRAMS

    config = experiment.config
    return train(
        experiment.workload,
        experiment.tx,
        steps=config.steps,
        strategy=config.strategy,
        mesh=experiment.mesh,
        seed=config.seed,
        skip_limit=config.skip_limit,
        skip_log=StepLog(folder / "skipped.jsonl"),
        evaluate_every=config.evaluate_every,
        evaluate_batches=config.evaluate_batches,
        log_every=config.log.every,
        stop=config.stop,
        checkpoints=checkpoints,
        allow_change=[*allow_change, *PROGRAMS.values()],  # configs name these, and were compared
        observers=observers,
        schedules=experiment.schedules,
        initial=initial,
        profile=folder / "profile" if profile else None,
        measure=experiment.measures,
        **vars(experiment.settings),
    )


def _first_metric(config: Config) -> str | None:
    return f"validation/{config.metrics[0]}" if config.metrics else None


def _initial(run: str, experiment: Experiment) -> tuple[Any, Any]:
    """Loads parameters and running statistics of another run, and checks them against the model's shapes."""
    import jax

    from optlab.roles._paths import names_of
    from optlab.training import CheckpointError, load_params

    folder = Path(run)
    if folder.name.isdigit() and folder.parent.name == "checkpoints":
        raise ConfigError(
            f"init_from={run} is one checkpoint, and a run is meant: say init_from={folder.parent.parent}, whose "
            "latest checkpoint is taken"
        )
    try:
        found = (load_params(run), load_params(run, collection="model_state"))
    except CheckpointError as error:
        raise ConfigError(f"init_from={run}: {error}") from error
    wanted = jax.eval_shape(experiment.workload.init, jax.random.key(0))
    leaves = [
        {"/".join(names_of(path[1:])): x for path, x in jax.tree.leaves_with_path(tree)} for tree in (found, wanted)
    ]
    kinds = [{k: f"{x.dtype}{list(x.shape)}" for k, x in side.items()} for side in leaves]
    differ = [k for k in {**kinds[0], **kinds[1]} if kinds[0].get(k) != kinds[1].get(k)]
    if differ:
        name = differ[0]
        has, needs = (side.get(name, "absent") for side in kinds)
        raise ConfigError(f"init_from={run} is another model: {name} is {has} there, {needs} here")
    return jax.tree.unflatten(jax.tree.structure(wanted), [leaves[0][name] for name in leaves[1]])


def _summary(history: History, folder: Path) -> str:
    step = int(history.state.step)
    if history.was_over:
        again = f"{folder} is {history.outcome} already, at step {step}; for another run name another folder: --run DIR"
        return "\n".join([again, *history.findings()])
    if history.is_interrupted:
        where = f"saved in {folder}; the same command continues"
        if history.saved < step:
            where = f"not saved: the parameters aren't finite; the same command continues after step {history.saved}"
        return f"{history.outcome} after step {step}, {history.seconds:.0f} s\n{where}"
    return f"{history}\n  folder      {folder}  (config.json, metrics.jsonl, curves.png, checkpoints)"
