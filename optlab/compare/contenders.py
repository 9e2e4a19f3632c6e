"""A contender: an optimizer's factory, and the space that its hyperparameters are searched in."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import optax

from optlab import optimizers
from optlab.compare._errors import StudyError
from optlab.compare.points import DEFAULTS, UNKNOWN, Interval, Space
from optlab.config import is_learning_rate, nearest

SCHEDULE = "schedule."
LONGEST = 60  # characters of a name, for which a chart's legend has room


@dataclass(frozen=True)
class Contender:
    """One of those that are compared.

    Attributes:
        name: what it is called.
        factory: keyword arguments -> an optax transformation.
        space: by argument of the factory what is searched; "schedule.end" is the schedule's argument `end`.
        schedule: (peak, …) -> a function of the step, given to every learning rate; None leaves them numbers.
        steps: the length of a run, for schedules that have a length.
        before: what the gradients go through first, such as clipping.
    """

    name: str
    factory: Callable[..., optax.GradientTransformation]
    space: Space
    schedule: Callable[..., Any] | None
    steps: int
    before: optax.GradientTransformation | None = None

    def make(self, values: Mapping[str, Any]) -> optax.GradientTransformation:
        """The optimizer at one point of the space; values may be traced."""
        said = {k: v for k, v in values.items() if not k.startswith(SCHEDULE)}
        if self.schedule is not None:
            shape = {k.removeprefix(SCHEDULE): v for k, v in values.items() if k.startswith(SCHEDULE)}
            length = {"steps": self.steps} if "steps" in _open_arguments(self.schedule) else {}
            rates = {k: v for k, v in {**_fixed_rates(self.factory), **said}.items() if is_learning_rate(k)}
            said |= {k: self.schedule(v, **length, **shape) for k, v in rates.items()}
        tx = self.factory(**said)
        return tx if self.before is None else optax.chain(self.before, tx)

    @property
    def middle(self) -> dict[str, Any]:
        """The point in the middle of the space."""
        return {name: found.at(0.5) for name, found in self.space.items()}


def contend(
    name: str,
    what: Any,
    *,
    space: Space | None,
    schedule: Callable[..., Any] | None,
    steps: int,
    before: optax.GradientTransformation | None = None,
) -> Contender:
    """A contender from a factory or the name of one, with the default space where none is given.

    Raises:
        StudyError: for a name that no trial can have, a factory that there isn't, an argument that it doesn't take,
            one that it needs and the space doesn't have, and whatever it raises at the middle of the space.
    """
    if not name or not isinstance(name, str) or set("/\\\0\n") & set(name) or len(name) > LONGEST:
        raise StudyError(f"a contender's name must be at most {LONGEST} characters without slashes, got {name!r}")
    if isinstance(what, str) and what not in optimizers.__all__:
        raise StudyError(f"unknown optimizer {what!r}; {nearest(what, optimizers.__all__)} (any other: its factory)")
    factory = getattr(optimizers, what) if isinstance(what, str) else what
    if not callable(factory):
        raise StudyError(
            f"contender {name!r} must be an optimizer's factory or its name, got {type(what).__name__}: give "
            "lambda learning_rate: …, so that it can be tuned"
        )
    if not (space is None or isinstance(space, Mapping)):
        raise StudyError(
            f"the space of {name!r} must be a dict by argument, such as {{'learning_rate': log_uniform(1e-4, 1e-1)}}, "
            f"got {space}"
        )
    space = dict(_default(name, factory) if space is None else space)
    _check_space(name, factory, schedule, space)
    made = Contender(name, factory, space, schedule, steps, before)
    try:
        tx = made.make(made.middle)
    except Exception as error:  # whatever a user's factory raises
        raise StudyError(f"contender {name!r} can't be made at {_said(made.middle)}: {error}") from error
    if not (hasattr(tx, "init") and hasattr(tx, "update")):
        raise StudyError(f"contender {name!r} must make an optax.GradientTransformation, got {type(tx).__name__}")
    return made


def origin(factory: Callable[..., Any]) -> str:
    """The name under which a factory was defined, through `functools.partial`."""
    while isinstance(factory, functools.partial):
        factory = factory.func
    return getattr(factory, "__name__", type(factory).__name__)


def is_ours(factory: Callable[..., Any]) -> bool:
    """Whether it is one of `optlab.optimizers`, through `functools.partial`: others may have the same name."""
    module = getattr(inspect.unwrap(_function(factory)), "__module__", None) or ""  # what exec defines has none
    return module.startswith("optlab.optimizers")


def _default(name: str, factory: Callable[..., Any]) -> Space:
    open_ = _open_arguments(factory)
    default = DEFAULTS.get(origin(factory)) if is_ours(factory) else None
    found = {k: v for k, v in (UNKNOWN if default is None else default).items() if k in open_}
    if not found and any(p.default is p.empty for p in open_.values()):
        raise StudyError(
            f"contender {name!r} has no learning_rate to search: say its space, "
            f'spaces={{{name!r}: {{"…": log_uniform(1e-4, 1e-1)}}}}'
        )
    return found


def _check_space(name: str, factory: Callable[..., Any], schedule: Callable[..., Any] | None, space: Space) -> None:
    known = _open_arguments(factory)
    shape = {} if schedule is None else _open_arguments(schedule)
    shape = {SCHEDULE + k: p for k, p in list(shape.items())[1:] if k != "steps"}
    takes_any = any(p.kind is p.VAR_KEYWORD for p in known.values())
    fixed = factory.keywords if isinstance(factory, functools.partial) else {}
    for argument, found in space.items():
        if argument in fixed:
            raise StudyError(
                f"{argument} of {name!r} is searched, and set to {fixed[argument]!r} as well: say one of them"
            )
        if argument not in {**known, **shape} and not (takes_any and not argument.startswith(SCHEDULE)):
            raise StudyError(
                f"the space of {name!r} has an argument {argument!r}, which {origin(factory)} doesn't take; "
                f"{nearest(argument, [*known, *shape])}"
            )
        if not hasattr(found, "at"):
            raise StudyError(
                f"the space of {name!r} must say log_uniform(low, high), uniform(low, high) or choice(…) for "
                f"{argument}, got {found!r}"
            )
        if is_learning_rate(argument) and isinstance(found, Interval) and found.low < 0:
            raise StudyError(f"the space of {name!r} must have a {argument} of at least 0, got {found}")
    for argument, p in known.items():
        is_needed = p.default is p.empty and p.kind not in (p.VAR_KEYWORD, p.VAR_POSITIONAL)
        if is_needed and argument not in space:
            raise StudyError(f"contender {name!r} needs {argument}: say it in its space, or by functools.partial")


def _function(factory: Callable[..., Any]) -> Callable[..., Any]:
    while isinstance(factory, functools.partial):
        factory = factory.func
    return factory


def _open_arguments(factory: Callable[..., Any]) -> dict[str, inspect.Parameter]:
    """The arguments that a factory still takes: those that a partial has set are no longer open."""
    try:
        found = inspect.signature(factory).parameters
    except (TypeError, ValueError) as error:
        raise StudyError(f"{factory!r} must be a function with a signature") from error
    fixed = factory.keywords if isinstance(factory, functools.partial) else {}
    return {n: p for n, p in found.items() if n not in fixed}


def _fixed_rates(factory: Callable[..., Any]) -> dict[str, Any]:
    """Learning rates that a partial has set to numbers: the schedule shapes them as well."""
    fixed = factory.keywords if isinstance(factory, functools.partial) else {}
    return {k: v for k, v in fixed.items() if is_learning_rate(k) and isinstance(v, int | float)}


def _said(values: Mapping[str, Any]) -> str:
    return (
        ", ".join(f"{k}={v:.3g}" if isinstance(v, float) else f"{k}={v}" for k, v in values.items()) or "no arguments"
    )
