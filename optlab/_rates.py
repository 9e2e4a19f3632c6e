"""Settings of an optimizer that its state lacks: rates that blocks name, and what closures hold of rates and of β."""

from __future__ import annotations

import contextlib
import functools
import inspect
import math
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
    return [
        held["learning_rate"]
        for function, held in _within(update, without="optlab.transforms._learning_rate")
        if function.__module__.startswith("optax.")
        and function.__qualname__.startswith("scale_by_learning_rate.")
        and callable(held.get("learning_rate"))
    ]


def is_scaled(update: Callable[..., Any]) -> bool:
    """True if a block of optax's in an update function multiplies by a number that isn't 1 or −1, or by a schedule."""
    return any(
        function.__module__.startswith("optax.")
        and (callable(held.get("step_size_fn")) or abs(_number(held.get("step_size"))) != 1)
        for function, held in _within(update)
        if "step_size" in held or "step_size_fn" in held
    )


def _number(x: Any) -> float:
    return float(x) if isinstance(x, int | float) else math.nan


def adam_settings(update: Callable[..., Any]) -> list[dict[str, Any]]:
    """Finds β₁, β₂ and the bias correction of every `scale_by_adam`, optlab's and optax's, in an update function."""
    return [
        {"b1": held["b1"], "b2": held["b2"], "bias_correction": held.get("bias_correction", True)}
        for function, held in _within(update)
        if function.__module__.startswith(("optlab.transforms.", "optax."))
        and function.__qualname__ == "scale_by_adam.<locals>.update_fn"
        and all(isinstance(held.get(name), int | float) for name in ("b1", "b2"))
    ]


def _within(update: Any, without: str = "") -> list[tuple[Any, dict[str, Any]]]:
    """The functions in the closures of a function, itself first, and what each closure holds by name."""
    found: list[tuple[Any, dict[str, Any]]] = []
    seen: set[Any] = set()

    def visit(x: Any) -> None:
        if isinstance(x, tuple | list):
            for part in x:
                visit(part)
        elif isinstance(x, Mapping):
            visit(list(x.values()))
        elif isinstance(x, functools.partial):
            visit([x.func, *x.args, *x.keywords.values()])
        elif inspect.isfunction(x) and x not in seen and x.__module__ != without:
            seen.add(x)
            held = dict(zip(x.__code__.co_freevars, map(_content, x.__closure__ or ()), strict=True))
            found.append((x, held))
            visit(list(held.values()))

    visit(update)
    return found


def _content(cell: Any) -> Any:
    try:
        return cell.cell_contents
    except ValueError:  # a name that isn't bound yet
        return None
