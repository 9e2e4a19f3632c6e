"""Components: finds the factory of a name, and checks arguments against its signature."""

from __future__ import annotations

import contextlib
import dataclasses
import importlib
import inspect
import re
import typing
from collections.abc import Callable, Iterator
from typing import Any

from optlab.config import (
    Component,
    Config,
    ConfigError,
    accepts,
    describe,
    flatten,
    is_learning_rate,
    keys,
    nearest,
    parse,
    to_json,
)

# Modules that are searched for a bare name, in this order.
MODULES = {
    "data": ("optlab.data.sources",),
    "loss": ("optlab.training.losses",),
    "metrics": ("optlab.training.losses",),
    "measure": ("optlab.theory.measures",),
    "schedule": ("optlab.schedules", "optax"),
    "optimizer": ("optlab.optimizers", "optax", "optax.contrib"),
    "part": ("optlab.optimizers", "optlab.transforms", "optax", "optax.contrib"),  # of an optimizer
    "model": ("optlab.models",),
}
_STRATEGY: dict[tuple[str, ...], str] = {("axis_name",): "the strategy"}
_CALL: dict[tuple[str, ...], str] = {("outputs",): "the model", ("batch",): "the data"}
# Arguments that the run fills in, and their origin: a config can't set them. A tuple has optlab's and optax's names for
# one thing, of which the first that a factory has is filled. A model's come from the data too: `optlab.data.Facts`.
FILLED: dict[str, dict[tuple[str, ...], str]] = {
    "schedule": {
        ("peak", "peak_value", "init_value", "value"): "optimizer.learning_rate",
        ("steps", "decay_steps", "transition_steps"): "steps",
    },
    "model": _STRATEGY,
    "optimizer": _STRATEGY,
    "part": _STRATEGY,
    "loss": _CALL,
    "metrics": _CALL,
}


def filled(kind: str, factory: Callable[..., Any]) -> dict[str, str]:
    """Returns the arguments of a factory that a config can't set, with the origin of each."""
    names, table = inspect.signature(factory).parameters, FILLED.get(kind, {})
    if kind == "model":
        from optlab.data import Facts

        table = {**{(fact,): "the data" for fact in Facts.__annotations__}, **table}
    found = {next((n for n in aliases if n in names), ""): source for aliases, source in table.items()}
    return {name: source for name, source in found.items() if name}


def in_keys(prefix: str, factory: Callable[..., Any], error: Exception) -> str:
    """Writes a factory's error in a config's words: `path=` is `data.path=` there."""
    text = str(error)
    for name in inspect.signature(factory).parameters:
        text = re.sub(rf"(?<![\w.]){name}=", f"{prefix}.{name}=", text)
    return text


def find(kind: str, name: str) -> Callable[..., Any]:
    """Finds the factory of a component's name.

    Raises:
        ConfigError: if there is none; it names the nearest one.
    """
    if ":" in name:
        return _find_users(kind, name)
    prefix, _, last = name.rpartition(".")
    modules = [m for m in MODULES[kind] if not prefix or m == prefix or m.startswith(f"{prefix}.")]
    for module in modules:
        if last in _names(module) and _is_a(kind, module, last):
            return getattr(importlib.import_module(module), last)
    names = {n for m in modules or MODULES[kind] for n in _names(m) if _is_a(kind, m, n)}
    raise ConfigError(f"unknown {kind} {name!r}; {nearest(last, names)} (your own: {kind}=module:function)")


def names_of_kind(kind: str) -> list[str]:
    """Lists optlab's own components of a kind, such as "optimizer"; a config can name optax's, too."""
    module = MODULES[kind][0]
    return sorted(name for name in _names(module) if _is_a(kind, module, name))


def _names(module: str) -> list[str]:
    """Lists the public functions of a module, without deprecated ones, which a module's `__getattr__` serves."""
    found = vars(importlib.import_module(module))
    public = found.get("__all__", [n for n in found if not n.startswith("_")])
    return [n for n in public if callable(found.get(n)) and n.islower()]


def _is_a(kind: str, module: str, name: str) -> bool:
    """Returns whether a function is of the kind: optax's modules hold more than optimizers and schedules."""
    if kind == "loss":
        return name != "accuracy"  # which has no gradient
    if kind == "model":
        return name != "attention_weights"  # a function of arrays
    if not module.startswith("optax"):
        return True
    if kind == "schedule":
        return name.endswith(("_schedule", "_decay"))
    return not name.startswith("scale_by_") and any(
        is_learning_rate(p) for p in inspect.signature(getattr(importlib.import_module(module), name)).parameters
    )


def _find_users(kind: str, name: str) -> Callable[..., Any]:
    module, _, function = name.partition(":")
    try:
        found = getattr(importlib.import_module(module), function)
    except Exception as error:
        raise ConfigError(f"{kind}={name} can't be imported: {type(error).__name__}: {error}") from error
    try:
        inspect.signature(found)
    except (TypeError, ValueError) as error:
        raise ConfigError(f"{kind}={name} must be a function with a signature, got {found!r}") from error
    return found


def parameters(kind: str, factory: Callable[..., Any]) -> dict[str, inspect.Parameter]:
    """Returns the arguments of a factory that a config can set, by name."""
    return {n: p for n, p in inspect.signature(factory).parameters.items() if n not in filled(kind, factory)}


def check_arguments(kind: str, part: Component, factory: Callable[..., Any], key: str | None = None) -> None:
    """Checks a component's arguments against its factory's signature.

    Args:
        kind: kind of component, as in `MODULES`.
        part: the component.
        factory: the factory that its name stands for.
        key: key of the component in the config; None is its kind.

    Raises:
        ConfigError: for an argument that is unknown, of the wrong type, missing, or filled in by the run.
    """
    allowed, key = parameters(kind, factory), key or kind
    open_ended = any(p.kind is p.VAR_KEYWORD for p in allowed.values())
    hints = hints_of(factory)
    for name, value in part.arguments.items():
        if name in filled(kind, factory):
            raise ConfigError(f"{key}.{name} can't be set: it follows from {filled(kind, factory)[name]}")
        if name not in allowed and not open_ended:
            known = [f"{key}.{n}" for n in allowed]
            raise ConfigError(f"unknown key '{key}.{name}' for {key}={part.name}; {nearest(f'{key}.{name}', known)}")
        hint = hints.get(name, Any)
        if not accepts(value, hint) and not isinstance(value, Component):
            way = f": say {key}.{name}=[{value}]" if accepts([value], hint) else ""
            raise ConfigError(f"{key}.{name} must be {describe(hint)}, got {value!r}{way}")
        if is_learning_rate(name) and isinstance(value, int | float) and not value >= 0:
            raise ConfigError(f"{key}.{name} must be at least 0, got {value}")
    for name, p in allowed.items():
        needed = p.default is p.empty and p.kind not in (p.VAR_KEYWORD, p.VAR_POSITIONAL)
        if kind == "part" and name == "learning_rate":
            continue  # its default is the optimizer's
        if needed and name not in part.arguments:
            raise ConfigError(f"{key}={part.name} needs {key}.{name}=…")


def takes_part(hint: Any) -> bool:
    """Returns whether arguments of a type are transformations, which a config names as components."""
    import optax

    members = typing.get_args(hint) or (hint,)
    return any(isinstance(m, type) and issubclass(m, optax.GradientTransformation) for m in members)


def _with_parts(key: str, part: Component, hints: dict[str, Any]) -> Component:
    """Collects the parts of a component: rest=adamw and rest.b2=0.99 become one component with an argument."""
    plain = {n: v for n, v in part.arguments.items() if "." not in n}
    parts = {
        n: v if isinstance(v, Component) else Component(v)
        for n, v in plain.items()
        if takes_part(hints.get(n, Any)) and isinstance(v, str | Component)
    }
    for name, value in part.arguments.items():
        head, dot, tail = name.partition(".")
        if dot and head not in parts:
            if head in hints and takes_part(hints[head]):
                raise ConfigError(
                    f"{key}.{name} says an argument of a part that isn't named: say {key}.{head}=NAME too"
                )
            plain[name] = value
        elif dot:
            of = parts[head]
            text = {tail: part.written[name]} if name in part.written else {}
            parts[head] = Component(of.name, {**of.arguments, tail: value}, {**of.written, **text})
    return Component(part.name, {**plain, **parts}, part.written)


def hints_of(factory: Callable[..., Any]) -> dict[str, Any]:
    """Returns the type of each argument; Any where only a type checker can resolve the annotation."""
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
    """Yields the components of a config by key; the data come first, since checking them needs no JAX."""
    return ((kind, getattr(config, kind)) for kind in MODULES if kind not in ("metrics", "measure", "part"))


def _fit(kind: str, part: Component, factory: Callable[..., Any]) -> Component:
    """Parses the command line's arguments again, now that their types are known: none, 12 and 1e5 can be strings."""
    hints = hints_of(factory)
    said = {n: parse(text, hints.get(n, Any)) for n, text in part.written.items() if n in part.arguments}
    return Component(
        part.name, {n: v if isinstance(v, Component) else said.get(n, v) for n, v in part.arguments.items()}
    )


def _resolved(key: str, kind: str, part: Component) -> Component:
    """Checks a component and its parts, and fills in their factories' defaults."""
    factory = find(kind, part.name)
    part = _fit(kind, _with_parts(key, part, hints_of(factory)), factory)
    check_arguments(kind, part, factory, key)
    given = {**_plain_defaults(kind, factory), **part.arguments}
    said = {n: given[n] for n in parameters(kind, factory) if n in given} | dict(part.arguments)
    parts = {n: _resolved(f"{key}.{n}", "part", v) for n, v in said.items() if isinstance(v, Component)}
    return Component(part.name, {**said, **parts})


def resolve(config: Config) -> Config:
    """Checks every component of a config against its factory's signature, and fills in the factories' defaults.

    Raises:
        ConfigError: for an unknown name or argument, a wrong type, a missing argument, or one that the run fills in.
    """
    full: dict[str, Any] = {kind: _resolved(kind, kind, part) for kind, part in components(config)}
    for name in config.metrics:
        find("metrics", name)
    for name in config.measure:
        find("measure", name)
    config = dataclasses.replace(config, **full)
    to_json(config)
    return config


def explain_keys(config: Config) -> list[tuple[str, Any, str, str]]:
    """Describes every key of a resolved config: (key, value, type, meaning); docstrings explain the arguments."""
    help = {
        k: ("name" if hint is Component else describe(hint), about["help"]) for k, (hint, about) in keys(Config).items()
    }
    for kind, part in components(config):
        help |= _help(kind, kind, part)
    return [(key, value, *help.get(key, ("", ""))) for key, value in flatten(config).items()]


def _help(key: str, kind: str, part: Component) -> dict[str, tuple[str, str]]:
    """Returns (type, meaning) of the arguments of a component and of its parts, by key."""
    factory = find(kind, part.name)
    hints, texts = hints_of(factory), _argument_texts(factory)
    help = {f"{key}.{n}": (describe(hints.get(n, Any)), texts.get(n, "")) for n in parameters(kind, factory)}
    for name, value in part.arguments.items():
        if isinstance(value, Component):
            help |= {f"{key}.{name}": ("name", texts.get(name, ""))} | _help(f"{key}.{name}", "part", value)
    return help


def _argument_texts(factory: Callable[..., Any]) -> dict[str, str]:
    """Reads the first sentence about each argument from a Google-style docstring."""
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
