"""Learning rates of an optimizer, for a log of them: named by its blocks as their state is made, or found."""

from __future__ import annotations

import contextlib
import functools
import inspect
from collections.abc import Callable, Iterator, Mapping
from contextvars import ContextVar
from typing import Any

_heard: ContextVar[list[Any] | None] = ContextVar("_heard", default=None)


@contextlib.contextmanager
def listening() -> Iterator[list[Any]]:
    """Collects the learning rates of the blocks whose `init` runs inside: numbers, and functions of the step."""
    found: list[Any] = []
    token = _heard.set(found)
    try:
        yield found
    finally:
        _heard.reset(token)


def name_rate(rate: Any) -> None:
    """Adds a learning rate for whoever listens. A traced one, as of `optax.inject_hyperparams`, is in the state."""
    found = _heard.get()
    is_static = callable(rate) or (isinstance(rate, int | float) and not isinstance(rate, bool))
    if found is not None and is_static and rate not in found:
        found.append(rate)


def optax_schedules(update: Callable[..., Any]) -> list[Callable[[Any], Any]]:
    """Finds the schedules of `optax.scale_by_learning_rate` in an update function, in the order of its chain.

    optax keeps them in the closures of its functions alone. Where a version of it doesn't, there are none. Those of
    optlab's own block are left out: it names its rate.
    """
    found: list[Callable[[Any], Any]] = []
    seen: set[Any] = set()

    def visit(x: Any) -> None:
        if isinstance(x, tuple | list):
            for part in x:
                visit(part)
        elif isinstance(x, Mapping):
            visit(list(x.values()))
        elif isinstance(x, functools.partial):
            visit([x.func, *x.args, *x.keywords.values()])
        elif inspect.isfunction(x) and x not in seen and x.__module__ != "optlab.transforms._learning_rate":
            seen.add(x)
            held = dict(zip(x.__code__.co_freevars, map(_content, x.__closure__ or ()), strict=True))
            is_scale = x.__module__.startswith("optax.") and x.__qualname__.startswith("scale_by_learning_rate.")
            if is_scale and callable(held.get("learning_rate")):
                found.append(held["learning_rate"])
            else:
                visit(list(held.values()))

    visit(update)
    return found


def _content(cell: Any) -> Any:
    try:
        return cell.cell_contents
    except ValueError:  # a name that isn't bound yet
        return None
