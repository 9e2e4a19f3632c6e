"""How leaves are matrices while transforms are initialized: optax's init takes the parameters and nothing else.

A rule under `by_role` sees its own parameters only, and these alone don't always tell which axes count layers. So
`by_role`, which sees all, lays what it found beside the call.
"""

import contextlib
from collections.abc import Iterator
from contextvars import ContextVar
from typing import Any

import jax

_told: ContextVar[dict[Any, Any] | None] = ContextVar("matrix axes by path", default=None)


@contextlib.contextmanager
def tell_axes(axes: Any) -> Iterator[None]:
    """Within, `axes_told` answers from this tree of the matrix axes."""
    token = _told.set(dict(jax.tree_util.tree_leaves_with_path(axes)))
    try:
        yield
    finally:
        _told.reset(token)


def axes_told(params: Any) -> Any | None:
    """A tree like `params` of what `by_role` told, or None outside of one."""
    by_path = _told.get()
    return None if by_path is None else jax.tree_util.tree_map_with_path(lambda path, _: by_path[path], params)
