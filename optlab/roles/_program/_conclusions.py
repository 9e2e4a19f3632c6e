"""From the log of a parameter's uses to its role and matrix axes."""

import dataclasses
import itertools
import math
from collections.abc import Iterable, Sequence
from typing import Any

from optlab.roles._axes import MatrixAxes
from optlab.roles._layout import Reading
from optlab.roles._program._factors import Factor, whole_axes
from optlab.roles._program._values import Use, Value
from optlab.roles._program._walk import Reader

# These say only how a parameter is seen, not that it is used.
SEEN = {"stack", "cut", "whole", "index", "const", "route", "inner", "shard", "expert", "step"}


def read_jaxpr(jaxpr: Any, shapes: Sequence[tuple[int, ...]]) -> list[Reading]:
    """A reading of each of the first inputs of a jaxpr, which have these shapes; the others are the batch."""
    reader = Reader()
    ins = [Value({i: whole_axes(shape)}, is_seen=True) for i, shape in enumerate(shapes)]
    ins += [Value(is_data=True)] * (len(jaxpr.invars) - len(ins))
    reached = _union(v.up for v in reader.read(jaxpr, ins))
    uses: list[dict[str, list[Use]]] = [{} for _ in shapes]
    for use in dict.fromkeys(reader.log):  # each once, in order
        uses[use.leaf].setdefault(use.kind, []).append(use)
    inner = _behind(reader, uses)
    return [_reading(shape, some, inner, reached) for shape, some in zip(shapes, uses, strict=True)]


def _behind(reader: Reader, uses: Sequence[dict[str, list[Use]]]) -> int:
    """The products, as bits, that others lie behind, or whose results are added to a stream that others read."""
    own = [_union(1 << use.product for use in _last_products(some)) for some in uses]
    products = _union(own)
    followed = _union(up for i, up in enumerate(reader.feeds) if products >> i & 1)
    for bits in own:  # a parameter is followed wherever it is used
        followed |= bits if bits & followed else 0
    branch = 0
    for a, b in reader.sums:
        branch |= (a if b & followed & products else 0) | (b if a & followed & products else 0)
    return followed | branch


def _products(uses: dict[str, list[Use]]) -> list[Use]:
    return [*uses.get("conv", ()), *uses.get("dot", ())]


def _last_products(uses: dict[str, list[Use]]) -> list[Use]:
    """Those after the last step that the parameter took within the program."""
    first = max((use.product for use in uses.get("step", ())), default=0)
    return [use for use in _products(uses) if use.product >= first]


def _union(masks: Iterable[int]) -> int:
    found = 0
    for mask in masks:
        found |= mask
    return found


def _reading(shape: tuple[int, ...], uses: dict[str, list[Use]], behind: int, reached: int) -> Reading:
    last = _last_products(uses)
    named = frozenset(f"unknown {u.name}" for u in uses.get("unknown", ())) | frozenset(uses) - {"unknown"}
    role, axes = _role(shape, uses), MatrixAxes()
    parts: tuple[int, ...] = ()
    if role in ("matrix", "conv"):
        axes, parts = _axes_of(shape, uses)
        if not any(behind >> u.product & 1 for u in last):
            # Of a product that no other lies behind, and that doesn't reach the loss, nothing can be said.
            role = "head" if any(reached >> u.product & 1 for u in last) else None
        if role == "matrix" and not axes.is_matrix:  # a side of it was lost on the way to its use
            role = None
    if role == "embedding":
        own = tuple(_own(shape, _meant(uses, "stack")))
        axes = MatrixAxes(tuple(a for a in range(len(shape)) if a not in own), own[:-1], own[-1:])
    is_input = bool(last) and role in ("matrix", "conv", "head") and all(u.is_input for u in last)
    return Reading(shape, role, axes, is_input, named, parts, role)


def _meant(uses: dict[str, list[Use]], *kinds: str) -> set[Factor]:
    return {f for kind in kinds for use in uses.get(kind, ()) for f in use.stack}


def _own(shape: tuple[int, ...], stack: set[Factor]) -> list[int]:
    """The axes of a single one of a stack."""
    return [a for a in range(len(shape)) if not any(f.axis == a and f.size == shape[a] for f in stack)]


def _role(shape: tuple[int, ...], uses: dict[str, list[Use]]) -> str | None:
    """The role, heads apart."""
    products = _products(uses)
    if not shape:
        return "scalar"
    stack, looked_up = _meant(uses, "stack"), _meant(uses, "index", "route", *(() if products else ("const",)))
    own = _own(shape, stack)
    if _is_table(shape, uses, own, looked_up):
        return "embedding"
    if "unknown" in uses and not products:
        return None
    if not products or len(own) < 2:
        return "vector" if uses.keys() - SEEN else None
    return "conv" if "conv" in uses else "matrix"


def _is_table(shape: tuple[int, ...], uses: dict[str, list[Use]], own: Sequence[int], looked_up: set[Factor]) -> bool:
    """True if its rows are looked up by the batch or by positions, or stand as tokens."""
    products = _products(uses)
    is_row_used = bool(looked_up) and any(
        use.axes and not any(f.axis in use.axes for f in looked_up)
        for kind in ("add", "mul")
        for use in uses.get(kind, ())
    )
    if "table" in uses or (len(own) >= 2 and is_row_used and ("route" not in uses or products)):
        return True
    if products:
        return False
    if "token" in uses and len(own) >= 2:
        return True
    is_added = "route" not in uses and any(use.is_loose for use in uses.get("add", ()))
    return is_added and (bool(looked_up) or sum(shape[a] > 1 for a in own) >= 2)


# Every axis of a parameter as segments between strides, each in the stack, the input or the output.


@dataclasses.dataclass
class _Segment:
    axis: int
    size: int
    group: str | None  # "stack", "input", "output"; None where no use shows it
    is_apart: bool  # whether the program takes apart what it counts


def _axes_of(shape: tuple[int, ...], uses: dict[str, list[Use]]) -> tuple[MatrixAxes, tuple[int, ...]]:
    """The matrix axes of what is used in a product, and the unequal parts that its output is taken apart in."""
    products = _products(uses)
    split, unequal = _parts(uses)
    stack = _meant(uses, "stack")
    if len(_own(shape, stack)) >= 3:
        stack |= {f for f in _meant(uses, "expert") if f.size == shape[f.axis]}
    looked_up = _meant(uses, "index", "route")
    known = [(f, "stack") for f in stack]
    for use in products:
        known += [(f, "input") for f in use.input] + [(f, "output") for f in use.output]
        known += [(f, "stack") for f in use.stack]
    known += [(f, "stack") for f in looked_up]
    for use in uses.get("shard", ()):  # the devices' part of an axis is to the parameter what each one's share is
        devices, each = use.stack
        known += [(devices, group) for f, group in known if f.range[:2] == each.range[:2]][:1]
    segments = _segments(shape, known, split)
    _fill(segments, uses)
    return _as_axes(segments, shape), unequal


def _segments(shape: tuple[int, ...], known: list[tuple[Factor, str]], split: dict[int, set[Any]]) -> list[_Segment]:
    found = []
    for axis, n in enumerate(shape):
        apart = split.get(axis, set())
        strides = {b for f, _ in known if f.axis == axis for b in (f.stride, f.stride * f.whole)}
        bounds = sorted({1, n} | strides | {b for pair in apart for b in pair})
        if any(q % p for p, q in itertools.pairwise(bounds)):
            bounds, apart = sorted({1, n}), set()
        for low, high in reversed(list(itertools.pairwise(bounds))):
            group = next(
                (g for f, g in known if f.axis == axis and f.stride <= low and high <= f.stride * f.whole), None
            )
            found.append(_Segment(axis, high // low, group, (low, high) in apart))
        if n == 1:
            found.append(_Segment(axis, 1, None, False))
    return found


def _parts(uses: dict[str, list[Use]]) -> tuple[dict[int, set[tuple[int, int]]], tuple[int, ...]]:
    """{axis: (stride, end) of what counts equal parts}, and the sizes of unequal ones."""
    whole = {use.cut for use in uses.get("whole", ())}
    pieces: dict[tuple[int, int, int], set[tuple[int, int]]] = {}
    for use in uses.get("cut", ()):
        if use.cut is not None and use.cut not in whole:
            pieces.setdefault(use.cut[0], set()).add(use.cut[1])
    split: dict[int, set[tuple[int, int]]] = {}
    unequal: tuple[int, ...] = ()
    for (axis, stride, n), some in pieces.items():
        points = sorted({p for start, size in some for p in (start, start + size)})
        steps = [int(b - a) for a, b in itertools.pairwise(points)]
        if len(steps) > 1 and points[0] == 0 and points[-1] == n and sum(size for _, size in some) >= n:
            if len(set(steps)) == 1:
                split.setdefault(axis, set()).add((stride * steps[0], stride * n))
            else:
                unequal = tuple(steps)
    return split, unequal


def _fill(segments: list[_Segment], uses: dict[str, list[Use]]) -> None:
    """Gives a group to the segments that no use shows, and the parts of an output to the stack."""
    sides = {s.group for s in segments if s.size > 1 and s.group in ("input", "output")}
    inner = {} if sides else {f.axis: use.name for use in uses.get("inner", ()) for f in use.stack}
    other = "stack" if len(sides) == 2 else "output" if sides == {"input"} else "input"
    left = math.prod(s.size for s in segments if s.group == "output" and not s.is_apart)
    for s in segments:
        if s.group is None and s.size > 1:
            s.group = inner.get(s.axis, "stack" if s.is_apart else other)
        elif s.is_apart and s.group == "output" and left > 1:
            s.group = "stack"
    is_depthwise = any(use.stack and not use.output for use in uses.get("conv", ()))
    for s in segments:
        if s.group is None:  # of length 1: the side that has no axis yet
            sides = {t.group for t in segments if t.group is not None}
            missing = [side for side in ("output", "input") if side not in sides and not is_depthwise]
            s.group = missing[0] if missing else "input" if "conv" in uses else "stack"


def _as_axes(segments: list[_Segment], shape: tuple[int, ...]) -> MatrixAxes:
    """Neighbours of one axis and group are one axis of the view."""
    view: list[_Segment] = []
    for s in segments:
        if view and (view[-1].axis, view[-1].group) == (s.axis, s.group):
            view[-1].size *= s.size
        else:
            view.append(s)

    def at(group: Any) -> Any:
        return tuple(i for i, s in enumerate(view) if s.group == group)

    seen = tuple(s.size for s in view)
    return MatrixAxes(at("stack"), at("input"), at("output"), () if seen == shape else seen)
