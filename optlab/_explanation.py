"""`explain`: the rule that moves each parameter, its cost and the reason, read from shapes alone."""

import dataclasses
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from optlab._integers import is_count
from optlab._messages import aligned, in_bytes
from optlab._rules import OPAQUE, Keys, Leaf, Leaves, Rule, owner, read_leaves, rules_of
from optlab.transforms.matrices import Plan
from optlab.transforms.matrices._map import Report, reported
from optlab.transforms.matrices._plan import PLATFORMS, Platform

__all__ = ["COLUMNS", "Explanation", "Row", "explain"]

FROZEN = "(frozen)"
COLUMNS = ("parameter", "shape", "role", "rule", "matrices", "state", "GFLOP")


@dataclasses.dataclass(frozen=True)
class Row:
    """A parameter.

    Attributes:
        path: its names, with slashes between them.
        shape: its shape.
        role: its role; None where neither a rule nor its name shows it.
        guess: the role that names and shapes alone show, or None. Another role was read from the program, or is an
            override.
        rule: the key of the rule that moves it; "(opaque)" where it isn't one of by_role's, "(frozen)" where its update
            is zero by construction, as `optax.set_to_zero` makes it.
        matrices: (count, fan_in, fan_out) as a function of matrices sees it, or None.
        state_bytes: of the optimizer's state for it.
        flops: of the functions of its matrices, a step, on a CPU.
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
        """True if the role isn't the one that names and shapes show."""
        return self.role != self.guess

    def cells(self) -> tuple[str, ...]:
        """As text, in the order of `COLUMNS`."""
        role = (self.role or "?") + ("*" if self.is_said else "")
        matrices = "{} of {}×{}".format(*self.matrices) if self.matrices else ""
        shape = "×".join(map(str, self.shape))
        state = in_bytes(self.state_bytes) if self.state_bytes else ""
        return self.path, shape, role, self.rule, matrices, state, _in_gflop(self.flops)


@dataclasses.dataclass(frozen=True)
class Explanation:
    """The result of `explain`: print it, or read it.

    Attributes:
        rows: the parameters by rule, the one with most work first, and within a rule in the tree's order.
        plans: of the functions of matrices, each with the rule that moves their parameters.
        state_bytes: of the whole state; some of it belongs to no parameter.
        state_bytes_per_device: the same on one device; less where the state's types show that it is sharded.
        sizes: of the mesh's axes over which functions of matrices are divided.
        untraced: why an update can't be traced from shapes, so that its functions of matrices aren't counted, or None.
    """

    rows: tuple[Row, ...]
    plans: tuple[tuple[str, Plan], ...]
    state_bytes: int
    state_bytes_per_device: int
    sizes: Mapping[str, int]
    untraced: str | None = None

    @property
    def flops(self) -> int:
        """Of all functions of matrices, a step, on a CPU; the plans know it of other platforms."""
        return sum(plan.flops for _, plan in self.plans)

    @property
    def flops_per_device(self) -> int:
        """The same for the device with most to do."""
        return self._flops_per_device("cpu")

    def _flops_per_device(self, platform: Platform) -> int:
        return sum(plan.flops_per_device(self.sizes, platform) for _, plan in self.plans)

    def _work(self) -> str:
        """Of the device with most to do; other platforms than a CPU only where they differ from it."""
        work = {platform: self._flops_per_device(platform) for platform in PLATFORMS}
        others = [f"{_in_gflop(flops)} on a {p.upper()}" for p, flops in work.items() if flops != work["cpu"]]
        on = f" on a CPU, {', '.join(others)}" if others else ""
        gflop = _in_gflop(work["cpu"]) or "no"
        return f", {gflop} GFLOP a step for functions of matrices{on}" if self.plans else ""

    def summary(self) -> str:
        """The totals by rule, what was said against the names, and the plans."""
        devices = math.prod(self.sizes.values())
        each = "One device" if devices == 1 else f"Each of {devices} devices"
        held = self.state_bytes_per_device
        parts = [
            aligned(self._totals()),
            f"{each}: {in_bytes(held) if held else 'no bytes'} of state{self._work()}.",
        ]
        if any(OPAQUE in row.rule for row in self.rows):
            parts.append(f"{OPAQUE} rules can't be seen; the roles there are inferred from names and shapes.")
        if self.untraced:
            parts.append(
                f"Functions of matrices aren't counted: an update can't be traced from shapes ({self.untraced})."
            )
        if said := [f"{row.path} ({row.guess or 'nothing'})" for row in self.rows if row.is_said]:
            parts.append(f"* Names and shapes alone would say something else: {', '.join(said)}.")
        parts += [f"The matrices of the rule {rule!r} are done by this plan:\n{plan}" for rule, plan in self.plans]
        return "\n\n".join(parts)

    def __str__(self) -> str:
        return f"{aligned([COLUMNS, *(row.cells() for row in self.rows)])}\n\n{self.summary()}"

    def _totals(self) -> list[tuple[str, ...]]:
        def total(name: str, rows: Sequence[Row], state: int) -> tuple[str, ...]:
            return (
                name,
                str(len(rows)),
                f"{sum(math.prod(row.shape) for row in rows):,}",
                in_bytes(state),
                _in_gflop(sum(row.flops for row in rows)),
                ", ".join(f"{n} {role or '?'}" for role, n in Counter(row.role for row in rows).most_common()),
            )

        def bytes_of(rows: Sequence[Row]) -> int:
            return sum(row.state_bytes for row in rows)

        rules = {
            rule: [row for row in self.rows if row.rule == rule] for rule in dict.fromkeys(r.rule for r in self.rows)
        }
        return [
            ("rule", "parameters", "numbers", "state", "GFLOP", "roles"),
            *(total(rule, rows, bytes_of(rows)) for rule, rows in rules.items()),
            ("(no parameter)", "", "", in_bytes(self.state_bytes - bytes_of(self.rows)), "", ""),
            total("all", self.rows, self.state_bytes),
        ]


def explain(
    tx: optax.GradientTransformation, params: optax.Params, *, devices: int | Mapping[str, int] = 1
) -> Explanation:
    """Reports each parameter's role, the rule of the optimizer that moves it, its state and its work.

    The state is that of `tx.init`, and the work what `optlab.transforms.matrices.on_matrices` is asked for while
    `tx.update` is traced: that of `orthogonalize`, SOAP, Shampoo and of blocks of your own. Nothing is computed. The
    rules are those of `optlab.by_role`, wherever it stands in the optimizer, and of `optax.partition`, as far as its
    state shows them. What other transforms do can't be seen: their rule is "(opaque)".

    Args:
        tx: the optimizer.
        params: the parameters, or anything of the same structure that has shapes and dtypes.
        devices: over how many devices functions of matrices are divided, or a mesh's sizes by axis, as `mesh.shape`.

    Raises:
        TypeError: for what is no transformation.
        ValueError: as `tx.init` and `tx.update` do; for less than one device.
    """
    if not hasattr(tx, "init"):
        name = getattr(tx, "__name__", repr(tx))
        raise TypeError(f"explain takes a transformation, got {name}: what makes one must be called first")
    sizes = dict(devices) if isinstance(devices, Mapping) else {"devices": devices}
    if not all(map(is_count, sizes.values())):
        raise ValueError(f"devices must be whole numbers of at least 1, or sizes by axis, mesh.shape, got {devices!r}")
    state, leaves = jax.eval_shape(tx.init, params), read_leaves(params)
    rules, (reports, frozen, untraced) = rules_of(state, leaves), _traced(tx, params, state)
    held, work = _state_bytes(state, leaves), _work(reports, leaves)
    matrices = {leaves[keys]: size for report in reports for keys, size in report.leaves if keys in leaves}
    unmoved = Rule(FROZEN, {leaves[keys]: leaves[keys].guess for keys in frozen if keys in leaves})
    rules = [unmoved, *(Rule(name, {x: r for x, r in by.items() if x not in unmoved.roles}) for name, by in rules)]
    rows = [_row(leaf, rules, matrices.get(leaf), held[leaf], work[leaf]) for leaf in leaves.values()]
    by_rule, rule_of = Counter[str](), dict(zip(leaves, (row.rule for row in rows), strict=True))
    for row in rows:
        by_rule[row.rule] += row.flops

    def movers(report: Report) -> str:
        return " and ".join(dict.fromkeys(rule_of.get(keys, OPAQUE) for keys, _ in report.leaves))

    return Explanation(
        rows=tuple(sorted(rows, key=lambda row: (-by_rule[row.rule], row.rule))),
        plans=tuple((movers(report), report.plan) for report in reports if report.leaves),
        state_bytes=held.total(),
        state_bytes_per_device=sum(_size(x, on_one_device=True) for x in jax.tree.leaves(state)),
        sizes=sizes,
        untraced=untraced,
    )


def _traced(
    tx: optax.GradientTransformation, params: Any, state: Any
) -> tuple[list[Report], frozenset[Keys], str | None]:
    """The calls of `on_matrices` in an update, whose updates are zeros, and why it can't be traced, if it can't."""

    def update(grads: Any, state: Any, params: Any) -> Any:
        def value_fn(params: Any) -> Any:
            return sum(jnp.sum(x.astype(jnp.float32)) for x in jax.tree.leaves(params))

        given = {"value": value_fn(params), "grad": grads, "value_fn": value_fn}
        return optax.with_extra_args_support(tx).update(grads, state, params, **given)

    with reported() as reports:
        try:
            program, (updates, _) = jax.make_jaxpr(update, return_shape=True)(params, state, params)
        except TypeError as error:  # an extra argument that isn't known here
            return [], frozenset(), " ".join(str(error).split())
    zeros = {
        eqn.outvars[0] for eqn in program.eqns if eqn.primitive.name == "broadcast_in_dim" and _is_zero(eqn.invars[0])
    }
    paths = [keys for keys, _ in jax.tree_util.tree_leaves_with_path(updates)]
    made = zip(paths, program.jaxpr.outvars, strict=False)  # the new state comes after the updates
    frozen = frozenset(keys for keys, out in made if _is_zero(out) or out in zeros)
    # What stands in a loop or in both branches of a cond may be traced more than once.
    return list({(report.f, report.leaves): report for report in reports}.values()), frozen, None


def _is_zero(x: Any) -> bool:
    """True for the literal 0 of a program."""
    return hasattr(x, "val") and np.ndim(x.val) == 0 and x.val == 0


def _work(reports: Sequence[Report], leaves: Leaves) -> Counter[Leaf | None]:
    """FLOPs a step, on a CPU."""
    work = Counter[Leaf | None]()
    for report in reports:
        for group, works in zip(report.plan.groups, report.plan.works, strict=True):
            for member, count in zip(group.members, group.counts, strict=True):
                work[leaves.get(report.leaves[member][0])] += count * works.cpu.flops
    return work


def _state_bytes(state: Any, leaves: Leaves) -> Counter[Leaf | None]:
    """Bytes; None's are no parameter's."""
    held = Counter[Leaf | None]()
    for keys, x in jax.tree_util.tree_leaves_with_path(state):
        held[owner(keys, x, leaves)] += _size(x)
    return held


def _size(x: jax.ShapeDtypeStruct, *, on_one_device: bool = False) -> int:
    """In bytes."""
    shape = x.sharding.shard_shape(x.shape) if on_one_device and x.sharding is not None else x.shape
    return math.prod(shape) * x.dtype.itemsize


def _row(leaf: Leaf, rules: Sequence[Rule], matrices: tuple[int, int, int] | None, state_bytes: int, flops: int) -> Row:
    mine = [rule for rule in rules if leaf in rule.roles]
    role = next((rule.roles[leaf] for rule in mine if rule.roles[leaf] != leaf.guess), leaf.guess)
    name = " + ".join(rule.name for rule in mine) or OPAQUE
    return Row(leaf.path, leaf.value.shape, role, leaf.guess, name, matrices, state_bytes, flops)


def _in_gflop(count: int) -> str:
    gflop = count / 1e9
    return "" if not count else f"{gflop:,.0f}" if gflop >= 100 else f"{gflop:.3g}"
