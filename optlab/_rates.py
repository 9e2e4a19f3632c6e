"""Learning rates that an optimizer's blocks name while its state is made, for a log of them."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
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
