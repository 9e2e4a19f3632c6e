"""Parts of a parameter's axes, and how they go through reshapes: the algebra of `read_program`."""

import math
from collections.abc import Iterable, Sequence
from typing import NamedTuple, TypeAlias


class Factor(NamedTuple):
    """Positions (start + i)·stride, i < size, of a parameter's axis: a part of the `whole` positions of that stride.

    An axis of 12 is Factor(axis, 1, 12, 0, 12). Reshaped to (3, 4) it is Factor(axis, 4, 3, 0, 3) and Factor(axis, 1,
    4, 0, 4), and the second third of the former is Factor(axis, 4, 1, 1, 3).
    """

    axis: int
    stride: int
    size: int
    start: int
    whole: int

    @property
    def range(self) -> tuple[int, int, int]:
        """(axis, stride, whole): what it is a part of."""
        return self.axis, self.stride, self.whole


Factors: TypeAlias = tuple[Factor, ...]  # one axis of a value, the slowest first; () where no parameter made it
Axes: TypeAlias = tuple[Factors, ...]  # of a value, one for each of its axes


def whole_axes(shape: Sequence[int]) -> Axes:
    """The axes of the parameter itself."""
    return tuple((Factor(axis, 1, n, 0, n),) if n > 1 else () for axis, n in enumerate(shape))


def size_of(factors: Factors) -> int:
    return math.prod(f.size for f in factors)


def factors_in(axes: Iterable[Factors]) -> set[Factor]:
    return {f for factors in axes for f in factors}


def cut(f: Factor, outer: int) -> tuple[Factor, Factor] | tuple[None, None]:
    """A factor reshaped to (outer, size / outer); Nones where a part of an axis doesn't begin at such a block."""
    inner = f.size // outer
    if f.start % inner or f.whole % inner:
        return None, None
    slow = Factor(f.axis, f.stride * inner, outer, f.start // inner, f.whole // inner)
    return slow, Factor(f.axis, f.stride, inner, 0, inner)


def merged(factors: Iterable[Factor]) -> Factors:
    """The same, where neighbours that together run over one range of the axis are one."""
    out: list[Factor] = []
    for f in factors:
        before = out[-1] if out else None
        if before and before.axis == f.axis and before.stride == f.stride * f.size and f.size == f.whole:
            out[-1] = Factor(f.axis, f.stride, before.size * f.size, before.start * f.size, before.whole * f.size)
        else:
            out.append(f)
    return tuple(out)


def reshaped(axes: Axes, old: Sequence[int], new: Sequence[int], *, is_weight: bool = False) -> Axes:
    """The axes after a reshape; () where they are lost.

    Of a weight an axis that it shares with another, as in a Kronecker product, keeps the factors that are known.
    """
    out: list[Factors] = []
    i = j = 0
    while i < len(old) or j < len(new):  # the least groups of axes that hold equally many positions
        first, then = i, j
        m, n = (old[i] if i < len(old) else 1), (new[j] if j < len(new) else 1)
        i, j = min(i + 1, len(old)), min(j + 1, len(new))
        while m != n:
            if m < n:
                m, i = m * old[i], i + 1
            else:
                n, j = n * new[j], j + 1
        if i - first == j - then == 1:
            out.append(axes[first])
        else:
            out += _regrouped(axes[first:i], old[first:i], new[then:j], is_weight)
    return tuple(out)


def _regrouped(axes: Axes, old: Sequence[int], new: Sequence[int], is_weight: bool) -> list[Factors]:
    """The factors of the old axes, in order, dealt out to the new ones."""
    rest: list[tuple[int, Factor | None]] = []
    for factors, n in zip(axes, old, strict=True):
        rest += [(f.size, f) for f in factors] if size_of(factors) == n else [(n, None)]
    out = []
    for need in new:
        got: list[Factor | None] = []
        while need > 1 and rest:
            size, f = rest.pop(0)
            if need % size == 0:
                need //= size
            elif size % need == 0:
                f, inner = cut(f, need) if f else (None, None)
                rest.insert(0, (size // need, inner))
                need = 1
            else:
                f, rest = None, []
            got.append(f)
        known = [f for f in got if f is not None]
        is_whole = len(known) == len(got) or is_weight
        out.append(merged(known) if known and is_whole and need == 1 else ())
    return out
