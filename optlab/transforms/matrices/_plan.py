"""The plan of an orthogonalization: which matrices are done together, in what form and dtype, at what cost.

It is made of shapes, dtypes and settings alone, so that where the matrices live changes nothing about the numbers.
"""

import dataclasses
import itertools
from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp

from optlab.transforms.matrices._divide import axes_to_divide, share
from optlab.transforms.matrices._newton_schulz import Coefficients, flops, restarts


class Settings(NamedTuple):
    """What `orthogonalize` was asked for; its arguments say what each means.

    coefficients: of the quintics, one triple a step; empty for an SVD.
    dtype: the name of the working dtype, or None for at least float32.
    """

    method: str
    coefficients: Coefficients
    eps: float
    dtype: str | None
    precision: str

    @property
    def is_exact(self) -> bool:
        """Whether products are good enough for the Gram form, which TF32 and 16 bits make unstable."""
        return self.precision == "highest" and self.dtype in (None, "float32")


@dataclasses.dataclass(frozen=True)
class Matrices:
    """What a leaf is to the plan: `count` matrices of (fan_in, fan_out), and the leaf's dtype."""

    count: int
    fan_in: int
    fan_out: int
    dtype: str


@dataclasses.dataclass(frozen=True)
class Group:
    """Matrices that are stacked and done together.

    Attributes:
        shape: (m, n) with m ≤ n; taller ones are transposed.
        dtype: of the leaves, in which the matrices travel between devices.
        working_dtype: of the products.
        form: "standard", "gram" or "svd".
        chunks: steps between the Gram form's restarts; its sum is the number of steps.
        members: which leaves, by their place in the tree's order.
        counts: how many matrices each member holds.
        flops: of one matrix.
    """

    shape: tuple[int, int]
    dtype: str
    working_dtype: str
    form: str
    chunks: tuple[int, ...]
    members: tuple[int, ...]
    counts: tuple[int, ...]
    flops: int

    @property
    def count(self) -> int:
        """How many matrices."""
        return sum(self.counts)

    @property
    def starts(self) -> list[int]:
        """Where each member's matrices begin in the stack."""
        return list(itertools.accumulate(self.counts[:-1], initial=0))


@dataclasses.dataclass(frozen=True)
class Plan:
    """The groups in the order of their first leaf. Print it to see what is done."""

    groups: tuple[Group, ...]

    @property
    def flops(self) -> int:
        """Of all matrices, on one device."""
        return sum(group.count * group.flops for group in self.groups)

    def flops_per_device(self, sizes: Mapping[str, int]) -> int:
        """Of the device with most to do, on a mesh whose axes have these sizes."""
        return sum(share(g.count, axes_to_divide(g.count, sizes), sizes) * g.flops for g in self.groups)

    def __str__(self) -> str:
        rows = [("matrices", "shape", "form", "steps", "computed in", "GFLOP")]
        for g in self.groups:
            steps = "+".join(map(str, g.chunks)) if g.form != "svd" else "-"
            work = f"{g.count * g.flops / 1e9:.3g}" if g.count * g.flops < 1e12 else f"{g.count * g.flops / 1e9:,.0f}"
            rows.append((str(g.count), f"{g.shape[0]}×{g.shape[1]}", g.form, steps, g.working_dtype, work))
        widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
        lines = ["  ".join(cell.ljust(w) for cell, w in zip(row, widths, strict=True)).rstrip() for row in rows]
        return "\n".join(lines)


def make_plan(leaves: Sequence[Matrices], settings: Settings) -> Plan:
    """Groups by shape, a matrix and its transpose being the same, and by dtype. Leaves without entries are in none."""
    members = defaultdict(list)
    for i, leaf in enumerate(leaves):
        shape = (min(leaf.fan_in, leaf.fan_out), max(leaf.fan_in, leaf.fan_out))
        if leaf.count:
            members[shape, leaf.dtype].append(i)
    return Plan(
        tuple(
            _group(shape, dtype, tuple(indices), tuple(leaves[i].count for i in indices), settings)
            for (shape, dtype), indices in members.items()
        )
    )


def _group(
    shape: tuple[int, int], dtype: str, members: tuple[int, ...], counts: tuple[int, ...], settings: Settings
) -> Group:
    working = settings.dtype or str(jnp.promote_types(dtype, jnp.float32))
    chunks: tuple[int, ...] = (len(settings.coefficients),)
    form = "svd" if settings.method == "svd" else "standard"
    if form == "standard" and settings.is_exact:
        restarted = restarts(len(settings.coefficients))
        if flops(shape, restarted, "gram") < flops(shape, chunks, form):
            form, chunks = "gram", restarted
    return Group(shape, dtype, working, form, chunks, members, counts, flops(shape, chunks, form))


@jax.tree_util.register_static
class Note(NamedTuple):
    """Settings as a pytree node without leaves: to be read from a state, and never used from there.

    Notes are equal, whatever they say: a state restored or made under other settings is the same kind of state.
    """

    settings: Settings

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Note)

    def __ne__(self, other: object) -> bool:
        return not self == other

    def __hash__(self) -> int:
        return hash(Note)
