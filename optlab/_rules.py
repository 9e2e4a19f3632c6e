"""The rules of an optimizer, the parameters that each moves, and the owner of each array of its state."""

import dataclasses
from collections.abc import Mapping
from typing import Any, NamedTuple, TypeAlias

import jax
import optax

from optlab.roles import ByRoleState, read_names

OPAQUE = "(opaque)"
Keys: TypeAlias = tuple[Any, ...]  # the way to a leaf of a tree


@dataclasses.dataclass(frozen=True, eq=False)
class Leaf:
    """A parameter, and the role that names and shapes alone show."""

    path: str
    value: jax.ShapeDtypeStruct
    guess: str | None


Leaves: TypeAlias = Mapping[Keys, Leaf]


class Rule(NamedTuple):
    """A rule, and the parameters that it moves with their roles, by by_role or by their names."""

    name: str
    roles: Mapping[Leaf, str | None]


def read_leaves(params: Any) -> dict[Keys, Leaf]:
    """The parameters in the tree's order."""
    shapes = jax.tree_util.tree_leaves_with_path(jax.eval_shape(lambda tree: tree, params))
    readings = read_names(params).readings.items()
    return {keys: Leaf(path, x, r.role) for (keys, x), (path, r) in zip(shapes, readings, strict=True)}


def rules_of(state: Any, leaves: Leaves, above: str = "") -> list[Rule]:
    """The rules that a state shows: those of `by_role`, and those of `optax.partition`, which are opaque.

    Where a by_role or a partition stands in a rule of another, its rules are taken instead.
    """
    found, by_path = [], {leaf.path: leaf for leaf in leaves.values()}
    for node in _outermost(state, (ByRoleState, optax.PartitionState)):
        by_role = node if isinstance(node, ByRoleState) else None
        for key, inner in (by_role.rules if by_role else node).inner_states.items():
            within = rules_of(inner, leaves, f"{above}{key}/")
            if by_role:
                said = {
                    by_path[path]: role for path, role, its in by_role.labels.rows if its == key and path in by_path
                }
                rule = Rule(f"{above}{key}", said)
            else:
                owners = [owner(keys, x, leaves) for keys, x in jax.tree_util.tree_leaves_with_path(inner)]
                rule = Rule(f"{above}{key} {OPAQUE}", {leaf: leaf.guess for leaf in owners if leaf})
            taken = {leaf for other in within for leaf in other.roles}
            rule = rule._replace(roles={leaf: role for leaf, role in rule.roles.items() if leaf not in taken})
            found += [r for r in (rule, *within) if r.roles]
    return found


def _outermost(tree: Any, kinds: Any) -> list[Any]:
    is_one = lambda x: isinstance(x, kinds)
    return [x for x in jax.tree.leaves(tree, is_leaf=is_one) if is_one(x)]


def owner(keys: Keys, x: jax.ShapeDtypeStruct, leaves: Leaves) -> Leaf | None:
    """The parameter that a leaf of the state belongs to: the way to it ends in the way to the parameter.

    Every way ends in that to a bare array, so there the shape has to be the same too.
    """
    bare = leaves.get(())
    if bare is not None:
        return bare if bare.value.shape == x.shape else None
    return next((leaves[keys[i:]] for i in range(len(keys)) if keys[i:] in leaves), None)
