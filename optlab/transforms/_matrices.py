"""The leaves of a tree as matrices: which axes are input and output, or an error that names the leaf."""

from typing import Any

import jax

from optlab.roles import MatrixAxes

DENSE = MatrixAxes((), (0,), (1,))


def matrix_leaves(who: str, updates: Any, matrix_axes: Any | None) -> list[tuple[jax.Array, MatrixAxes]]:
    """Every leaf with its axes, in the tree's order. Without `matrix_axes` every leaf has to have rank 2."""
    leaves = jax.tree_util.tree_leaves_with_path(updates)
    if matrix_axes is None:
        axes = [DENSE if x.ndim == 2 else MatrixAxes() for _, x in leaves]
    else:
        axes = jax.tree.leaves(jax.tree.map(lambda _, a: a, updates, matrix_axes))
    for (path, x), a in zip(leaves, axes, strict=True):
        if not a.is_matrix:
            raise ValueError(
                f"{who} moves matrices, and {jax.tree_util.keystr(path, simple=True, separator='/')!r} of shape "
                f"{x.shape} isn't one: let by_role route the parameters, or say which of its axes are input and "
                "output, by matrix_axes= to by_role or to update (see optlab.roles.MatrixAxes)"
            )
    return [(x, a) for (_, x), a in zip(leaves, axes, strict=True)]
