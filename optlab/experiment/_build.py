"""Builds the objects of an experiment, and checks that they fit together."""

from __future__ import annotations

import collections.abc
import dataclasses
import functools
import inspect
import typing
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from optlab.config import (
    STRATEGIES,
    Component,
    Config,
    ConfigError,
    MeshShape,
    StrategyName,
    Target,
    is_learning_rate,
)
from optlab.experiment._components import filled, find, hints_of, in_keys, parameters, resolve

if TYPE_CHECKING:
    import optax
    from jax.sharding import Mesh

    from optlab.data import Source
    from optlab.training import StepSettings, Workload


@dataclass(frozen=True)
class Experiment:
    """Objects of a config, ready for `optlab.training.train`."""

    config: Config
    workload: Workload
    tx: optax.GradientTransformation
    schedules: Mapping[str, Callable[[Any], Any]]
    mesh: Mesh | None = None
    measures: Sequence[Any] = ()
    axis_name: str | None = None  # the mapped axis that the parts are made for

    @property
    def settings(self) -> StepSettings:
        """Settings of the step; `average_from` is a moving average whose decay is a function of the step."""
        from optlab.schedules import tail_average
        from optlab.training import StepSettings

        config = self.config
        ema = config.ema if config.average_from is None else tail_average(config.average_from)
        return StepSettings(accumulate=config.accumulate, ema=ema, guard=config.guard, spike=config.spike)


def build(config: Config, *, reads_data: bool = True) -> Experiment:
    """Builds and checks everything that a run needs; compiles nothing.

    Args:
        config: a config.
        reads_data: whether the data are read; without, optlab's published data sets are zeros of their shapes.

    Raises:
        ConfigError: as `resolve`, and for values that a factory refuses, parts that don't fit together, a batch larger
            than the data, or devices that aren't there.
    """
    config = resolve(config)
    source = _source(config, reads_data)
    if hasattr(source.train, "__len__") and config.batch_size > len(source.train):
        raise ConfigError(
            f"batch_size must be at most the {len(source.train)} training examples of data={config.data.name}, "
            f"got {config.batch_size}"
        )
    if config.draw == "stream" and hasattr(source.train, "__len__"):
        held = len(source.train) // config.batch_size
        if config.steps > held:
            raise ConfigError(
                f"steps must be at most {held} under draw=stream, which shows each of the {len(source.train)} examples "
                f"of data={config.data.name} once, got {config.steps}"
            )
    _mesh(config)  # before a model is traced
    workload, tx, schedules = _parts(config, source, axis_name=None)
    measures = [_call("measure", Component(name, {"every": config.measure_every})) for name in config.measure]
    _check_fit(config, workload, tx, measures)  # of the step on one device, which has no axis
    return under(Experiment(config, workload, tx, schedules, None, measures), config.strategy, config.mesh)


def under(experiment: Experiment, strategy: StrategyName, shape: MeshShape) -> Experiment:
    """Returns an experiment under another strategy; its parts are built again only for another mapped axis.

    Args:
        experiment: under any strategy.
        strategy: the strategy's name.
        shape: the mesh's.

    Raises:
        ConfigError: for devices that aren't there or don't divide the batch, and for a model that needs the axis.
    """
    config = dataclasses.replace(experiment.config, strategy=strategy, mesh=shape)
    mesh, axis_name = _mesh(config), STRATEGIES[strategy].axis_name
    workload, tx, schedules = experiment.workload, experiment.tx, experiment.schedules
    if axis_name != experiment.axis_name:
        if axis_name is not None:
            _check_statistics(config, workload)
        workload, tx, schedules = _parts(config, workload.data, axis_name)
    return Experiment(config, workload, tx, schedules, mesh, experiment.measures, axis_name)


def _source(config: Config, reads_data: bool = True) -> Source:
    from optlab.data._declared import declared

    source = None if reads_data else declared(config.data.name, config.data.arguments)
    if source is None:
        source = _call("data", config.data)
    _check_source(config, source)
    return source


def training_examples(config: Config) -> int | None:
    """Returns the number of training examples of a config's data; None where the data makes its own batches.

    Raises:
        ConfigError: if the data can't be read here.
    """
    source = _source(resolve(config))
    return len(source.train) if hasattr(source.train, "__len__") else None


def _mesh(config: Config) -> Mesh | None:
    """Arranges the devices, and checks that they divide the batch."""
    if not STRATEGIES[config.strategy].axes:
        import jax

        if (count := jax.process_count()) > 1:
            raise ConfigError(f"strategy={config.strategy} is one process, here are {count}: say strategy=jit")
        return None
    from optlab.training import make_mesh

    try:
        mesh = make_mesh(config.mesh.data, config.mesh.model)
    except ValueError as error:
        raise ConfigError(in_keys("mesh", make_mesh, error)) from error
    parts = mesh.shape["data"] * config.accumulate
    if config.batch_size % parts:
        raise ConfigError(
            f"batch_size must be a multiple of {parts} (mesh.data={mesh.shape['data']} devices, "
            f"accumulate={config.accumulate}), got {config.batch_size}: say batch_size="
            f"{max(1, (config.batch_size + parts // 2) // parts) * parts}, or mesh.data=N with fewer devices"
        )
    return mesh


def _parts(
    config: Config, source: Source, axis_name: str | None
) -> tuple[Workload, optax.GradientTransformation, dict[str, Callable[[Any], Any]]]:
    """Builds workload, optimizer and schedules, for a step under a mapped axis if `axis_name` is given."""
    import optax

    from optlab.roles import freeze
    from optlab.training import Workload

    tx, schedules = _optimizer(config, axis_name)
    if config.clip_norm is not None:
        tx = optax.chain(optax.clip_by_global_norm(config.clip_norm), tx)
    if config.clip_value is not None:
        tx = optax.chain(optax.clip(config.clip_value), tx)
    if config.freeze:
        tx = freeze(tx, config.freeze)
    workload = Workload.from_model(
        build_model(config, source, axis_name),
        source,
        loss=functools.partial(find("loss", config.loss.name), **config.loss.arguments),
        metrics={name: find("metrics", name) for name in config.metrics},
        batch_size=config.batch_size,
        draw=config.draw,
        target=config.target,
        roles=config.roles,
    )
    return workload, tx, schedules


def _check_source(config: Config, source: Source) -> None:
    if not all(hasattr(source, name) for name in ("train", "validation", "test", "facts")):
        raise ConfigError(f"data={config.data.name} must return an optlab.data.Source, got {type(source).__name__}")
    is_read = config.target != Target() or config.stop.patience is not None
    is_there = source.validation is not None and len(source.validation) > 0
    if is_read and not is_there and config.target.metric.startswith("validation/"):
        what = "split" if source.validation is None else "examples"
        raise ConfigError(
            f"target.metric={config.target.metric} isn't measured: data={config.data.name} has no validation {what}; "
            "say target.metric=train/loss, or hold some data out"
        )


def _check_fit(config: Config, workload: Workload, tx: optax.GradientTransformation, measures: Sequence[Any]) -> None:
    """Traces an evaluation, a step and each measurement, which computes nothing, to name parts that don't fit."""
    import jax

    from optlab.roles import layout_around
    from optlab.roles._paths import PatternError
    from optlab.training import init_state, make_evaluation, make_step
    from optlab.training.mistakes import check_roles
    from optlab.training.step import StepSettings, make_measured_step

    key, batch = jax.random.key(0), workload.example()
    parts = f"model={config.model.name}, data={config.data.name} and loss={config.loss.name} don't fit together"
    try:
        params, model_state = jax.eval_shape(workload.init, key)
        jax.eval_shape(make_evaluation(workload.loss), params, model_state, batch, key)
        check_roles(workload.init, config.roles)
        parts = f"optimizer={config.optimizer.name} can't move these parameters"
        with layout_around(workload.layout):
            state = jax.eval_shape(lambda p, s, k: init_state(p, s, tx, key=k), params, model_state, key)
            jax.eval_shape(make_step(workload.loss, tx), state, batch)
            whole = jax.tree.map(lambda x: jax.ShapeDtypeStruct((config.batch_size, *x.shape[1:]), x.dtype), batch)
            for name, measure in zip(config.measure, measures, strict=True):
                parts = f"measure={name} can't be taken here"
                jax.eval_shape(make_measured_step(workload.loss, tx, StepSettings(), measures=[measure]), state, whole)
    except PatternError as error:  # a key of the config's is wrong, no part of it
        raise ConfigError(str(error)) from error
    except Exception as error:  # whatever a user's part raises
        reason = (str(error).splitlines() or [""])[0]
        raise ConfigError(f"{parts}: {type(error).__name__}: {reason}") from error


def _check_statistics(config: Config, workload: Workload) -> None:
    """Refuses BatchNorm without a mapped axis: its statistics would be of a device's part of the batch."""
    import jax
    from flax import nnx

    if "axis_name" in filled("model", find("model", config.model.name)):
        return
    _, model_state = jax.eval_shape(workload.init, jax.random.key(0))

    def is_running(x: Any) -> bool:
        return isinstance(x, nnx.BatchStat)

    is_linens = isinstance(model_state, dict) and "batch_stats" in model_state
    if is_linens or any(map(is_running, jax.tree.leaves(model_state, is_leaf=is_running))):
        raise ConfigError(
            f"model={config.model.name} has running statistics, which under strategy={config.strategy} need an "
            "argument axis_name of its factory, for nn.BatchNorm(axis_name=axis_name): add it, or say strategy=jit"
        )


def _call(kind: str, part: Component, **filled: Any) -> Any:
    factory = find(kind, part.name)
    try:
        return factory(**filled, **part.arguments)
    except ConfigError:
        raise
    except Exception as error:  # whatever a user's factory raises
        raise ConfigError(f"{kind}={part.name}: {in_keys(kind, factory, error)}") from error


def build_model(config: Config, source: Source, axis_name: str | None = None) -> Any:
    """Builds a config's model, with what it has to know of the data, and of the mapped axis if there is one."""
    factory = find("model", config.model.name)
    names, facts = filled("model", factory), {**source.facts, **({"axis_name": axis_name} if axis_name else {})}
    for name in names:
        if name not in facts and inspect.signature(factory).parameters[name].default is inspect.Parameter.empty:
            raise ConfigError(f"model={config.model.name} needs {name}, which data={config.data.name} doesn't have")
    return _call("model", config.model, **{name: facts[name] for name in names if name in facts})


def _optimizer(
    config: Config, axis_name: str | None
) -> tuple[optax.GradientTransformation, dict[str, Callable[[Any], Any]]]:
    """Builds the optimizer; the config's schedule shapes each of its learning rates."""
    schedules: dict[str, Callable[[Any], Any]] = {}
    tx = transformation(config, "optimizer", config.optimizer, axis_name, schedules)
    if not is_flat(config) and not schedules:
        raise ConfigError(
            f"schedule={config.schedule.name} has no learning rate to shape in optimizer={config.optimizer.name}: "
            "set optimizer.learning_rate if that takes a schedule, or say schedule=constant"
        )
    return tx, schedules


def is_flat(config: Config) -> bool:
    """Returns whether the learning rate is one number all along."""
    return config.schedule.name == "constant" and not config.schedule.arguments.get("warmup")


def transformation(
    config: Config,
    key: str,
    part: Component,
    axis_name: str | None,
    schedules: dict[str, Callable[[Any], Any]],
    rate: Any = None,
) -> optax.GradientTransformation:
    """Builds the optimizer, or a part of it, whose learning rate is that of the whole unless it sets its own.

    Adds to `schedules` those of the learning rates that the config sets.
    """
    kind = "optimizer" if key == "optimizer" else "part"
    factory, arguments = find(kind, part.name), dict(part.arguments)
    hints, names = hints_of(factory), parameters(kind, factory)
    if rate is not None and "learning_rate" in names:
        arguments.setdefault("learning_rate", rate)
    for name, inner in arguments.items():
        if isinstance(inner, Component):
            rate = arguments.get("learning_rate")
            arguments[name] = transformation(config, f"{key}.{name}", inner, axis_name, schedules, rate)
    for name in names:
        peak = arguments.get(name)
        if is_learning_rate(name) and isinstance(peak, int | float) and _takes_schedule(hints.get(name, Any)):
            schedule = _schedule(config, peak)
            # A constant stays a number: some rules take no schedule, and with a number the state needs no count.
            arguments[name] = peak if is_flat(config) else schedule
            if name in part.arguments:
                schedules[f"{key}.{name}".removeprefix("optimizer.")] = schedule
    takes_axis = axis_name and "axis_name" in filled(kind, factory) and not arguments.get("orthogonalizer")
    axes = {"axis_name": axis_name} if takes_axis else {}
    try:
        tx = factory(**axes, **arguments)
    except ConfigError:
        raise
    except Exception as error:  # whatever a user's factory raises
        raise ConfigError(f"{key}={part.name}: {in_keys(key, factory, error)}") from error
    if not (hasattr(tx, "init") and hasattr(tx, "update")):
        raise ConfigError(f"{key}={part.name} must return an optax.GradientTransformation, got {type(tx).__name__}")
    return tx


def _schedule(config: Config, peak: float) -> Callable[[Any], Any]:
    names = {source: name for name, source in filled("schedule", find("schedule", config.schedule.name)).items()}
    if "optimizer.learning_rate" not in names:
        raise ConfigError(f"schedule={config.schedule.name} is no learning rate: it takes no peak")
    warmup = config.schedule.arguments.get("warmup")
    if isinstance(warmup, int) and warmup >= config.steps:
        raise ConfigError(
            f"schedule={config.schedule.name}: warmup must be shorter than steps ({config.steps}), got {warmup}"
        )
    values = {"optimizer.learning_rate": peak, "steps": config.steps}
    schedule = _call("schedule", config.schedule, **{name: values[source] for source, name in names.items()})
    try:
        float(schedule(0))
    except Exception as error:
        raise ConfigError(
            f"schedule={config.schedule.name} must return a function of the step that gives a number: {error}"
        ) from error
    return schedule


def _takes_schedule(hint: Any) -> bool:
    members = typing.get_args(hint) or (hint,)
    return any(m is Any or (typing.get_origin(m) or m) is collections.abc.Callable for m in members)
