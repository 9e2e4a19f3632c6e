"""The one way to name a parameter: the names on its path, and the overrides that they match."""

import fnmatch
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, TypeVar

import jax
from jax.tree_util import FlattenedIndexKey, GetAttrKey, KeyPath

from optlab._messages import closest

T = TypeVar("T")


class PatternError(ValueError):
    """A path or pattern that matches no parameter, or what is given for one can't be its role or axes."""


WRAPPED = {"value", "array", "real", "imaginary"}  # what a wrapper calls the array that it holds


def names_of(path: KeyPath) -> tuple[str, ...]:
    """The names on a leaf's path in a tree."""
    if len(path) > 1 and isinstance(path[-1], GetAttrKey) and path[-1].name == "value":
        path = path[:-1]  # an nnx.State holds variables, and a variable its value
    names = (jax.tree_util.keystr((key,), simple=True) for key in path)
    return tuple(part for name in names for part in name.split("/"))  # Haiku's module names are paths


def paths_of(tree: Any) -> dict[str, tuple[tuple[str, ...], Any]]:
    """(names, leaf) of every leaf by its path, in the tree's order.

    What a wrapper adds behind a parameter's own name, as Haliax's NamedArray does, is left out of the names; and out of
    the path, unless two leaves would have one path.

    Raises:
        ValueError: if two leaves have one path all the same.
    """
    leaves = [(names_of(path), names_of(_bare(path)), x) for path, x in jax.tree_util.tree_leaves_with_path(tree)]
    count = Counter(plain for _, plain, _ in leaves)
    found = {"/".join(plain if count[plain] == 1 else whole): (plain, x) for whole, plain, x in leaves}
    if len(found) < len(leaves):
        twice = Counter("/".join(plain if count[plain] == 1 else whole) for whole, plain, _ in leaves)
        raise ValueError(f"two parameters have the path {twice.most_common(1)[0][0]!r}: rename one of them")
    return found


def _bare(path: KeyPath) -> KeyPath:
    while len(path) > 1 and (
        isinstance(path[-1], FlattenedIndexKey) or (isinstance(path[-1], GetAttrKey) and path[-1].name in WRAPPED)
    ):
        path = path[:-1]
    return path


def matches(overrides: Mapping[str, T], paths: Sequence[str], who: str = "the override") -> dict[str, T]:
    """The override of each path: the first whose key is the path or a pattern that matches it.

    Args:
        overrides: by path or pattern.
        paths: of all parameters.
        who: what the overrides are called in the message.

    Raises:
        PatternError: for a key that matches no path; it names the nearest one.
    """
    matched = {key: [key] if key in paths else fnmatch.filter(paths, key) for key in overrides}
    for key, some in matched.items():
        if paths and not some:
            near = closest(key, paths)
            raise PatternError(f"{who} {key!r} matches no parameter: the nearest path is {near!r}")
    return {path: overrides[key] for key in reversed(list(overrides)) for path in matched[key]}


def pattern_over_layers(path: str, alike: Iterable[str], every: Iterable[str]) -> str:
    """A pattern that matches this path and others of the same kind in other layers, and nothing else; or the path."""
    pattern = "/".join(_numberless(name) for name in path.split("/"))
    is_exact = set(fnmatch.filter(every, pattern)) <= set(alike)
    return pattern if is_exact and len(fnmatch.filter(alike, pattern)) > 1 else path


def _numberless(name: str) -> str:
    head = name.rstrip("0123456789")
    return name if head == name else f"{head}*"
