"""Pairs of trees, one of which lacks leaves that the other has; names, shapes and norms of leaves."""

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


def largest(tree: Any) -> jax.Array:
    """The largest size of a number in a tree, in at least float32; 1 where that is 0 or not finite.

    Numbers divided by it have squares that neither vanish nor overflow. In derivatives it is a constant.
    """
    sizes = [jnp.max(jnp.abs(x)).astype(jnp.promote_types(x.real.dtype, jnp.float32)) for x in _filled(tree)]
    size = jnp.max(jnp.stack(sizes)) if sizes else jnp.ones(())
    return jax.lax.stop_gradient(jnp.where((size > 0) & jnp.isfinite(size), size, 1))


def norm(tree: Any) -> jax.Array:
    """‖tree‖₂ in at least float32, also where the squares vanish or overflow; its derivative at 0 is 0."""
    size = largest(tree)
    parts = [part / size for x in _filled(tree) for part in ((x.real, x.imag) if jnp.iscomplexobj(x) else (x,))]
    square = sum((jnp.sum(jnp.square(x)) for x in parts), jnp.zeros((), size.dtype))
    return size * jnp.where(square == 0, 0, jnp.sqrt(jnp.where(square == 0, 1, square)))


def _filled(tree: Any) -> list[jax.Array]:
    return [x for x in jax.tree.leaves(tree) if x.size]
