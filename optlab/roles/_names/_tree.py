"""The parameters of a tree with their neighbours, the stacks of layers among them, and the matrices that are turned."""

import itertools
import re
from collections import defaultdict
from typing import TypeAlias

from optlab.roles._names._parameter import Module, Parameter, Shape
from optlab.roles._names._words import KERNELS, TABLES

Leaves: TypeAlias = tuple[tuple[str, tuple[str, ...], Shape], ...]  # (path, names, shape) of each


def read(leaves: Leaves) -> list[Parameter]:
    """The parameters in the tree's order, with their neighbours and stacks."""

    def plain(names: tuple[str, ...]) -> tuple[str, ...]:
        return names[:-1] if names[-1:] == ("0",) and names[-2:-1] in (("w",), ("kernel",)) else names

    parameters = [Parameter(path, plain(names), shape) for path, names, shape in leaves]
    layers: dict[tuple[str, ...], dict[tuple[str, str], Parameter]] = defaultdict(dict)
    modules: dict[tuple[str, ...], Module] = defaultdict(Module)
    for p in parameters:
        p.beside, p.module = layers[p.names[:-1]], modules[p.layer[:-1]]
        p.beside[p.kind, p.number] = p
        p.module.members.append(p)
        modules[p.names[:-2]].inside.append(p)
    _find_stacks(parameters, 0)
    norms = {p.one_shape[0] for p in parameters if p.of_norm and len(p.one_shape) == 1}
    for module in modules.values():
        module.model_norms = norms
    _find_turned(parameters)
    return parameters


def _find_turned(parameters: list[Parameter]) -> None:
    """Finds the bare matrices that are (out, in): in every layer of a kind they begin with the bias's length, and in
    one they don't also end with it."""
    alike: dict[str, list[tuple[Parameter, Shape]]] = defaultdict(list)
    for p in parameters:
        bias = p.beside.get(("bias", ""))
        if len(p.one_shape) == 2 and bias and not any(kind in KERNELS for kind, _ in p.beside):
            alike[re.sub("[0-9]+", "", p.path)].append((p, bias.one_shape))
    for members in alike.values():
        begins = all(p.one_shape[:1] == bias for p, bias in members)
        is_turned = begins and any(p.one_shape[1:] != bias for p, bias in members)
        for p, _ in members:
            p.is_turned = is_turned


# Stacks of layers.


def _find_stacks(parameters: list[Parameter], depth: int) -> None:
    """From the whole tree down to single layers: what looks like a stack of layers has one axis more."""
    while (axis := _stack_axis(parameters)) is not None:
        for p in parameters:
            p.count_layers(axis)

    def scope(p: Parameter) -> str:
        return p.names[depth]

    inside = sorted((p for p in parameters if len(p.names) > depth), key=scope)
    for _, members in itertools.groupby(inside, scope):
        _find_stacks(list(members), depth + 1)


def _stack_axis(parameters: list[Parameter]) -> int | None:
    """The axis that counts layers: 0, or 1 as T5X and MaxText scan, or None.

    All have the same length there, a kernel has two axes more, and one shows that it can't be a single layer's. Where
    there are neither gains nor biases, it is the first axis of two or more arrays of rank 3, none of them a
    convolution, and not all of them queries, keys and values, which share the width of the model.
    """
    shapes = [p.one_shape for p in parameters]
    if any(len(p.one_shape) == 1 and (p.of_norm or p.is_bias) for p in parameters):
        return None
    if any(len(p.one_shape) == 2 and p.kind in TABLES and not (p.of_norm or len(p.one_bias) > 1) for p in parameters):
        return None
    alike = [a for a in (0, 1) if shapes and min(map(len, shapes)) > a and len({shape[a] for shape in shapes}) == 1]
    for axis in alike:
        if any(_counts_layers(p, axis) for p in parameters):
            return axis
    is_one = len(alike) == 1 and min(map(len, shapes)) > 1  # queries, keys and values share the model's width, too
    if is_one and _has_long_queries(parameters):
        return alike[0]
    plain = len(parameters) > 1 and all(len(shape) == 3 for shape in shapes) and 0 in alike
    if plain and not any(p.is_vector or p.is_conv for p in parameters) and not all(p.into_heads for p in parameters):
        return 0
    return None


def _has_long_queries(parameters: list[Parameter]) -> bool:
    """True if queries, keys and values have all rank 4 or more: a single layer's key has 3 at most, its query has 4
    where queries are grouped, (width, groups, queries of a group, head width)."""
    ranks = [len(p.one_shape) for p in parameters if p.into_heads and not (p.projections or p.one_bias or p.is_conv)]
    return len(ranks) > 1 and min(ranks) > 3


def _counts_layers(p: Parameter, axis: int) -> bool:
    """True if this axis can't be a single layer's: a norm has vectors, and a layer's bias has its kernel's last
    axes alone."""
    shape, bias = p.one_shape, p.one_bias
    if p.of_norm:
        return len(shape) == 2
    if len(bias) not in range(2, len(shape)):
        return False
    one = bias[:axis] + bias[axis + 1 :]
    return bias[axis] == shape[axis] and one == shape[-len(one) :] and bias != shape[-len(bias) :]
