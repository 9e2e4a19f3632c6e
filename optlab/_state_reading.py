"""What an optimizer's state shows: which rule moves which parameter, and which of its arrays belong to whom."""

import dataclasses
from typing import Any, NamedTuple, TypeAlias

import jax
import optax

from optlab import _telling
from optlab._parameters import read
from optlab.roles import ByRoleState, MatrixAxes
from optlab.transforms.matrices._orthogonalize import OrthogonalizeState
from optlab.transforms.matrices._plan import Settings

OPAQUE = "(opaque)"
Keys: TypeAlias = tuple[Any, ...]  # the way to a leaf of a tree


@dataclasses.dataclass(frozen=True, eq=False)
class Leaf:
    """A parameter, and the role that names and shapes alone tell."""

    path: str
    value: jax.ShapeDtypeStruct
    guess: str | None


Members: TypeAlias = dict[Leaf, tuple[str | None, MatrixAxes]]


class Rule(NamedTuple):
    """What moves some of the parameters.

    members: the parameters, with the role and axes that by_role says, or that are guessed.
    settings: of the orthogonalizations in it.
    is_known: whether these are given the members along these axes.
    """

    name: str
    members: Members
    settings: list[Settings]
    is_known: bool


def read_leaves(params: Any) -> dict[Keys, Leaf]:
    """The parameters in the tree's order."""
    parameters = read(params)
    shapes = jax.tree_util.tree_leaves_with_path(jax.eval_shape(lambda tree: tree, params))
    told = zip(shapes, parameters, _telling.roles(parameters), strict=True)
    return {keys: Leaf(p.path, x, guess) for (keys, x), p, guess in told}


def owner(keys: Keys, x: jax.ShapeDtypeStruct, leaves: dict[Keys, Leaf]) -> Leaf | None:
    """The parameter that a leaf of the state belongs to: the way to it ends in the way to the parameter.

    Every way ends in that to a bare array, so there the shape has to be the same too.
    """
    bare = leaves.get(())
    if bare is not None:
        return bare if bare.value.shape == x.shape else None
    return next((leaves[keys[i:]] for i in range(len(keys)) if keys[i:] in leaves), None)


def rules_of(state: Any, leaves: dict[Keys, Leaf]) -> list[Rule]:
    """The rules that a state shows: those of `by_role`, and those of `optax.partition`, which is opaque; or one for
    all. What orthogonalizes outside of these rules is one without members."""
    rules, loose = _routed(state, leaves), _settings(state)
    if not rules:
        # What `optax.masked` keeps from it can't be told.
        return [_guessed(OPAQUE, list(leaves.values()), state, is_whole=not _outermost(state, optax.MaskedState))]
    return [*rules, Rule(OPAQUE, {}, loose, is_known=False)] if loose else rules


def _routed(state: Any, leaves: dict[Keys, Leaf], above: str = "") -> list[Rule]:
    """Where a by_role or a partition stands in a rule of another, its rules are taken instead; what else orthogonalizes
    in that rule isn't known, nor in a partition's rule whose state shows no parameter."""
    found = []
    for node in _outermost(state, (ByRoleState, optax.PartitionState)):
        by_role = node if isinstance(node, ByRoleState) else None
        partition = by_role.rules if by_role else node
        for key, inner in partition.inner_states.items():
            within = _routed(inner, leaves, f"{above}{key}/")
            if by_role:
                rule = Rule(f"{above}{key}", _told(by_role, key, leaves), _settings(inner), is_known=not within)
            else:
                owned = {owner(keys, x, leaves) for keys, x in jax.tree_util.tree_leaves_with_path(inner)}
                mine = [leaf for leaf in leaves.values() if leaf in owned]
                rule = _guessed(f"{above}{key} {OPAQUE}", mine, inner, is_whole=bool(mine) and not within)
            for leaf in {leaf for other in within for leaf in other.members} & rule.members.keys():
                del rule.members[leaf]
            found += [r for r in (rule, *within) if r.members or (r.settings and not r.is_known)]
    return found


def _told(state: ByRoleState, key: str, leaves: dict[Keys, Leaf]) -> Members:
    by_path = {leaf.path: leaf for leaf in leaves.values()}
    rows = zip(state.labels.rows, state.labels.axes, strict=True)
    mine = {path: (role, MatrixAxes(*axes)) for (path, role, its_key), axes in rows if its_key == key}
    return {by_path[path]: what for path, what in mine.items() if path in by_path}


def _guessed(name: str, leaves: list[Leaf], state: Any, *, is_whole: bool) -> Rule:
    """Without by_role, orthogonalize takes leaves of rank 2 and no others."""
    axes = [MatrixAxes((), (0,), (1,)) if leaf.value.ndim == 2 else MatrixAxes() for leaf in leaves]
    members: Members = {leaf: (leaf.guess, a) for leaf, a in zip(leaves, axes, strict=True)}
    return Rule(name, members, _settings(state), is_whole and all(a.is_matrix for a in axes))


def _settings(state: Any) -> list[Settings]:
    """Of the orthogonalizations in a state that stand in no rule further inside."""
    nodes = _outermost(state, (ByRoleState, optax.PartitionState, OrthogonalizeState))
    return [node.note.settings for node in nodes if isinstance(node, OrthogonalizeState)]


def _outermost(tree: Any, kinds: Any) -> list[Any]:
    is_one = lambda x: isinstance(x, kinds)
    return [x for x in jax.tree.leaves(tree, is_leaf=is_one) if is_one(x)]
