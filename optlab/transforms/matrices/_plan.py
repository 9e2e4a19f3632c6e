"""The plan of a function of matrices: which are done together, how, on which platform, at what cost.

It is made of shapes and dtypes alone, so that where the matrices live changes nothing about the numbers.
"""

import dataclasses
import itertools
import math
from collections import defaultdict
from collections.abc import Callable, Hashable, Mapping, Sequence
from typing import Any, Literal, NamedTuple, TypeAlias, get_args

import jax

from optlab._messages import aligned
from optlab.transforms.matrices._divide import axes_to_divide, share

Platform: TypeAlias = Literal["cpu", "gpu", "tpu"]
PLATFORMS: tuple[Platform, ...] = get_args(Platform)


class Work(NamedTuple):
    """The way in which one matrix is computed.

    form: of the computation, in a word or two.
    steps: how many or how often, or "-".
    dtype: that it is computed in.
    flops: a multiplication and an addition being two.
    """

    form: str
    steps: str
    dtype: str
    flops: int


class Works(NamedTuple):
    """One for each platform."""

    cpu: Work
    gpu: Work
    tpu: Work


@dataclasses.dataclass(frozen=True)
class Matrices:
    """A leaf of the plan: `count` matrices of `shape` in `dtype`; leaves that are stacked have the same `kind`, too."""

    count: int
    shape: tuple[int, int]
    dtype: str
    kind: Hashable = None


@dataclasses.dataclass(frozen=True)
class Group:
    """Matrices that are stacked and done together.

    Attributes:
        shape: (m, n) of each.
        dtype: of the leaves, in which the matrices travel between devices.
        members: which leaves, by their place in the tree's order.
        counts: how many matrices each member holds.
    """

    shape: tuple[int, int]
    dtype: str
    members: tuple[int, ...]
    counts: tuple[int, ...]

    @property
    def count(self) -> int:
        """The number of matrices."""
        return sum(self.counts)

    @property
    def starts(self) -> list[int]:
        """The place in the stack at which each member's matrices begin."""
        return list(itertools.accumulate(self.counts[:-1], initial=0))


def make_groups(leaves: Sequence[Matrices]) -> tuple[Group, ...]:
    """Groups by shape, dtype and kind, in the order of their first leaf. Leaves without entries are in none."""
    members = defaultdict(list)
    for i, leaf in enumerate(leaves):
        if leaf.count and math.prod(leaf.shape):
            members[leaf.shape, leaf.dtype, leaf.kind].append(i)
    return tuple(
        Group(shape, dtype, tuple(indices), tuple(leaves[i].count for i in indices))
        for (shape, dtype, _), indices in members.items()
    )


@dataclasses.dataclass(frozen=True)
class Plan:
    """The groups, and how each is done. Print it to see."""

    groups: tuple[Group, ...]
    works: tuple[Works, ...]

    @property
    def flops(self) -> int:
        """Of all matrices, on one device, a CPU."""
        return self.flops_per_device({})

    def flops_per_device(self, sizes: Mapping[str, int], platform: Platform = "cpu") -> int:
        """Of the device with most to do, on a mesh whose axes have these sizes."""

        def mine(group: Any) -> Any:
            return share(group.count, axes_to_divide(group.count, sizes), sizes)

        each = zip(self.groups, self.works, strict=True)
        return sum(mine(group) * getattr(works, platform).flops for group, works in each)

    def __str__(self) -> str:
        rows = [("matrices", "shape", "on", "form", "steps", "computed in", "GFLOP")]
        for group, works in zip(self.groups, self.works, strict=True):
            for work in dict.fromkeys(works):
                platforms = [p for p in PLATFORMS if getattr(works, p) == work]
                on = "any" if len(platforms) == len(PLATFORMS) else ", ".join(platforms).upper()
                gflop = group.count * work.flops / 1e9
                cost = f"{gflop:.3g}" if gflop < 1e3 else f"{gflop:,.0f}"
                shape = f"{group.shape[0]}×{group.shape[1]}"
                rows.append((str(group.count), shape, on, work.form, work.steps, work.dtype, cost))
        return aligned(rows)


FACTORIZATIONS: dict[str, Callable[[int, int], int]] = {  # of m × n, m ≥ n (Golub and Van Loan 2013)
    "cholesky": lambda m, n: n**3 // 3,
    "eigh": lambda m, n: 9 * n**3,
    "qr": lambda m, n: 4 * n * n * m - 4 * n**3 // 3,
    "svd": lambda m, n: 6 * m * n * n + 20 * n**3,
}


def flops_of(jaxpr: Any) -> int:
    """Of a program's products and factorizations; a `cond` counts as its dearest branch, a `while` as one turn."""
    return sum(map(_flops_of_equation, jaxpr.eqns))


def _flops_of_equation(equation: Any) -> int:
    name, parameters = equation.primitive.name, equation.params
    inner = [getattr(x, "jaxpr", x) for x in jax.tree.leaves(list(parameters.values()))]
    if within := [flops_of(x) for x in inner if hasattr(x, "eqns")]:
        return max(within) if name == "cond" else sum(within) * parameters.get("length", 1)
    if name == "dot_general":
        (contracted, _), _ = parameters["dimension_numbers"]
        shape = equation.invars[0].aval.shape
        return 2 * math.prod(equation.outvars[0].aval.shape) * math.prod(shape[a] for a in contracted)
    if name in FACTORIZATIONS:
        *stack, m, n = equation.invars[0].aval.shape
        return math.prod(stack) * FACTORIZATIONS[name](max(m, n), min(m, n))
    return 0
