"""How leaves are matrices, and their roles, while transforms are initialized: optax's init takes parameters alone.

A rule under `by_role` sees its own parameters only, and these don't always tell which axes count layers, or which
kernel is the head. So `by_role`, which sees all, lays what it found beside the call.
"""

import contextlib
from collections.abc import Iterator
from contextvars import ContextVar
from typing import Any

import jax

_told: ContextVar[dict[Any, tuple[str | None, Any]] | None] = ContextVar("(role, axes) by path", default=None)


@contextlib.contextmanager
def tell(roles: list[str | None], axes: Any) -> Iterator[None]:
    """Within, `axes_told` and `roles_told` answer from this tree of the matrix axes and the roles of its leaves."""
    paths = jax.tree_util.tree_leaves_with_path(axes)
    token = _told.set({path: (role, a) for role, (path, a) in zip(roles, paths, strict=True)})
    try:
        yield
    finally:
        _told.reset(token)


def axes_told(params: Any) -> Any | None:
    """A tree like `params` of what `by_role` told, or None outside of one."""
    by_path = _told.get()
    return None if by_path is None else jax.tree_util.tree_map_with_path(lambda path, _: by_path[path][1], params)


def roles_told(params: Any) -> list[str | None] | None:
    """The roles of the leaves, None where one can't be told; or None outside of a `by_role`."""
    by_path = _told.get()
    return None if by_path is None else [by_path[path][0] for path, _ in jax.tree_util.tree_leaves_with_path(params)]
