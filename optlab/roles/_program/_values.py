"""A value of a program and a use of a parameter, as `read_program` knows them."""

from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import NamedTuple

from optlab.roles._program._factors import Axes, Factor, Factors, factors_in
from optlab.roles._program._primitives import COPIES, LINEAR, MOVES, PAIRS, PRODUCTS


class Use(NamedTuple):
    """A use of a parameter at one place of the program, or a way in which it is seen there.

    kind: "dot" and "conv", the products with an activation; "table", "token", "add", "mul"; "unknown"; or what only
        says how it is seen: "stack", "index", "route", "const", "inner", "cut", "whole", "expert", "shard".
    leaf: the parameter, by its place in the tree's order.
    product: which product, of a product.
    is_input: whether no product lies before this one.
    input, output, stack: of a product the parts of axes that it contracts, leaves and counts; of what only says how it
        is seen, `stack` holds the parts of axes that are meant.
    axes: of "add" and "mul", the parameter's axes that are there.
    is_loose: of "add" and "mul", whether one of these meets an axis that no parameter made.
    cut: of "cut" and "whole", (axis, stride, whole) of what is cut, and (start, size) of the part.
    name: of "unknown", the primitive; of "inner", the side that is contracted, "input" or "output".
    """

    kind: str
    leaf: int
    product: int = -1
    is_input: bool = False
    input: Factors = ()
    output: Factors = ()
    stack: Factors = ()
    axes: frozenset[int] = frozenset()
    is_loose: bool = False
    cut: tuple[tuple[int, int, int], tuple[int, int]] | None = None
    name: str = ""


class Value(NamedTuple):
    """A value of the program.

    One that doesn't depend on the batch is a *weight*: its views say as what it shows each parameter. One that does is
    an *activation*; there a view is a tag: this axis is an output axis of the product with that parameter.

    views: {parameter: for each of the value's axes, the factors of the parameter's axes that it runs over}.
    is_data: whether it depends on the batch.
    up: the products upstream along which a gradient flows, as bits.
    near: those of them with no product between.
    level: how it comes from what it is tagged with: 2 linearly, 1 position by position, 0 mixed.
    is_seen: whether it depends on a parameter in any way, through integers too.
    is_onehot: whether it compares something of the batch with positions.
    lost: (parameter, factor): which single part of an axis it is, that its views have no more.
    within: (parameter, factor) of the cut parts of its product's output that it comes from alone, mixed or not.
    maybe: of a weight, the products of constants that are uses if it turns out an activation.
    scaled: (parameter, axes) of the weights that it was multiplied by: to sum over them is a product.
    """

    views: Mapping[int, Axes] = MappingProxyType({})
    is_data: bool = False
    up: int = 0
    near: int = 0
    level: int = 2
    is_seen: bool = False
    is_onehot: bool = False
    lost: frozenset[tuple[int, Factor]] = frozenset()
    within: frozenset[tuple[int, Factor]] = frozenset()
    maybe: tuple[tuple[Use, ...], ...] = ()
    scaled: tuple[tuple[int, Axes], ...] = ()

    @property
    def is_weight(self) -> bool:
        return bool(self.views) and not self.is_data

    def moved(self, move: Callable[[Axes], Axes]) -> "Value":
        """The same with the axes of its views moved."""
        return self._replace(views={leaf: move(axes) for leaf, axes in self.views.items()})

    def has_axis(self, d: int) -> bool:
        """True if a parameter made this axis."""
        return any(axes[d] for axes in self.views.values())


def plain(name: str, ins: Sequence[Value], views: Mapping[int, Axes] | None = None) -> Value:
    """The result of an equation, with these views."""
    tagged = [v for v in ins if v.views]
    level = min((v.level for v in tagged), default=2)
    if name in PAIRS and (any(v.up and not v.views for v in ins) or any(v.views != tagged[0].views for v in tagged)):
        level = 0
    elif name not in LINEAR or (name in PAIRS and len(tagged) > 1):
        level = min(level, 1)
    up = near = 0
    for v in ins:
        up, near = up | v.up, near | v.near
    is_data, is_seen = any(v.is_data for v in ins), any(v.is_seen for v in ins)
    lost = frozenset[tuple[int, Factor]]()
    if level and name != "dot_general" and not (name in PAIRS and len({v.lost for v in tagged}) > 1):
        lost = lost.union(*(v.lost for v in ins))
    sources = [v.within for v in ins if v.views or v.within or v.up]
    is_product = name in PRODUCTS
    within = frozenset.intersection(*sources) if sources and not is_product else frozenset[tuple[int, Factor]]()
    is_same = len(ins) == 1 and name in COPIES | MOVES
    is_onehot = ins[0].is_onehot if is_same else name == "eq" and is_data and not is_seen
    views = {leaf: axes for leaf, axes in (views or {}).items() if not is_data or any(axes)}
    maybe = () if is_data else tuple(m for v in ins for m in v.maybe)
    return Value(views, is_data, up, near, level, is_seen or bool(tagged), is_onehot, lost, within, maybe)


def mapped(name: str, ins: Sequence[Value], move: Callable[[Axes], Axes]) -> Value:
    """The result of an equation that moves the axes of its first operand."""
    views = {leaf: move(axes) for leaf, axes in ins[0].views.items()}
    gone = {
        (leaf, f)
        for leaf, axes in ins[0].views.items()
        for f in factors_in(axes) - factors_in(views[leaf])
        if f.size == 1
    }
    out = plain(name, ins, views)
    scaled = tuple((leaf, move(axes)) for leaf, axes in ins[0].scaled) if name == "reshape" else ()
    return out._replace(lost=out.lost | gone, scaled=scaled)


def together(ins: Sequence[Value]) -> dict[int, Axes]:
    """The views of several operands: of each parameter the fullest; of an activation those of the last few."""
    views: dict[int, Axes] = {}
    for v in ins:
        for leaf, axes in v.views.items():
            if leaf not in views or sum(map(len, axes)) > sum(map(len, views[leaf])):
                views[leaf] = axes
    return dict(list(views.items())[-6:]) if len(views) > 6 and any(v.is_data for v in ins) else views
