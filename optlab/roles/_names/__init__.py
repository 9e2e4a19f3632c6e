"""The fallback where no program is at hand: roles and matrix axes from names and shapes."""

import functools
from collections.abc import Mapping
from typing import Any

import jax

from optlab.roles._axes import MatrixAxes
from optlab.roles._layout import Layout, Override, Reading
from optlab.roles._names._heads import roles as infer_roles
from optlab.roles._names._matrices import axes as infer_axes
from optlab.roles._names._matrices import by_head
from optlab.roles._names._parameter import Parameter
from optlab.roles._names._tree import Leaves, read
from optlab.roles._paths import matches, paths_of


def read_names(
    params: Any,
    overrides: Mapping[str, Override] | None = None,
    *,
    per_head: bool = False,
    head_width: int | None = None,
) -> Layout:
    """The layout that names and shapes show.

    Args:
        params: the parameters, or anything of the same structure that has shapes.
        overrides: as in `Layout.override`.
        per_head: whether each head's query, key, value and output projection is a matrix of its own.
        head_width: with `per_head`, the width of a head in kernels (width, heads·head width), which don't show it.

    Raises:
        ValueError: for an override that matches no parameter; with `per_head`, where heads can't be inferred.
    """
    if head_width is not None and not per_head:
        raise ValueError(f"head_width is for per_head=True, got head_width={head_width} alone")
    leaves = tuple((path, names, tuple(getattr(x, "shape", ()))) for path, (names, x) in paths_of(params).items())
    given = matches(overrides or {}, [path for path, _, _ in leaves])
    readings = {}
    for p, role in _inferred(leaves):
        over, axes = given.get(p.path), p.axes
        if isinstance(over, MatrixAxes | tuple):
            axes = MatrixAxes()  # which by_head might refuse to find
        elif per_head:
            axes = by_head(p, head_width)
        reading = Reading(tuple(p.shape), role, axes, found=role)
        readings[p.path] = reading if over is None else reading.overridden(p.path, over)
    return Layout(readings, jax.tree.structure(params), "names")


@functools.lru_cache(maxsize=64)
def _inferred(leaves: Leaves) -> tuple[tuple[Parameter, str | None], ...]:
    """Every parameter with its axes, and its role. Cached: every block asks for it at init and at each trace."""
    parameters = read(leaves)
    for p in parameters:
        p.axes = infer_axes(p)
    return tuple(zip(parameters, infer_roles(parameters), strict=True))


def roles(params: Any, overrides: Mapping[str, Override] | None = None) -> Any:
    """The role of every parameter by names and shapes: a tree like `params` of the names in `ROLES`.

    Args:
        params: the parameters, or anything of the same structure that has shapes.
        overrides: as in `Layout.override`.

    Raises:
        LayoutError: where names and shapes leave a role open; it names the parameter and the way out.
    """
    layout = read_names(params, overrides)
    layout.check_known("roles")
    return layout.roles


def matrix_axes(
    params: Any,
    overrides: Mapping[str, Override] | None = None,
    *,
    per_head: bool = False,
    head_width: int | None = None,
) -> Any:
    """The matrix axes of every parameter by names and shapes: a tree like `params` of `MatrixAxes`, empty for the rest.

    The arguments and errors are those of `read_names`.
    """
    return read_names(params, overrides, per_head=per_head, head_width=head_width).matrix_axes
