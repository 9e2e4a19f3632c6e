"""Names become objects: a component's factory is found, held against its arguments, and called."""

from __future__ import annotations

import collections.abc
import contextlib
import dataclasses
import functools
import importlib
import inspect
import re
import typing
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from optlab.config import Component, Config, ConfigError, accepts, describe, flatten, nearest, to_json

if TYPE_CHECKING:
    import optax

    from optlab.data import Source
    from optlab.training import Workload

# Where a bare name is looked for, in this order.
MODULES = {
    "data": ("optlab.data.sources",),
    "loss": ("optlab.training.losses",),
    "metrics": ("optlab.training.losses",),
    "schedule": ("optlab.schedules",),
    "optimizer": ("optlab.optimizers", "optax", "optax.contrib"),
    "model": ("optlab.models",),
}
# What a run says by itself, and where it comes from: a config may not say it again.
FILLED = {
    "schedule": {"peak": "optimizer.learning_rate", "steps": "steps"},
    "model": {"outputs": "the data", "vocabulary": "the data", "length": "the data", "axis_name": "the strategy"},
    "loss": {"outputs": "the model", "batch": "the data"},
    "metrics": {"outputs": "the model", "batch": "the data"},
}


def find(kind: str, name: str) -> Callable[..., Any]:
    """The factory that a component's name stands for.

    Raises:
      ConfigError: if there is none; it names the nearest one.
    """
    if ":" in name:
        return _find_users(kind, name)
    prefix, _, last = name.rpartition(".")
    modules = [m for m in MODULES[kind] if not prefix or m == prefix or m.startswith(f"{prefix}.")]
    for module in modules:
        found = getattr(importlib.import_module(module), last, None)
        if last in _names(module) and found is not None:
            return found
    names = {n for m in modules or MODULES[kind] for n in _names(m) if kind != "optimizer" or _is_optimizer(m, n)}
    raise ConfigError(f"unknown {kind} {name!r}; {nearest(last, names)} (your own: {kind}=module:function)")


def _names(module: str) -> list[str]:
    """The public functions of a module; what it only offers with a warning is not among them."""
    found = vars(importlib.import_module(module))
    public = found.get("__all__", [n for n in found if not n.startswith("_")])
    return [n for n in public if callable(found.get(n)) and n.islower()]


def _is_optimizer(module: str, name: str) -> bool:
    return any(_is_rate(p) for p in inspect.signature(getattr(importlib.import_module(module), name)).parameters)


def _is_rate(parameter: str) -> bool:
    return parameter.endswith("learning_rate")


def _find_users(kind: str, name: str) -> Callable[..., Any]:
    module, _, function = name.partition(":")
    try:
        found = getattr(importlib.import_module(module), function)
    except Exception as error:
        raise ConfigError(f"{kind}={name} can't be imported: {type(error).__name__}: {error}") from error
    if not callable(found):
        raise ConfigError(f"{kind}={name} must be a function, got {type(found).__name__}")
    return found


def parameters(kind: str, factory: Callable[..., Any]) -> dict[str, inspect.Parameter]:
    """The arguments of a factory that a config can say, by name."""
    filled = FILLED.get(kind, {})
    return {n: p for n, p in inspect.signature(factory).parameters.items() if n not in filled}


def _check(kind: str, part: Component, factory: Callable[..., Any]) -> None:
    allowed = parameters(kind, factory)
    open_ended = any(p.kind is p.VAR_KEYWORD for p in allowed.values())
    hints = _hints(factory)
    for name, value in part.arguments.items():
        if name in FILLED.get(kind, {}) and name in inspect.signature(factory).parameters:
            raise ConfigError(f"{kind}.{name} can't be set: it follows from {FILLED[kind][name]}")
        if name not in allowed and not open_ended:
            known = [f"{kind}.{n}" for n in allowed]
            raise ConfigError(f"unknown key '{kind}.{name}' for {kind}={part.name}; {nearest(f'{kind}.{name}', known)}")
        hint = hints.get(name, Any)
        if not accepts(value, hint) and not isinstance(value, Component):
            raise ConfigError(f"{kind}.{name} must be {describe(hint)}, got {value!r}")
        if _is_rate(name) and isinstance(value, int | float) and not value >= 0:
            raise ConfigError(f"{kind}.{name} must be at least 0, got {value}")
    for name, p in allowed.items():
        needed = p.default is p.empty and p.kind not in (p.VAR_KEYWORD, p.VAR_POSITIONAL)
        if needed and name not in part.arguments:
            raise ConfigError(f"{kind}={part.name} needs {kind}.{name}=…")


def _hints(factory: Callable[..., Any]) -> dict[str, Any]:
    """The type of each argument; Any where a hint is there for type checkers only."""
    hints = {}
    for name, p in inspect.signature(factory).parameters.items():
        hints[name] = Any if p.annotation is p.empty else p.annotation
        if isinstance(p.annotation, str):
            with contextlib.suppress(Exception):
                hints[name] = eval(p.annotation, getattr(factory, "__globals__", {}))
        if isinstance(hints[name], str):
            hints[name] = Any
    return hints


def _is_plain(value: Any) -> bool:
    if isinstance(value, tuple | list):
        return all(_is_plain(v) for v in value)
    return isinstance(value, bool | int | float | str | None)


def _plain_defaults(kind: str, factory: Callable[..., Any]) -> dict[str, Any]:
    return {n: p.default for n, p in parameters(kind, factory).items() if _is_plain(p.default)}


def components(config: Config) -> Iterator[tuple[str, Component]]:
    """The components of a config by key; the data first, since checking them needs no JAX."""
    return ((kind, getattr(config, kind)) for kind in MODULES if kind != "metrics")


def resolve(config: Config) -> Config:
    """The config with every component checked against its factory's signature, and the factories' defaults filled in.

    Raises:
      ConfigError: for an unknown name or argument, a wrong type, a missing argument, or one that a config can't say.
    """
    full: dict[str, Any] = {}
    for kind, part in components(config):
        factory = find(kind, part.name)
        _check(kind, part, factory)
        defaults = _plain_defaults(kind, factory)
        said = {
            n: {**defaults, **part.arguments}[n]
            for n in parameters(kind, factory)
            if n in {**defaults, **part.arguments}
        }
        full[kind] = Component(part.name, {**said, **part.arguments})
    for name in config.metrics:
        find("metrics", name)
    config = dataclasses.replace(config, **full)
    to_json(config)
    return config


def explain(config: Config) -> list[tuple[str, Any, str, str]]:
    """Every key of a resolved config: (key, value, type, meaning); arguments' meanings are read from docstrings."""
    help = {**_field_help(type(config))}
    for kind, part in components(config):
        factory = find(kind, part.name)
        hints, texts = _hints(factory), _argument_texts(factory)
        help |= {f"{kind}.{n}": (describe(hints.get(n, Any)), texts.get(n, "")) for n in parameters(kind, factory)}
    return [(key, value, *help.get(key, ("", ""))) for key, value in flatten(config).items()]


def _field_help(kind: type, prefix: str = "") -> dict[str, tuple[str, str]]:
    hints = typing.get_type_hints(kind)
    help = {}
    for f in dataclasses.fields(kind):
        help[prefix + f.name] = (
            "name" if hints[f.name] is Component else describe(hints[f.name]),
            f.metadata.get("help", ""),
        )
        if dataclasses.is_dataclass(hints[f.name]) and hints[f.name] is not Component:
            help |= _field_help(hints[f.name], f"{prefix}{f.name}.")
    return help


def _argument_texts(factory: Callable[..., Any]) -> dict[str, str]:
    """The first sentence of each argument in a Google-style docstring."""
    section = re.search(r"^Args:\n((?:[ \t]+.*\n?|\n)+)", inspect.getdoc(factory) or "", re.MULTILINE)
    if not section:
        return {}
    texts: dict[str, str] = {}
    indent = len(section[1]) - len(section[1].lstrip())
    name = ""
    for line in section[1].splitlines():
        start = re.match(rf"\s{{{indent}}}\*{{0,2}}(\w+)[^:]*:\s*(.*)", line)
        if start:
            name, texts[start[1]] = start[1], start[2]
        elif name:
            texts[name] += " " + line.strip()
    return {n: re.split(r"(?<=\.)\s", t.strip())[0] for n, t in texts.items()}


@dataclass(frozen=True)
class Experiment:
    """A config's objects, ready for `optlab.training.train`."""

    config: Config
    workload: Workload
    tx: optax.GradientTransformation
    schedules: Mapping[str, Callable[[Any], Any]]


def build(config: Config) -> Experiment:
    """Everything a run needs, made and checked; nothing is compiled.

    Raises:
      ConfigError: for whatever can't work: as `resolve`, values that a factory refuses, a batch larger than the data.
    """
    _check_data(config)
    source: Source = _call("data", config.data)
    if config.batch_size > len(source.train):
        raise ConfigError(
            f"batch_size must be at most the {len(source.train)} training examples of data={config.data.name}, "
            f"got {config.batch_size}"
        )
    config = resolve(config)
    import optax

    from optlab.training import Workload

    tx, schedules = _optimizer(config)
    if config.clip_norm is not None:
        tx = optax.chain(optax.clip_by_global_norm(config.clip_norm), tx)
    workload = Workload.from_model(
        _model(config, source),
        source,
        loss=functools.partial(find("loss", config.loss.name), **config.loss.arguments),
        metrics={name: find("metrics", name) for name in config.metrics},
        batch_size=config.batch_size,
        target=config.target,
    )
    _check_fit(config, workload)
    return Experiment(config, workload, tx, schedules)


def _check_fit(config: Config, workload: Workload) -> None:
    """Traces an evaluation of one batch, without computing anything, so that parts that don't fit are named here."""
    import jax

    from optlab.training import make_evaluation

    try:
        key = jax.random.key(0)
        params, model_state = jax.eval_shape(workload.init, key)
        jax.eval_shape(make_evaluation(workload.loss), params, model_state, workload.example(), key)
    except (TypeError, ValueError, KeyError, AttributeError) as error:
        parts = f"model={config.model.name}, data={config.data.name} and loss={config.loss.name} don't fit together"
        raise ConfigError(f"{parts}: {type(error).__name__}: {str(error).splitlines()[0]}") from error


def _check_data(config: Config) -> None:
    factory = find("data", config.data.name)
    _check("data", config.data, factory)


def _call(kind: str, part: Component, **filled: Any) -> Any:
    try:
        return find(kind, part.name)(**filled, **part.arguments)
    except (ConfigError, KeyboardInterrupt):
        raise
    except (ValueError, TypeError, OSError, ImportError) as error:
        raise ConfigError(f"{kind}={part.name}: {error}") from error


def _model(config: Config, source: Source) -> Any:
    factory = find("model", config.model.name)
    filled = {}
    for name, p in inspect.signature(factory).parameters.items():
        if name in FILLED["model"]:
            if name in source.facts:
                filled[name] = source.facts[name]
            elif p.default is p.empty:
                raise ConfigError(f"model={config.model.name} needs {name}, which data={config.data.name} doesn't have")
    return _call("model", config.model, **filled)


def _optimizer(config: Config) -> tuple[optax.GradientTransformation, dict[str, Callable[[Any], Any]]]:
    """The optimizer, every learning rate of which is the peak of the config's schedule."""
    factory, arguments = find("optimizer", config.optimizer.name), dict(config.optimizer.arguments)
    hints, schedules = _hints(factory), {}
    is_flat = config.schedule.name == "constant" and not config.schedule.arguments.get("warmup")
    for name in parameters("optimizer", factory):
        peak = arguments.get(name)
        if _is_rate(name) and isinstance(peak, int | float) and _takes_schedule(hints.get(name, Any)):
            filled = {"peak": peak, "steps": config.steps}
            takes = inspect.signature(find("schedule", config.schedule.name)).parameters
            if "peak" not in takes:
                raise ConfigError(f"schedule={config.schedule.name} is no learning rate: it takes no peak")
            schedules[name] = _call("schedule", config.schedule, **{k: v for k, v in filled.items() if k in takes})
            # A constant stays a number: some rules take no schedule, and a number needs no count in the state.
            arguments[name] = peak if is_flat else schedules[name]
    if not is_flat and not schedules:
        raise ConfigError(
            f"schedule={config.schedule.name} has no learning rate to shape in optimizer={config.optimizer.name}: "
            "set optimizer.learning_rate if that takes a schedule, or say schedule=constant"
        )
    tx = _call("optimizer", Component(config.optimizer.name, arguments))
    if not (hasattr(tx, "init") and hasattr(tx, "update")):
        raise ConfigError(
            f"optimizer={config.optimizer.name} must return an optax.GradientTransformation, got {type(tx).__name__}"
        )
    return tx, schedules


def _takes_schedule(hint: Any) -> bool:
    members = typing.get_args(hint) or (hint,)
    return any(m is Any or (typing.get_origin(m) or m) is collections.abc.Callable for m in members)
