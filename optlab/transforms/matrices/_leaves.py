"""The leaves of a tree as matrices: which axes are input and output, or an error that names the leaf."""

from typing import Any

import jax
import jax.numpy as jnp

from optlab.roles import MatrixAxes

DENSE = MatrixAxes((), (0,), (1,))


def matrix_leaves(who: str, updates: Any, extra_args: Any = None) -> list[tuple[jax.Array, MatrixAxes]]:
    """Every leaf with its axes, in the tree's order. Without `matrix_axes` every leaf has to have rank 2."""
    from optlab._axes_at_init import axes_told

    matrix_axes = (extra_args or {}).get("matrix_axes") if extra_args is not None else axes_told(updates)
    leaves = jax.tree_util.tree_leaves_with_path(updates)
    if matrix_axes is None:
        axes = [DENSE if x.ndim == 2 else MatrixAxes() for _, x in leaves]
    else:
        axes = jax.tree.leaves(jax.tree.map(lambda _, a: a, updates, matrix_axes))
    for (path, x), a in zip(leaves, axes, strict=True):
        if not a.is_matrix:
            raise ValueError(
                f"{who} moves matrices, and {_name(path)!r} of shape "
                f"{x.shape} isn't one: let by_role route the parameters, or say which of its axes are input and "
                "output, by matrix_axes= to by_role or to update (see optlab.roles.MatrixAxes)"
            )
    return [(x, a) for (_, x), a in zip(leaves, axes, strict=True)]


def check_real(who: str, updates: Any) -> None:
    """Refuses complex leaves, whose transposed would have to be conjugated."""
    for path, x in jax.tree_util.tree_leaves_with_path(updates):
        if jnp.issubdtype(x.dtype, jnp.complexfloating):
            raise ValueError(
                f"{who} needs real matrices, and {_name(path)!r} is {x.dtype}: take method='svd', which can do it, or "
                "let another rule move it"
            )


def _name(path: Any) -> str:
    return jax.tree_util.keystr(path, simple=True, separator="/")
