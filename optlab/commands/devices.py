"""`optlab devices [CONFIG]`: what JAX sees, which strategies fit, and what a step of a config needs under each."""

from __future__ import annotations

import argparse
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from optlab._extras import need
from optlab._messages import in_bytes
from optlab.commands._config import add_config, add_processes, connect, read
from optlab.config import STRATEGIES, ConfigError, MeshShape
from optlab.experiment import Experiment, build
from optlab.experiment._build import under

if TYPE_CHECKING:
    from rich.console import Console

HELP = "list the devices, the strategies that fit, and the memory that a config's step needs under each"
DESCRIPTION = "Lists JAX's devices and the strategies that fit; with a config, the memory of a step under each."
EPILOG = "XLA_FLAGS=--xla_force_host_platform_device_count=8 simulates eight devices on a CPU."

COLUMNS = ("strategy", "data×model", "examples a device", "state a device", "a step needs", "fits")
NUMBERS = {"devices", *COLUMNS[1:5]}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the arguments of the command."""
    add_config(parser, nargs="?")
    add_processes(parser)


def run(arguments: argparse.Namespace) -> int:
    """Prints what there is; for a config each strategy's step is compiled, and none is run."""
    need("optlab devices", "rich")
    from optlab._processes import is_first
    from optlab.commands import _tables

    connect(arguments)
    console = _tables.console(quiet=not is_first())
    if arguments.config is None:
        console.print(_seen(), soft_wrap=True)
        _print_table(console, ("strategy", "devices", "what it does"), _strategies())
        console.print(_meshes(), soft_wrap=True)
        return 0
    if not any(o.startswith("strategy=") for o in arguments.overrides):  # each is tried, whatever the config's is
        arguments.overrides = ["strategy=jit", *arguments.overrides]
    config = read(arguments)
    found, refused, built = [], dict[str, list[str]](), None
    for strategy in STRATEGIES:
        shape = config.mesh if STRATEGIES[strategy].axes else MeshShape()
        try:
            with console.status(f"compiling a step under strategy={strategy}"):
                if built is None:
                    built = build(replace(config, strategy=strategy, mesh=shape), reads_data=False)
                found.append(_needed(under(built, strategy, shape)))
        except ConfigError as error:
            refused.setdefault(str(error), []).append(strategy)
    if not found:
        raise ConfigError(next(iter(refused)))
    console.print(_seen(), soft_wrap=True)
    _print_table(console, COLUMNS, [f.cells() for f in found])
    for reason, strategies in refused.items():
        console.print(f"{', '.join(strategies)}: {reason}", soft_wrap=True)
    if any(f.is_too_much for f in found):
        console.print("Less is needed with microbatches (accumulate=4) or by computing twice (model.remat=true).")
    return 0


def _seen() -> str:
    import jax

    from optlab.training.parallel import memory_of

    devices, memory = jax.devices(), memory_of(jax.local_devices()[0])
    kinds = Counter(
        d.device_kind if d.device_kind == d.platform else f"{d.device_kind} ({d.platform})" for d in devices
    )
    each = "of unknown memory" if memory is None else f"with {in_bytes(memory)}{' each' * (len(devices) > 1)}"
    where = "one process"
    if jax.process_count() > 1:
        where = f"{jax.process_count()} processes, {jax.local_device_count()} of them in this one"
    return f"JAX {jax.__version__} sees {', '.join(f'{n} × {kind}' for kind, n in kinds.items())} {each}, in {where}."


def _strategies() -> list[tuple[str, ...]]:
    import jax

    found = [s for s in STRATEGIES.values() if s.axes or jax.process_count() == 1]
    return [(s.name, str(jax.device_count()) if s.axes else "1", s.does) for s in found]


def _meshes() -> str:
    import jax

    count = jax.device_count()
    if count == 1:
        return (
            "On one device all of them do the same work. "
            "XLA_FLAGS=--xla_force_host_platform_device_count=8 simulates eight on a CPU."
        )
    shapes = [f"{count // n}×{n}" for n in range(1, count + 1) if count % n == 0]
    without_model = ", ".join(s.name for s in STRATEGIES.values() if s.axes == ("data",))
    return (
        f"mesh.data×mesh.model can be {', '.join(shapes)} ({without_model}: {shapes[0]}); mesh.data=N alone takes N "
        "devices. mesh.data times accumulate must divide batch_size."
    )


def _print_table(console: Console, columns: Sequence[str], rows: Sequence[tuple[str, ...]]) -> None:
    from optlab.commands import _tables

    table = _tables.empty(columns, numbers=NUMBERS)
    for row in rows:
        table.add_row(*row)
    _tables.show(table, console)


@dataclass(frozen=True)
class _Need:
    """Needs of a config's step under a strategy; bytes are those of each device."""

    strategy: str
    mesh: tuple[int, int]
    batch: int
    state: int
    step: int
    limit: int | None

    @property
    def is_too_much(self) -> bool:
        """True if a device has less memory."""
        return self.limit is not None and self.step > self.limit

    def cells(self) -> tuple[str, ...]:
        """As text, in the order of `COLUMNS`."""
        shape, needs = "{}×{}".format(*self.mesh), in_bytes(self.step) if self.step else "unknown"
        fits = "unknown" if not (self.step and self.limit) else "no" if self.is_too_much else "yes"
        return self.strategy, shape, str(self.batch), in_bytes(self.state), needs, fits


def _needed(experiment: Experiment) -> _Need:
    import jax

    from optlab.data import Share, as_batches
    from optlab.training import assemble
    from optlab.training.parallel import memory_of

    config, workload = experiment.config, experiment.workload
    assembly = assemble(
        workload,
        experiment.tx,
        experiment.settings,
        config.strategy,
        mesh=experiment.mesh,
        seed=config.seed,
        stop=config.stop,
        measure=experiment.measures,
    )
    parallel = assembly.parallel
    drawn = as_batches(workload.data.train, config.batch_size, config.seed, workload.draw)
    batch = parallel.place_batch(*Share(drawn, parallel.rows, config.batch_size).batch(0))
    mesh = (1, 1) if parallel.mesh is None else (parallel.mesh.shape["data"], parallel.mesh.shape["model"])
    return _Need(
        strategy=config.strategy,
        mesh=mesh,
        batch=config.batch_size // mesh[0],
        state=assembly.bytes_held(),
        step=assembly.bytes_needed(batch),
        limit=memory_of(jax.local_devices()[0]),
    )
