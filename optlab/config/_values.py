"""Values of a config: parsed from text, checked against a type hint, and described in an error."""

from __future__ import annotations

import ast
import collections.abc
import dataclasses
import types
import typing
from collections.abc import Iterable, Mapping
from typing import Any, Literal


class ConfigError(ValueError):
    """A config that can't be run. The message names the key, the value and the way out, in one or two lines."""


def is_learning_rate(argument: str) -> bool:
    """True if an argument of that name is a learning rate, which schedules shape."""
    return argument.endswith("learning_rate")


def accepts(value: Any, hint: Any) -> bool:
    """Returns whether a config's value fits a type hint. Hints that a config can't judge accept every value."""
    origin, members = typing.get_origin(hint), typing.get_args(hint)
    if hint is Any or isinstance(hint, str | typing.TypeVar):
        return True
    if origin in (typing.Union, types.UnionType):
        return any(accepts(value, m) for m in members)
    if origin is Literal:
        return value in members
    if origin in (tuple, list) or (
        isinstance(origin, type) and issubclass(origin, Iterable) and not issubclass(origin, Mapping)
    ):
        kinds = [m for m in members if m is not Ellipsis] or [Any]
        return isinstance(value, list | tuple) and all(any(accepts(v, m) for m in kinds) for v in value)
    if origin is collections.abc.Mapping:
        return isinstance(value, Mapping) and all(accepts(v, members[1]) for v in value.values())
    if hint in (None, type(None)):
        return value is None
    if hint is float:
        return isinstance(value, int | float) and not isinstance(value, bool)
    if hint is int:
        return isinstance(value, int) and not isinstance(value, bool)
    kind = origin or hint
    return not isinstance(kind, type) or isinstance(value, kind)


def describe(hint: Any) -> str:
    """Describes a type hint in words."""
    if typing.get_origin(hint) is Literal:
        return " or ".join(repr(m) for m in typing.get_args(hint))
    if typing.get_origin(hint) in (typing.Union, types.UnionType):
        return " or ".join(dict.fromkeys(describe(m) for m in typing.get_args(hint)))
    origin, members = typing.get_origin(hint) or hint, [m for m in typing.get_args(hint) if m is not Ellipsis]
    if origin is collections.abc.Callable:
        return "a function"
    if origin in (tuple, list, collections.abc.Sequence):
        items = " or ".join(dict.fromkeys(describe(m).split(" ", 1)[-1] for m in members)) or "value"
        return f"a list of {items}s"
    if origin is collections.abc.Mapping:
        return f"{describe(members[1])} by name"
    if dataclasses.is_dataclass(hint):
        return f"a {getattr(hint, '__name__', hint)}"
    words = {
        int: "an integer",
        float: "a number",
        bool: "true or false",
        str: "a string",
        type(None): "none",
        Any: "anything",
    }
    return words.get(hint) or str(getattr(hint, "__name__", hint))


def parse(text: str, hint: Any = Any) -> Any:
    """Parses a value of a command line: number, true/false, none, [list], "quoted" or bare text.

    What only looks like a number or a list stays text where the hint takes nothing else.
    """
    value = _parsed(text, hint)
    if not accepts(value, hint) and accepts(text, hint):
        return text
    return tuple(value) if typing.get_origin(hint) is tuple and isinstance(value, list) else value


def _parsed(text: str, hint: Any) -> Any:
    words = {"true": True, "false": False, "none": None, "null": None}
    if text.lower() in words:
        return words[text.lower()]
    if len(text) > 1 and text[0] in "'\"" and text.find(text[0], 1) == len(text) - 1:
        return text[1:-1]
    if text[:1] in ("[", "(") and text[-1:] in ("]", ")"):
        return [parse(part.strip(), _of_items(hint)) for part in _split(text[1:-1])]
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError):
        return text


def _of_items(hint: Any) -> Any:
    """The hint of a list's items: that of the first member of a union that is a list."""
    members = typing.get_args(hint) if typing.get_origin(hint) in (typing.Union, types.UnionType) else (hint,)
    kinds = (m for m in members if typing.get_origin(m) in (tuple, list, collections.abc.Sequence))
    items = [m for m in typing.get_args(next(kinds, Any)) if m is not Ellipsis]
    return items[0] if len(items) == 1 else Any


def _split(text: str) -> list[str]:
    """Splits at commas outside brackets and quotes."""
    parts, depth, quote = [""], 0, ""
    for char in text:
        if char == quote or (not quote and char in "'\"" and not parts[-1].strip()):
            quote = "" if quote else char
        depth += 0 if quote else (char in "[(") - (char in "])")
        if char == "," and depth == 0 and not quote:
            parts.append("")
        else:
            parts[-1] += char
    return [p for p in parts if p.strip()]
