"""`by_role`: which rule moves which parameter."""

import dataclasses
import sys
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

import jax
import optax

from optlab._messages import closest
from optlab._trees import matched
from optlab.roles._axes import MatrixAxes
from optlab.roles._layout import ROLES, Layout, LayoutError, Reading
from optlab.roles._lookup import LayoutLike, check_layout, layout_of, resolve

KNOWN = (*ROLES, "input", "default")


@dataclasses.dataclass(frozen=True)
class Labels:
    """The decisions of `by_role` when a state was made, to be read, as by `print(state.labels)`. They decide nothing.

    A pytree node without leaves, so it passes through jit, `jax.eval_shape` and checkpoints; a state with other labels
    is another kind of state.

    Attributes:
        rows: (path, role, key of the rule) of every parameter, in the tree's order.
        axes: its `MatrixAxes`, as plain tuples.
    """

    rows: tuple[tuple[str, str, str], ...]
    axes: tuple[tuple[tuple[int, ...], ...], ...] = ()

    def __str__(self) -> str:
        return "\n".join(f"{path}: {role}, moved by {rule!r}" for path, role, rule in self.rows)


class _Any:
    """Stands for the labels in a state without parameters, which `optax.tree_map_params` holds against a real one."""

    def __eq__(self, other: object) -> bool:
        return True

    def __hash__(self) -> int:
        return 0


_UNDECIDED = Labels((("", "", ""),))
jax.tree_util.register_pytree_node(
    Labels, lambda x: ((), _Any() if x is _UNDECIDED else x), lambda x, _: x if isinstance(x, Labels) else _UNDECIDED
)


class ByRoleState(NamedTuple):
    """labels: what was decided, to be read by `print(state.labels)`. rules: the rules' states by key."""

    labels: Labels
    rules: optax.PartitionState


def by_role(
    rules: Mapping[str, optax.GradientTransformation], layout: LayoutLike | None = None
) -> optax.GradientTransformationExtraArgs:
    """Moves each parameter by the rule of its role, as `optax.partition` does; the rule "default" moves the rest.

    A rule sees its own parameters only. So the layout is found on the whole tree here, and given to the rules: at init
    as by `with layout:`, at update as the extra argument `layout` too. A rule that is a `by_role` itself, as `muon` is,
    has it from here, unless it has a `layout` of its own.

    Args:
        rules: a transform for each role, "default" for the roles that aren't named, and "input", if that is wanted, for
            the matrices and convolutions that no other product lies before (only a program shows these).
        layout: what each parameter is: a `Layout`, as `optlab.roles.read_program` makes from the program, or a function
            of the parameters that gives one. None is `optlab.roles.layout_of`: the layout around, or what names show.

    Raises:
        ValueError: here if a rule's key is no role and there is no `layout` of your own; at init if it isn't among its
            roles either, or a parameter has no rule or no role; at update if the state was made under another layout.
    """
    if layout is None:
        check_roles("by_role", rules, KNOWN)
    else:
        check_layout(layout)

    def find(tree: Any, extra_args: Mapping[str, Any]) -> tuple[Layout, Labels, optax.GradientTransformationExtraArgs]:
        found = layout_of(tree, extra_args) if layout is None else resolve(layout, tree)
        labels = _label(found, rules)
        keys = jax.tree.unflatten(found.structure, [key for _, _, key in labels.rows])
        partition = optax.partition(rules, lambda _: keys, mask_compatible_extra_args=True)  # keys may be callable
        return _within(found), labels, partition

    def init_fn(params: optax.Params) -> ByRoleState:
        _register_with_flax()
        within, labels, partition = find(params, {})
        with within:
            inner = partition.init(params)
        is_placeholder = type(params).__name__ == "_ParamsPlaceholder"  # of optax.tree_map_params
        return ByRoleState(_UNDECIDED if is_placeholder else labels, inner)

    def update_fn(
        updates: optax.Updates, state: ByRoleState, params: optax.Params | None = None, **extra_args: Any
    ) -> tuple[optax.Updates, ByRoleState]:
        params = matched(updates, params)
        within, labels, partition = find(updates, extra_args)
        if state.labels is not _UNDECIDED:  # which optax.tree_map_params leaves behind
            _check_made_under(state.labels, labels)
            labels = state.labels
        with within:  # for rules in wrappers that drop extra arguments
            updates, inner = partition.update(updates, state.rules, params, **{**extra_args, "layout": within})
        return updates, ByRoleState(labels, inner)

    return optax.GradientTransformationExtraArgs(init_fn, update_fn)


def check_roles(what: str, names: Iterable[str], known: tuple[str, ...] = ROLES) -> None:
    """Raises ValueError if one of the names is not among the known ones, and names the nearest.

    Args:
        what: who asks, the start of the message.
        names: the names to be checked.
        known: the names that there are.
    """
    for name in names:
        if name not in known:
            near = closest(str(name), known)
            raise ValueError(f"{what} knows no role {name!r}: did you mean {near!r}? Known: {', '.join(known)}")


def _label(layout: Layout, rules: Mapping[str, Any]) -> Labels:
    layout.check_known("by_role")
    found = [reading.role or "" for reading in layout.readings.values()]
    if found:
        check_roles("by_role", rules, tuple(dict.fromkeys([*found, *KNOWN])))
        check_roles("by_role", found, tuple(dict.fromkeys([*rules, *ROLES])))
    rows = tuple((path, r.role or "", _key(r, rules)) for path, r in layout.readings.items())
    for path, role, key in rows:
        if key not in rules:
            raise ValueError(f"by_role has no rule that moves {path!r}: add one for its role {role!r}, or a 'default'")
    return Labels(rows, tuple(dataclasses.astuple(r.axes) for r in layout.readings.values()))


def _key(reading: Reading, rules: Mapping[str, Any]) -> str:
    if "input" in rules and reading.is_input and reading.role in ("matrix", "conv"):
        return "input"
    if reading.role == "conv" and not reading.axes.is_matrix and "default" in rules:
        return "default"  # a depthwise convolution
    return reading.role if reading.role and reading.role in rules else "default"


def _within(layout: Layout) -> Layout:
    """The layout for the rules: in place of a role of one's own the inferred one, which a by_role inside needs."""

    def plain(r: Reading) -> Reading:
        return r if r.role in ROLES else dataclasses.replace(r, role=r.found)

    return dataclasses.replace(layout, readings={path: plain(r) for path, r in layout.readings.items()})


def _check_made_under(old: Labels, new: Labels) -> None:
    """Refuses a state that was made under another layout, or for other parameters, and names one that differs."""
    if old == new:
        return
    was, now = ({row[0]: (*row[1:], axes) for row, axes in zip(x.rows, x.axes, strict=True)} for x in (old, new))
    if was == now:  # in another order
        return
    if absent := [path for path in was if path not in now]:
        raise LayoutError(f"the state was made for {absent[0]!r} too, and the updates have no such leaf")
    if added := [path for path in now if path not in was]:
        raise LayoutError(f"the updates have a leaf {added[0]!r}, and the state was made without it")
    path = next(path for path in was if was[path] != now[path])

    def say(what: Any) -> str:
        return f"{what[0]!r} moved by {what[1]!r}, as a matrix {MatrixAxes(*what[2])}"

    raise LayoutError(
        f"the state was made under another layout: {path!r} was {say(was[path])}, and now is {say(now[path])}. "
        "Make it with the same layout (by_role's own, or that of `with layout:` around), or call init anew"
    )


def _register_with_flax() -> None:
    """Flax serializes states by exact type. What was decided isn't saved: a restored state has its target's labels."""
    if flax := sys.modules.get("flax.serialization"):
        flax.register_serialization_state(Labels, lambda _: {}, lambda labels, _: labels, override=True)
