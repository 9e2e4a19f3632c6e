"""Overrides: `key=value` strings from the command line, applied to a config."""

from __future__ import annotations

import dataclasses
import json
import sys
import typing
from collections.abc import Sequence
from typing import Any

from optlab.config._schema import Component, Config, from_tree, is_component, nearest_key
from optlab.config._values import ConfigError, accepts, describe, parse


def override(config: Config, assignments: Sequence[str]) -> Config:
    """Applies `key=value` strings to a config: components are swapped first, then arguments and fields are set.

    Args:
        config: the config to start from; it isn't changed.
        assignments: such as `steps=500`, `optimizer=adamw`, `optimizer.learning_rate=0.01`, `metrics=[accuracy]`.

    Raises:
        ConfigError: for an unknown key, a key given twice or a value of the wrong type; it names the nearest right key.
    """
    values: dict[str, str] = {}
    for assignment in assignments:
        key, equals, text = assignment.partition("=")
        if not equals:
            raise ConfigError(f"an override must read key=value, got {assignment!r}")
        if not text:
            raise ConfigError(f"{key}= says no value; for none say {key}=none")
        if key in values:
            raise ConfigError(f"{key} is said twice: {values[key]!r} and {text!r}")
        values[key] = text
    tree = dataclasses.asdict(config)
    for key, text in sorted(values.items(), key=lambda item: item[0].count(".")):
        _set(Config, tree, key.split("."), text, key)
    if "schedule.warmup" not in values:
        _shrink_warmup(tree)
    return from_tree(Config, tree)  # which checks the config once all values are in place


def _shrink_warmup(tree: dict[str, Any]) -> None:
    """Shrinks a file's warm-up to a tenth of the run, where an override makes the run shorter than it: `steps=20`."""
    arguments, steps = tree["schedule"]["arguments"], tree["steps"]
    warmup = arguments.get("warmup")
    if isinstance(warmup, int) and warmup >= steps:
        arguments["warmup"] = steps // 10
        print(
            f"optlab: schedule.warmup={warmup} is longer than the run: it is {steps // 10}, a tenth of it",
            file=sys.stderr,
        )


def _set(kind: Any, tree: dict[str, Any], path: list[str], text: str, key: str) -> None:
    hints = typing.get_type_hints(kind)
    name, rest = path[0], path[1:]
    if name not in hints:
        raise ConfigError(f"unknown key {key!r}; {nearest_key(key[: len(key) - len('.'.join(path))], path, hints)}")
    hint = hints[name]
    if hint is Component and not rest:
        tree[name] = tree[name] if text == tree[name]["name"] else {"name": text, "arguments": {}}
    elif hint is Component:
        _set_argument(tree[name]["arguments"], rest, text)
    elif dataclasses.is_dataclass(hint) and rest:
        _set(hint, tree[name], rest, text, key)
    elif dataclasses.is_dataclass(hint):
        keys = ", ".join(f"{key}.{n}" for n in typing.get_type_hints(hint))
        raise ConfigError(f"{key} is a group of keys; set one of {keys}")
    elif rest:
        raise ConfigError(f"unknown key {key!r}; {key.removesuffix('.' + '.'.join(rest))} has no parts")
    else:
        tree[name] = parse(text, hint)
        if not accepts(tree[name], hint):
            raise ConfigError(f"{key} must be {describe(hint)}, got {text!r}")


def _set_argument(arguments: dict[str, Any], path: list[str], text: str) -> None:
    """Sets an argument of a component or of its parts. A part that keeps its name keeps its arguments, too."""
    part: Any = arguments.get(path[0])
    if not is_component(part):
        arguments[".".join(path)] = parse(text)
    elif len(path) > 1:
        _set_argument(part["arguments"], path[1:], text)
    elif text != part["name"]:
        arguments[path[0]] = parse(text)


def text_of(value: Any) -> str:
    """Writes a value as an override has it."""
    return value if isinstance(value, str) else json.dumps(value).replace("null", "none").replace('"', "")
