"""Search spaces, and the points that a study draws from them. The standard library alone until points are drawn."""

from __future__ import annotations

import hashlib
import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

from optlab.compare._errors import StudyError

Design: TypeAlias = Literal["sobol", "grid"]
EDGE = 1 / 4  # of an interval, at either end: of four points Sobol's sequence has one in there


@dataclass(frozen=True)
class Interval:
    """The numbers between two bounds, drawn evenly, or evenly in their logarithm. See `uniform` and `log_uniform`."""

    low: float
    high: float
    is_log: bool

    def __post_init__(self) -> None:
        name = "log_uniform" if self.is_log else "uniform"
        if not all(_is_number(x) for x in (self.low, self.high)):
            raise StudyError(f"{name} must have finite numbers as bounds, got {self.low!r} and {self.high!r}")
        if not self.low < self.high:
            raise StudyError(f"{name} must have the lower bound first, got {self.low!r} and {self.high!r}")
        if self.is_log and not self.low > 0:
            raise StudyError(f"log_uniform must have positive bounds, got {self.low!r}: say uniform(low, high)")

    def at(self, u: float) -> float:
        """The value at a share u of the way, in [0, 1]."""
        if self.is_log:
            return float(math.exp(math.log(self.low) + u * (math.log(self.high) - math.log(self.low))))
        return float(self.low + u * (self.high - self.low))

    def share(self, value: float) -> float:
        """The share of the way at which a value lies: the inverse of `at`."""
        scale = math.log if self.is_log else float
        return (scale(value) - scale(self.low)) / (scale(self.high) - scale(self.low))

    def __str__(self) -> str:
        return f"{'log_uniform' if self.is_log else 'uniform'}({self.low:g}, {self.high:g})"


@dataclass(frozen=True)
class Choice:
    """One of a few values. See `choice`."""

    values: tuple[Any, ...]

    def __post_init__(self) -> None:
        if not self.values:
            raise StudyError("choice must have at least one value, got none")
        if len(set(map(repr, self.values))) < len(self.values):
            raise StudyError(f"choice must have different values, got {', '.join(map(repr, self.values))}")
        for value in self.values:
            if not isinstance(value, bool | int | float | str | None):
                raise StudyError(f"choice must have numbers, strings, true, false or none, got {value!r}")
            if isinstance(value, float) and not math.isfinite(value):
                raise StudyError(f"choice must have finite numbers, got {value!r}: say none, or a large one")

    def at(self, u: float) -> Any:
        """The value at a share u of the list, in [0, 1]."""
        return self.values[min(int(u * len(self.values)), len(self.values) - 1)]

    @property
    def is_traced(self) -> bool:
        """Whether one program trains all of its values: they are numbers with a decimal point."""
        return all(isinstance(v, float) for v in self.values)

    def share(self, value: Any) -> float:
        """The share of the list at which a value stands: 0 for the first one, 1 for the last."""
        return self.values.index(value) / max(1, len(self.values) - 1)

    def __str__(self) -> str:
        return f"choice({', '.join(map(repr, self.values))})"


Space: TypeAlias = Mapping[str, Interval | Choice]


def log_uniform(low: float, high: float) -> Interval:
    """Numbers whose logarithm is drawn evenly between the bounds', both positive: for learning rates and decays."""
    return Interval(low, high, is_log=True)


def uniform(low: float, high: float) -> Interval:
    """Numbers drawn evenly between the bounds."""
    return Interval(low, high, is_log=False)


def choice(*values: Any) -> Choice:
    """One of the values. Numbers with a decimal point can be trained in one population, all others compile apart."""
    return Choice(values)


def draw(space: Space, trials: int, *, design: Design = "sobol", seed: int = 0) -> list[dict[str, Any]]:
    """The points of one study, by the hyperparameters' names.

    Args:
        space: what is searched.
        trials: how many points; of a power of two Sobol's sequence keeps its low discrepancy. More trials begin with
            the same points. A grid has as many as it has.
        design: "sobol" is scrambled by the seed, "grid" is every combination of choices.
        seed: of the scrambling.
    """
    names = list(space)
    if design == "grid":
        return [dict(zip(names, values, strict=True)) for values in itertools.product(*map(_values, space.values()))]
    if not names:
        return [{} for _ in range(trials)]
    from scipy.stats import qmc

    units = qmc.Sobol(len(names), scramble=True, rng=seed).random_base2((trials - 1).bit_length())[:trials]
    return [{n: space[n].at(float(u)) for n, u in zip(names, row, strict=True)} for row in units]


def check_design(name: str, space: Space, trials: int | None, design: Design) -> int:
    """The number of trials in a study of this contender.

    Raises:
        StudyError: for too few of them, a number that isn't a power of two, or a grid of intervals.
    """
    if design == "grid":
        if intervals := [key for key, found in space.items() if not isinstance(found, Choice)]:
            raise StudyError(f"design=grid needs choices, got {space[intervals[0]]} for {name}'s {intervals[0]}")
        size = math.prod(len(_values(found)) for found in space.values())
        if trials is not None and trials != size:
            raise StudyError(f"trials must be {size} for {name}'s grid, got {trials}: leave trials out")
        return size
    trials = 8 if trials is None else trials
    if trials < 1 or trials & (trials - 1):
        raise StudyError(f"trials must be a power of two, which Sobol's points are made for, got {trials}")
    if trials < len(space) + 1:
        raise StudyError(
            f"trials must be at least {len(space) + 1} for the {len(space)} hyperparameters of {name} "
            f"({', '.join(space)}), got {trials}"
        )
    return trials


def at_edge(space: Space, points: Sequence[Mapping[str, Any]], best: Mapping[str, Any]) -> dict[str, str]:
    """The hyperparameters whose best value lies at an edge of the space, as {name: "low" or "high"}.

    It is the lowest or the highest that was tried, and of an interval in its outer quarter: of two points each is an
    outermost one, wherever it lies. A choice has edges if its values are numbers, and more than two.
    """
    found = {}
    for name, searched in space.items():
        tried = {p[name] for p in points}
        share = searched.share(best[name]) if isinstance(searched, Interval) else None
        if len(tried) < (2 if share is not None else 3) or not all(_is_number(v) for v in tried):
            continue
        if best[name] == min(tried) and (share is None or share <= EDGE):
            found[name] = "low"
        elif best[name] == max(tried) and (share is None or share >= 1 - EDGE):
            found[name] = "high"
    return found


def seed_of(*words: Any) -> int:
    """A seed in [0, 2³¹) for what the words name: the same in every process, another for every name."""
    digest = hashlib.blake2b("\0".join(map(str, words)).encode(), digest_size=4).digest()
    return int.from_bytes(digest) >> 1


def _values(found: Interval | Choice) -> tuple[Any, ...]:
    return found.values if isinstance(found, Choice) else ()


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


# Where the learning rate of our optimizers is looked for: about two decades to either side of what is usual. Two
# optimizers whose rates mean the same have the same space.
_ADAPTIVE = {"learning_rate": log_uniform(1e-4, 1e-1)}
_SIGN = {"learning_rate": log_uniform(1e-5, 1e-2)}
DEFAULTS: dict[str, Space] = {
    "sgd": {"learning_rate": log_uniform(1e-3, 1e1)},
    "adagrad": {"learning_rate": log_uniform(1e-3, 1e0)},
    **dict.fromkeys(("lion", "signsgd", "signum"), _SIGN),
    **dict.fromkeys(("adam", "adam_l2", "adamw", "nadam", "rmsprop", "softsign_sgd"), _ADAPTIVE),
    **dict.fromkeys(("adamuon", "muon", "muonh", "normuon", "shampoo", "soap"), _ADAPTIVE),
}
# Of any other factory with a learning rate.
UNKNOWN: Space = {"learning_rate": log_uniform(1e-5, 1e0)}
