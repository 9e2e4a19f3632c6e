"""The leaves of a tree as matrices: which axes are input and output, or an error that names the leaf."""

from collections.abc import Mapping
from typing import Any

import jax

from optlab._trees import complex_leaf
from optlab.roles import MatrixAxes, layout_of


def matrix_leaves(
    who: str, tree: Any, extra_args: Mapping[str, Any] | None = None
) -> list[tuple[jax.Array, MatrixAxes]]:
    """Every leaf with its axes by `layout_of`, in the tree's order.

    Raises:
        ValueError: for a leaf that is no matrix; it names the leaf.
    """
    layout = layout_of(tree, extra_args)
    for path, reading in layout.readings.items():
        if not reading.axes.is_matrix:
            raise ValueError(
                f"{who} moves matrices, and {path!r} of shape {reading.shape} isn't one: let by_role route the "
                f"parameters; or say its axes, by layout.override({{{path!r}: optlab.roles.MatrixAxes(stack, input, "
                "output)}), with layout= to by_role or to update, or `with layout:` around init and update"
            )
    return [(x, r.axes) for x, r in zip(jax.tree.leaves(tree), layout.readings.values(), strict=True)]


def check_real(who: str, updates: Any, way_out: str = "") -> None:
    """Refuses complex leaves, whose transposed would have to be conjugated; the way out is the block's own."""
    if found := complex_leaf(updates):
        name, dtype = found
        raise ValueError(f"{who} needs real matrices, and {name!r} is {dtype}: {way_out}let another rule move it")
