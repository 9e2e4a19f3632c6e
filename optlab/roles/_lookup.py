"""`layout_of`: the one way in which a block looks up the roles and matrix axes of its leaves."""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any, TypeAlias

import jax

from optlab.roles._layout import Layout, around
from optlab.roles._names import read_names

LayoutLike: TypeAlias = Layout | Callable[[Any], Layout]


def layout_of(tree: Any, extra_args: Mapping[str, Any] | None = None) -> Layout:
    """The layout of this tree's leaves, at init and at update alike.

    It is the extra argument `layout` of update, which `by_role` passes; or that of the innermost `with layout:` around;
    or else what names and shapes show, which also count for what a program doesn't use.

    Args:
        tree: the parameters or updates that the block sees.
        extra_args: those of update; None at init.

    Raises:
        LayoutError: where the layout at hand doesn't hold a leaf, or holds it in another shape.
    """
    given = (extra_args or {}).get("layout")
    given = around() if given is None else given
    return read_names(tree) if given is None else _filled(given.of(tree), tree)


def resolve(layout: LayoutLike, tree: Any) -> Layout:
    """The layout of this tree's leaves, from a layout or from a function of the tree that gives one.

    Raises:
        ValueError: where the function gives something else.
        LayoutError: as `layout_of`.
    """
    if not jax.tree.leaves(tree):
        return Layout({}, jax.tree.structure(tree))
    found = layout if isinstance(layout, Layout) else layout(tree)
    if not isinstance(found, Layout):
        raise ValueError(f"layout must give an optlab.roles.Layout of the parameters, got {found!r}")
    return _filled(found.of(tree), tree)


def _filled(layout: Layout, tree: Any) -> Layout:
    """The same with what names and shapes show of the parameters that the program doesn't use."""
    unused = [path for path, r in layout.readings.items() if r.role is None and not r.uses]
    if layout.source == "names" or not unused:
        return layout
    names = read_names(tree)
    return dataclasses.replace(layout, readings={**layout.readings, **{path: names[path] for path in unused}})


def check_layout(layout: Any) -> None:
    """Raises ValueError for what is neither a layout nor a function."""
    if not isinstance(layout, Layout) and not callable(layout):
        raise ValueError(
            "layout must be an optlab.roles.Layout, or a function of the parameters that gives one, as "
            f"optlab.roles.read_names, got {layout!r}"
        )
