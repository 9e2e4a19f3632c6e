"""What `lr-range` and `batch-range` share: a config's parts, where the result goes, and how it is printed."""

from __future__ import annotations

import argparse
import functools
import shlex
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from optlab.config import Component, Config, ConfigError, MeshShape, flatten, is_learning_rate, slug
from optlab.experiment import build, clipping_of, find, optimizer_with, rates_of, resolve, schedule_of

if TYPE_CHECKING:
    from optlab.training import Workload

# Keys of a run that change how its weights move or are averaged, and that the short trainings don't have.
LEFT_OUT = ("ema", "average_from", "spike")


@dataclass(frozen=True)
class Parts:
    """A config in the form that the range tests take.

    Attributes:
        config: on one device, resolved.
        workload: what is trained.
        factory: learning_rate -> the optimizer.
        schedule: (peak, steps, …) -> a function of the step; None is a constant rate.
        before: what the gradients go through first.
        rate: the config's learning rate; None if it doesn't say one.
        notes: what the range test leaves out.
    """

    config: Config
    workload: Workload
    factory: Callable[..., Any]
    schedule: Callable[..., Any] | None
    before: Any
    rate: float | None
    notes: tuple[str, ...]


def parts_of(config: Config, command: str) -> Parts:
    """Builds a config's parts; nothing is compiled.

    Raises:
        ConfigError: as `build`, for an optimizer without a learning rate, and for `init_from`.
    """
    if config.init_from is not None:
        raise ConfigError(f"{command} trains from the model's own initialization: say init_from=none")
    rate = config.optimizer.arguments.get("learning_rate")
    config = resolve(config if rate is not None else _with_a_rate(config))
    rates = rates_of(config)
    if "learning_rate" not in rates:
        others = ", ".join(f"optimizer.{key}" for key in rates)
        raise ConfigError(
            f"optimizer={config.optimizer.name} has no learning rate as a number to try others of"
            + (f" (it has {others})" if others else "")
        )
    schedule = schedule_of(config)
    experiment = build(replace(config, strategy="single", mesh=MeshShape()))

    def make(learning_rate: Any, **others: Any) -> Any:
        return optimizer_with(config, {"learning_rate": learning_rate, **others})

    make.__name__ = config.optimizer.name.rpartition(":")[2]
    fixed = {key: value for key, value in rates.items() if key != "learning_rate"}
    said = flatten(config)
    notes = [f"{key}={said[key]} is left out" for key in LEFT_OUT if said[key] is not None]
    return Parts(
        config, experiment.workload, functools.partial(make, **fixed) if fixed else make, schedule,
        clipping_of(config), None if rate is None else float(rates["learning_rate"]), tuple(notes),
    )  # fmt: skip


def _with_a_rate(config: Config) -> Config:
    """The config with some learning rate, where its optimizer takes one and the config says none."""
    import inspect

    part = config.optimizer
    names = inspect.signature(find("optimizer", part.name)).parameters
    if "learning_rate" not in names:
        found = [n for n in names if is_learning_rate(n)]
        raise ConfigError(
            f"optimizer={part.name} has no learning_rate" + (f", it has {', '.join(found)}" if found else "")
        )
    if names["learning_rate"].default is not inspect.Parameter.empty:
        return config
    return replace(config, optimizer=Component(part.name, {"learning_rate": 1e-3, **part.arguments}, part.written))


def again(command: str, arguments: argparse.Namespace, setting: str, *, without: str = "") -> str:
    """The config with another setting under another command, as it is typed; the key `without` is left out, too."""
    dropped = {setting.partition("=")[0], without}
    kept = [a for a in arguments.overrides if a.partition("=")[0] not in dropped]
    return shlex.join(["optlab", command, arguments.config, *kept, setting])


def new_folder(arguments: argparse.Namespace, kind: str) -> Path:
    """Returns the folder for picture and text.

    Raises:
        ConfigError: if there is one already.
    """
    folder = Path(
        arguments.out or Path("ranges") / f"{kind}-{slug(arguments.config, arguments.overrides)}"
    ).expanduser()
    if folder.exists():
        raise ConfigError(f"{folder} is there already: say --out DIR for another one, or delete it")
    return folder


def say(folder: Path, text: str, notes: tuple[str, ...], command: str | None, plot: Callable[[Path], Path]) -> None:
    """Prints a range test and what to type next, and keeps both with the picture."""
    lines = [text, *(f"note        {note}" for note in notes)]
    if command is not None:
        lines.append(f"next        {command}")
    folder.mkdir(parents=True)
    (folder / "range.txt").write_text("\n".join(lines) + "\n")
    plot(folder / "range.png")
    print("\n".join([*lines, f"folder      {folder}  (range.png, range.txt)"]))
