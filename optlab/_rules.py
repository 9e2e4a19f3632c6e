"""Rules of an optimizer, read from its state: which rule moves which parameter, and whose its arrays are."""

import dataclasses
from collections.abc import Mapping
from typing import Any, NamedTuple, TypeAlias

import jax
import optax

from optlab.roles import ByRoleState, read_names

OPAQUE = "(opaque)"
Keys: TypeAlias = tuple[Any, ...]  # path to a leaf of a tree


@dataclasses.dataclass(frozen=True, eq=False)
class Leaf:
    """A parameter, with the role that its name and shape alone suggest."""

    path: str
    value: jax.ShapeDtypeStruct
    guess: str | None


Leaves: TypeAlias = Mapping[Keys, Leaf]


class Rule(NamedTuple):
    """A rule, and the parameters that it moves with their roles, by by_role or else by names."""

    name: str
    roles: Mapping[Leaf, str | None]


def read_leaves(params: Any) -> dict[Keys, Leaf]:
    """Lists the parameters in the tree's order."""
    shapes = jax.tree_util.tree_leaves_with_path(jax.eval_shape(lambda tree: tree, params))
    named = zip(shapes, read_names(params).readings.items(), strict=True)
    return {keys: Leaf(path, x, reading.role) for (keys, x), (path, reading) in named}


def rules_of(state: Any, leaves: Leaves, above: str = "") -> list[Rule]:
    """Finds the rules in a state: those of `by_role`, and those of `optax.partition`, which are opaque.

    The rules of a by_role or a partition inside a rule replace that rule.
    """
    found, by_path = [], {leaf.path: leaf for leaf in leaves.values()}
    for node in _outermost(state, (ByRoleState, optax.PartitionState)):
        by_role = node if isinstance(node, ByRoleState) else None
        for key, inner in (by_role.rules if by_role else node).inner_states.items():
            within = rules_of(inner, leaves, f"{above}{key}/")
            if by_role:
                rows = by_role.labels.rows
                roles = {by_path[path]: role for path, role, moves in rows if moves == key and path in by_path}
                rule = Rule(f"{above}{key}", roles)
            else:
                owners = [owner(keys, x, leaves) for keys, x in jax.tree_util.tree_leaves_with_path(inner)]
                rule = Rule(f"{above}{key} {OPAQUE}", {leaf: leaf.guess for leaf in owners if leaf})
            taken = {leaf for other in within for leaf in other.roles}
            rule = rule._replace(roles={leaf: role for leaf, role in rule.roles.items() if leaf not in taken})
            found += [r for r in (rule, *within) if r.roles]
    return found


def _outermost(tree: Any, kinds: Any) -> list[Any]:
    leaves = jax.tree.leaves(tree, is_leaf=lambda x: isinstance(x, kinds))
    return [x for x in leaves if isinstance(x, kinds)]


def owner(keys: Keys, x: jax.ShapeDtypeStruct, leaves: Leaves) -> Leaf | None:
    """Finds the parameter that a leaf of the state belongs to: its path ends in the parameter's path.

    Every path ends in that of a bare array, which is empty, so there the shape must agree too.
    """
    bare = leaves.get(())
    if bare is not None:
        return bare if bare.value.shape == x.shape else None
    return next((leaves[keys[i:]] for i in range(len(keys)) if keys[i:] in leaves), None)
