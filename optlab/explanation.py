"""`explain`: what an optimizer does with each parameter, what that costs, and why, read from shapes alone."""

import dataclasses
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import optax

from optlab._checks import is_count
from optlab._state_reading import OPAQUE, Leaf, Rule, owner, read_leaves, rules_of
from optlab.transforms._orthogonalize import plan_of
from optlab.transforms._plan import PLATFORMS, Plan, Platform, Settings

__all__ = ["COLUMNS", "Explanation", "Row", "explain"]

COLUMNS = ("parameter", "shape", "role", "rule", "matrices", "state", "GFLOP")


@dataclasses.dataclass(frozen=True)
class Row:
    """A parameter.

    Attributes:
        path: its names, with slashes between them.
        shape: its shape.
        role: what it is; None where no rule says it and nothing tells.
        guess: what names and shapes alone tell, or None: a role that differs was said by overrides, or by roles of
            one's own.
        rule: the key of the rule that moves it; "(opaque)" where it isn't one of by_role's.
        matrices: (count, fan_in, fan_out) as it is orthogonalized, or None.
        state_bytes: of the optimizer's state for it.
        flops: of its orthogonalization, a step, on a CPU.
    """

    path: str
    shape: tuple[int, ...]
    role: str | None
    guess: str | None
    rule: str
    matrices: tuple[int, int, int] | None
    state_bytes: int
    flops: int

    @property
    def is_said(self) -> bool:
        """Whether the role was said against what names and shapes tell."""
        return self.role != self.guess

    def cells(self) -> tuple[str, ...]:
        """As text, in the order of `COLUMNS`."""
        role = (self.role or "?") + ("*" if self.is_said else "")
        matrices = "{} of {}×{}".format(*self.matrices) if self.matrices else ""
        shape = "×".join(map(str, self.shape))
        return self.path, shape, role, self.rule, matrices, _in_bytes(self.state_bytes), _in_gflop(self.flops)


@dataclasses.dataclass(frozen=True)
class Explanation:
    """What `explain` found: print it, or read it.

    Attributes:
        rows: the parameters by rule, the one with most work first, and within a rule in the tree's order.
        plans: of the orthogonalizations, each with its rule.
        state_bytes: of the whole state; some of it belongs to no parameter.
        state_bytes_per_device: the same on one device; less where the state's types show that it is sharded.
        sizes: of the mesh's axes over which orthogonalizations are divided.
        is_whole: False if there is an orthogonalization that isn't counted, as nothing shows what it is given.
    """

    rows: tuple[Row, ...]
    plans: tuple[tuple[str, Plan], ...]
    state_bytes: int
    state_bytes_per_device: int
    sizes: Mapping[str, int]
    is_whole: bool

    @property
    def flops(self) -> int:
        """Of all orthogonalizations, a step, on a CPU; the plans know it of other platforms."""
        return sum(plan.flops for _, plan in self.plans)

    @property
    def flops_per_device(self) -> int:
        """The same for the device with most to do."""
        return self._flops_per_device("cpu")

    def _flops_per_device(self, platform: Platform) -> int:
        return sum(plan.flops_per_device(self.sizes, platform) for _, plan in self.plans)

    def _work(self) -> str:
        """What the device with most to do orthogonalizes; other platforms than a CPU only where they differ from it."""
        work = {platform: self._flops_per_device(platform) for platform in PLATFORMS}
        others = [f"{_in_gflop(flops)} on a {p.upper()}" for p, flops in work.items() if flops != work["cpu"]]
        on = f" on a CPU, {', '.join(others)}" if others else ""
        return f", {_in_gflop(work['cpu'])} GFLOP a step to orthogonalize{on}" if self.plans else ""

    def summary(self) -> str:
        """The totals by rule, what was said against the names, and the plans."""
        devices = math.prod(self.sizes.values())
        each = "One device" if devices == 1 else f"Each of {devices} devices"
        parts = [
            _aligned(self._totals()),
            f"{each}: {_in_bytes(self.state_bytes_per_device) or 'no bytes'} of state{self._work()}.",
        ]
        if any(OPAQUE in row.rule for row in self.rows):
            parts.append(f"What {OPAQUE} rules do can't be seen; the roles there are what names and shapes tell.")
        if not self.is_whole:
            parts.append("There is an orthogonalization that isn't counted: nothing shows what it is given.")
        if said := [f"{row.path} ({row.guess or 'nothing'})" for row in self.rows if row.is_said]:
            parts.append(f"* said, where names and shapes tell something else: {', '.join(said)}.")
        parts += [f"The rule {rule!r} orthogonalizes by this plan:\n{plan}" for rule, plan in self.plans]
        return "\n\n".join(parts)

    def __str__(self) -> str:
        return f"{_aligned([COLUMNS, *(row.cells() for row in self.rows)])}\n\n{self.summary()}"

    def _totals(self) -> list[tuple[str, ...]]:
        total = lambda name, rows, state: (
            name,
            str(len(rows)),
            f"{sum(math.prod(row.shape) for row in rows):,}",
            _in_bytes(state),
            _in_gflop(sum(row.flops for row in rows)),
            ", ".join(f"{n} {role or '?'}" for role, n in Counter(row.role for row in rows).most_common()),
        )
        bytes_of = lambda rows: sum(row.state_bytes for row in rows)
        rules = {
            rule: [row for row in self.rows if row.rule == rule] for rule in dict.fromkeys(r.rule for r in self.rows)
        }
        return [
            ("rule", "parameters", "numbers", "state", "GFLOP", "roles"),
            *(total(rule, rows, bytes_of(rows)) for rule, rows in rules.items()),
            ("(no parameter)", "", "", _in_bytes(self.state_bytes - bytes_of(self.rows)), "", ""),
            total("all", self.rows, self.state_bytes),
        ]


def explain(
    tx: optax.GradientTransformation, params: optax.Params, *, devices: int | Mapping[str, int] = 1
) -> Explanation:
    """What each parameter is, which rule of the optimizer moves it, how much state it needs, and how much work.

    Read from the state that `tx.init` would make; nothing is computed. The rules are those of `optlab.by_role`,
    wherever it stands in the optimizer, and of `optax.partition`, as far as its state shows them. What other transforms
    do can't be seen: their rule is "(opaque)".

    Args:
        tx: the optimizer.
        params: the parameters, or anything of the same structure that has shapes and dtypes.
        devices: over how many devices the orthogonalizations are divided, or a mesh's sizes by axis, as `mesh.shape`.

    Raises:
        TypeError: for what is no transformation.
        ValueError: as `tx.init` does; where a rule orthogonalizes what is no matrix; for less than one device.
    """
    if not hasattr(tx, "init"):
        name = getattr(tx, "__name__", repr(tx))
        raise TypeError(f"explain takes a transformation, got {name}: what makes one must be called first")
    sizes = dict(devices) if isinstance(devices, Mapping) else {"devices": devices}
    if not all(map(is_count, sizes.values())):
        raise ValueError(f"devices must be whole numbers of at least 1, or sizes by axis, mesh.shape, got {devices!r}")
    state, leaves = jax.eval_shape(tx.init, params), read_leaves(params)
    rules = rules_of(state, leaves)
    plans = [(rule, _plan(rule, settings)) for rule in rules for settings in rule.settings if rule.is_known]
    held, work = _state_bytes(state, leaves), _work(plans)
    rows = [_row(leaf, [rule for rule in rules if leaf in rule.members], held, work) for leaf in leaves.values()]
    by_rule = Counter[str]()
    for row in rows:
        by_rule[row.rule] += row.flops
    return Explanation(
        rows=tuple(sorted(rows, key=lambda row: (-by_rule[row.rule], row.rule))),
        plans=tuple((rule.name, plan) for rule, plan in plans),
        state_bytes=held.total(),
        state_bytes_per_device=sum(_size(x, on_one_device=True) for x in jax.tree.leaves(state)),
        sizes=sizes,
        is_whole=all(rule.is_known or not rule.settings for rule in rules),
    )


def _plan(rule: Rule, settings: Settings) -> Plan:
    for leaf, (_, axes) in rule.members.items():
        if not axes.is_matrix:
            raise ValueError(
                f"the rule {rule.name!r} orthogonalizes {leaf.path!r} of shape {leaf.value.shape}, which isn't a "
                "matrix: give it another role, or say its axes by matrix_axes= to by_role"
            )
    return plan_of([leaf.value for leaf in rule.members], [axes for _, axes in rule.members.values()], settings)


def _work(plans: Sequence[tuple[Rule, Plan]]) -> Counter[Leaf]:
    """FLOPs a step."""
    work = Counter[Leaf]()
    for rule, plan in plans:
        leaves = list(rule.members)
        for group in plan.groups:
            for member, count in zip(group.members, group.counts, strict=True):
                work[leaves[member]] += count * group.flops
    return work


def _state_bytes(state: Any, leaves: dict[Any, Leaf]) -> Counter[Leaf | None]:
    """Bytes; None's are no parameter's."""
    held = Counter[Leaf | None]()
    for keys, x in jax.tree_util.tree_leaves_with_path(state):
        held[owner(keys, x, leaves)] += _size(x)
    return held


def _size(x: jax.ShapeDtypeStruct, *, on_one_device: bool = False) -> int:
    """In bytes."""
    shape = x.sharding.shard_shape(x.shape) if on_one_device and x.sharding is not None else x.shape
    return math.prod(shape) * x.dtype.itemsize


def _row(leaf: Leaf, rules: Sequence[Rule], held: Counter[Leaf | None], work: Counter[Leaf]) -> Row:
    said, matrices = [rule.members[leaf][0] for rule in rules], None
    if work[leaf]:
        axes = next(rule.members[leaf][1] for rule in rules if rule.settings and rule.is_known)
        fans = axes.fans(leaf.value.shape)
        matrices = (leaf.value.size // math.prod(fans), *fans)
    role = next((role for role in said if role != leaf.guess), leaf.guess)
    name = " + ".join(rule.name for rule in rules) or OPAQUE
    return Row(leaf.path, leaf.value.shape, role, leaf.guess, name, matrices, held[leaf], work[leaf])


def _aligned(rows: Sequence[tuple[str, ...]]) -> str:
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = ["  ".join(cell.ljust(w) for cell, w in zip(row, widths, strict=True)).rstrip() for row in rows]
    return "\n".join(lines)


def _in_bytes(count: int) -> str:
    for power, unit in ((3, "GB"), (2, "MB"), (1, "kB")):
        if count >= 1000**power:
            return f"{count / 1000**power:.1f} {unit}"
    return f"{count} B" if count else ""


def _in_gflop(count: int) -> str:
    gflop = count / 1e9
    return "" if not count else f"{gflop:,.0f}" if gflop >= 100 else f"{gflop:.3g}"
