"""Pairs of trees, one of which lacks leaves that the other has; names and shapes of leaves."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax


def is_absent(x: Any) -> bool:
    """Returns whether x takes the place of a leaf that another tree has."""
    return x is None or isinstance(x, optax.MaskedNode)


def matched(updates: Any, tree: Any) -> Any:
    """Restricts a tree to the leaves of the updates: where these have None or a MaskedNode, it may have any subtree.

    So the parameters may be a whole model, with functions and keys that have no gradient. None stays None.
    """
    if tree is None:
        return None
    leaves, structure = jax.tree.flatten(updates, is_leaf=is_absent)
    beside = jax.tree_util.PyTreeDef.flatten_up_to(structure, tree)
    return jax.tree.unflatten(structure, [u if is_absent(u) else x for u, x in zip(leaves, beside, strict=True)])


def complex_leaf(tree: Any) -> tuple[str, Any] | None:
    """Returns name and dtype of the first complex leaf, or None."""
    for path, x in jax.tree_util.tree_leaves_with_path(tree):
        if jnp.issubdtype(dtype := jnp.result_type(x), jnp.complexfloating):
            return jax.tree_util.keystr(path, simple=True, separator="/"), dtype
    return None


def shapes_of(tree: Any) -> Any:
    """The tree with a `jax.ShapeDtypeStruct` in place of every leaf."""
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(np.shape(x), jnp.result_type(x)), tree)
