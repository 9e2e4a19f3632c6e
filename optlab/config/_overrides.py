"""Overrides: `key=value` strings from the command line applied to a config."""

from __future__ import annotations

import dataclasses
import difflib
import typing
from collections.abc import Mapping, Sequence
from typing import Any

from optlab.config._schema import Component, Config
from optlab.config._values import ConfigError, accepts, describe, parse


def override(config: Config, assignments: Sequence[str]) -> Config:
    """A config with `key=value` strings applied: components are swapped first, then arguments and fields are set.

    Args:
      config: what to start from; it is not changed.
      assignments: such as `steps=500`, `optimizer=adamw`, `optimizer.learning_rate=0.01`, `metrics=[accuracy]`.

    Raises:
      ConfigError: for an unknown key, a key said twice or a value of the wrong type; it names the nearest right key.
    """
    values: dict[str, str] = {}
    for assignment in assignments:
        key, equals, text = assignment.partition("=")
        if not equals:
            raise ConfigError(f"an override must read key=value, got {assignment!r}")
        if key in values:
            raise ConfigError(f"{key} is said twice: {values[key]!r} and {text!r}")
        values[key] = text
    for key, text in sorted(values.items(), key=lambda item: item[0].count(".")):
        config = _set(config, key.split("."), text, key)
    return config


def _set(section: Any, path: list[str], text: str, key: str) -> Any:
    hints = typing.get_type_hints(type(section))
    if path[0] not in hints:
        prefix = key[: len(key) - len(".".join(path))]
        raise ConfigError(f"unknown key {key!r}; {nearest_key(prefix, path, hints)}")
    name, rest = path[0], path[1:]
    hint, value = hints[name], getattr(section, name)
    if hint is Component and not rest:
        new = value if text == value.name else Component(text)
    elif hint is Component:
        new = dataclasses.replace(value, arguments={**value.arguments, ".".join(rest): parse(text)})
    elif dataclasses.is_dataclass(hint):
        if not rest:
            raise ConfigError(
                f"{key} is a group of keys; set one of {', '.join(f'{key}.{n}' for n in typing.get_type_hints(hint))}"
            )
        new = _set(value, rest, text, key)
    elif rest:
        raise ConfigError(f"unknown key {key!r}; {'.'.join(key.split('.')[: -len(rest)])} has no parts")
    else:
        new = parse(text, hint)
        if not accepts(new, hint):
            raise ConfigError(f"{key} must be {describe(hint)}, got {text!r}")
    return dataclasses.replace(section, **{name: new})


def nearest_key(prefix: str, path: list[str], hints: Mapping[str, Any]) -> str:
    close = difflib.get_close_matches(path[0], list(hints), n=1, cutoff=0.6)
    if close:
        return f"did you mean {prefix + '.'.join([close[0], *path[1:]])!r}?"
    return f"there are {', '.join(prefix + h for h in hints)}"
