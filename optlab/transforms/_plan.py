"""The plan of an orthogonalization: which matrices are done together, in what form and dtype, at what cost.

It is made of shapes, dtypes and settings alone, so that where the matrices live changes nothing about the numbers.
"""

import dataclasses
import itertools
from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Literal, NamedTuple, TypeAlias, get_args

import jax.numpy as jnp

from optlab.transforms._divide import axes_to_divide, share
from optlab.transforms._newton_schulz import GRAM_STEPS, Coefficients, Recipe, Recipes, flops, restarts

Platform: TypeAlias = Literal["cpu", "gpu", "tpu"]
PLATFORMS: tuple[Platform, ...] = get_args(Platform)


class Settings(NamedTuple):
    """What `orthogonalize` was asked for; its arguments say what each means.

    coefficients: of the quintics, one triple a step; empty for an SVD.
    dtype: the name of the working dtype, or None.
    precision: of the products, or None. Where both are None, the platform decides.
    """

    method: str
    coefficients: Coefficients
    eps: float
    dtype: str | None
    precision: str | None


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
        recipes: how they are computed, on each platform.
        members: which leaves, by their place in the tree's order.
        counts: how many matrices each member holds.
    """

    shape: tuple[int, int]
    dtype: str
    recipes: Recipes
    members: tuple[int, ...]
    counts: tuple[int, ...]

    @property
    def count(self) -> int:
        """How many matrices."""
        return sum(self.counts)

    @property
    def flops(self) -> int:
        """Of one matrix, on a CPU."""
        return self.flops_on("cpu")

    def flops_on(self, platform: Platform) -> int:
        """Of one matrix, on that platform."""
        recipe: Recipe = getattr(self.recipes, platform)
        return flops(self.shape, recipe.chunks, recipe.form)

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
        """Of all matrices, on one device, a CPU."""
        return self.flops_per_device({})

    def flops_per_device(self, sizes: Mapping[str, int], platform: Platform = "cpu") -> int:
        """Of the device with most to do, on a mesh whose axes have these sizes."""
        return sum(share(g.count, axes_to_divide(g.count, sizes), sizes) * g.flops_on(platform) for g in self.groups)

    def __str__(self) -> str:
        head = ("matrices", "shape", "on", "form", "steps", "computed in", "GFLOP")
        rows = [head, *(row for group in self.groups for row in _rows(group))]
        widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
        lines = ["  ".join(cell.ljust(w) for cell, w in zip(row, widths, strict=True)).rstrip() for row in rows]
        return "\n".join(lines)


def _rows(group: Group) -> list[tuple[str, ...]]:
    """A row for each of the group's recipes, with the platforms that it is for."""
    rows: list[tuple[str, ...]] = []
    for recipe in dict.fromkeys(group.recipes):
        platforms = [p for p in PLATFORMS if getattr(group.recipes, p) == recipe]
        on = "any" if len(platforms) == len(PLATFORMS) else ", ".join(platforms).upper()
        gflop = group.count * group.flops_on(platforms[0]) / 1e9
        steps = "+".join(map(str, recipe.chunks)) if recipe.form != "svd" else "-"
        work = f"{gflop:.3g}" if gflop < 1e3 else f"{gflop:,.0f}"
        shape = f"{group.shape[0]}×{group.shape[1]}"
        rows.append((str(group.count), shape, on, recipe.form, steps, _computed_in(recipe), work))
    return rows


def _computed_in(recipe: Recipe) -> str:
    """The dtype, and the precision where it makes of float32 something else."""
    return (
        recipe.dtype
        if recipe.precision == "highest" or is_half(recipe.dtype)
        else f"{recipe.dtype}, {recipe.precision}"
    )


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
    return Group(shape, dtype, _recipes(shape, dtype, settings), members, counts)


def _recipes(shape: tuple[int, int], dtype: str, settings: Settings) -> Recipes:
    """The platforms differ only where neither dtype nor precision was asked for, and the leaves aren't float64."""
    wide, steps = str(jnp.promote_types(dtype, jnp.float32)), len(settings.coefficients)
    if settings.method == "svd":
        return Recipes(*3 * (Recipe("svd", (steps,), wide, "highest"),))
    if settings.dtype is None and settings.precision is None and wide == "float32":
        cpu, half = _cheapest(shape, steps, "float32", "highest"), Recipe("standard", (steps,), "bfloat16", "default")
        # A TPU multiplies in bfloat16 alone; a GPU as fast in float16, which has the bits that the Gram form needs.
        gram = _cheapest(shape, steps, "float16", "default")
        return Recipes(cpu, gram if gram.form == "gram" else half, half)
    working = settings.dtype or wide
    precision = settings.precision or ("default" if is_half(working) else "highest")
    return Recipes(*3 * (_cheapest(shape, steps, working, precision),))


def _cheapest(shape: tuple[int, int], steps: int, dtype: str, precision: str) -> Recipe:
    """In the Gram form where that is less work and the products are exact enough; TF32's aren't on every platform."""
    standard = Recipe("standard", (steps,), dtype, precision)
    if dtype not in GRAM_STEPS or (precision != "highest" and dtype != "float16"):
        return standard
    gram = Recipe("gram", restarts(steps, GRAM_STEPS[dtype]), dtype, precision)
    return gram if flops(shape, gram.chunks, "gram") < flops(shape, standard.chunks, "standard") else standard


def is_half(dtype: str) -> bool:
    """Whether a floating-point dtype has 16 bits."""
    return dtype in ("bfloat16", "float16")
