"""Overrides: `key=value` strings from the command line, applied to a config."""

from __future__ import annotations

import dataclasses
import json
import sys
import typing
from collections.abc import Mapping, Sequence
from typing import Any

from optlab._messages import meant, usual
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
        _shrink(tree["schedule"]["arguments"], "warmup", "schedule.warmup", tree["steps"] - 1, tree["steps"] // 10)
    if "measure_every" not in values and tree["measure"]:
        _shrink(tree, "measure_every", "measure_every", tree["steps"], max(1, tree["steps"] // 10))
    return from_tree(Config, tree)  # which checks the config once all values are in place


def _shrink(tree: dict[str, Any], name: str, key: str, most: int, tenth: int) -> None:
    """Shrinks a number of steps that the command line didn't say to a tenth of a run that is shorter: `steps=20`."""
    if isinstance(tree.get(name), int) and tree[name] > most:
        print(f"optlab: {key}={tree[name]} is longer than the run: it is {tenth}, a tenth of it", file=sys.stderr)
        tree[name] = tenth


def _set(kind: Any, tree: dict[str, Any], path: list[str], text: str, key: str) -> None:
    hints = typing.get_type_hints(kind)
    name, rest = path[0], path[1:]
    if name not in hints:
        prefix = key[: len(key) - len(".".join(path))]
        way = (_elsewhere(tree, key, text) if len(path) == 1 and not prefix else "") or nearest_key(prefix, path, hints)
        raise ConfigError(f"unknown key {key!r}; {way}")
    hint = hints[name]
    if hint is Component and not rest:
        tree[name] = tree[name] if text == tree[name]["name"] else {"name": text, "arguments": {}, "written": {}}
    elif hint is Component:
        _set_argument(tree[name], rest, text)
    elif dataclasses.is_dataclass(hint) and rest:
        _set(hint, tree[name], rest, text, key)
    elif dataclasses.is_dataclass(hint):
        keys = ", ".join(f"{key}.{n}" for n in typing.get_type_hints(hint))
        raise ConfigError(f"{key} is a group of keys; set one of {keys}")
    elif typing.get_origin(hint) is Mapping and rest:
        tree[name] = {**tree[name], ".".join(rest): text}
    elif typing.get_origin(hint) is Mapping:
        raise ConfigError(f"{key} is said by name, as {_by_name(key, text)}")
    elif rest:
        raise ConfigError(f"unknown key {key!r}; {key.removesuffix('.' + '.'.join(rest))} has no parts")
    else:
        tree[name] = parse(text, hint)
        if not accepts(tree[name], hint):
            way = (
                f": say {key}=[{usual(text)}]"
                if accepts(parse(f"[{text}]", hint), hint) and text[0] not in "[("
                else ""
            )
            raise ConfigError(f"{key} must be {describe(hint)}, got {text!r}{way}")


def _by_name(key: str, text: str) -> str:
    """The overrides that a mapping means: roles.head=matrix for roles={"head": "matrix"}."""
    mapping = parse(text)
    if not isinstance(mapping, Mapping) or not mapping:
        return f"{key}.PATTERN={text}"
    return " ".join(f"{key}.{name}={text_of(value)}" for name, value in mapping.items())


EPOCHS = ("epochs", "epoch", "num_epochs")  # what a run's length is called elsewhere

# Whose argument a key without a dot probably is, where the config doesn't have it itself.
_OWNERS = {
    "optimizer": ("learning_rate", "weight_decay", "momentum", "b1", "b2", "eps"),
    "schedule": ("warmup",),
    "model": ("widths", "width", "depth", "heads", "dropout", "dtype"),
    "data": ("path",),
    "stop": ("patience", "min_gain"),
}


def _elsewhere(tree: dict[str, Any], key: str, text: str) -> str:
    """Ends the message of a key that is said in the wrong place or by another name; "" for any other key."""
    if key == "run":
        return f"a run's folder is no key of a config: say --run {text}"
    if key in EPOCHS:
        return (
            f"a run is steps long: say steps=N, where N is {text} times the training examples, divided by "
            f"batch_size={tree['batch_size']}"
        )
    owners = {f"{owner}.{name}": name for owner, names in _OWNERS.items() for name in names}
    found = [place for place, name in owners.items() if name in meant(key, owners.values())]
    if len(found) == 1 and not meant(key, tree):
        return f"did you mean {found[0]}={text}?"
    return ""


def _set_argument(component: dict[str, Any], path: list[str], text: str) -> None:
    """Sets an argument of a component or of its parts. A part that keeps its name keeps its arguments, too."""
    part: Any = component["arguments"].get(path[0])
    if is_component(part) and len(path) > 1:
        _set_argument(part, path[1:], text)
    elif not is_component(part) or text != part["name"]:
        key = ".".join(path)
        component["arguments"][key], component["written"][key] = parse(text), text


def text_of(value: Any) -> str:
    """Writes a value as an override has it."""
    return value if isinstance(value, str) else json.dumps(value).replace("null", "none").replace('"', "")
