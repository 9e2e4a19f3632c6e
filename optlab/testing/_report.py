"""What the checks found: names, failures with their likely cause, and a table to be printed."""

import dataclasses
from collections.abc import Callable
from typing import Any, TypeAlias

Check: TypeAlias = Callable[[Any], None]


class Skipped(Exception):  # noqa: N818  # no error: it says why there is nothing to check
    """A check that doesn't apply here. The message is the reason."""


@dataclasses.dataclass(frozen=True)
class Failure:
    """A check that failed: its name, what was seen, and what the cause is likely to be."""

    check: str
    seen: str
    cause: str

    def __str__(self) -> str:
        return f"{self.check}: {self.seen}\n    likely: {self.cause}"


@dataclasses.dataclass(frozen=True)
class Report:
    """What `check_transform` found. `print(report)` shows it."""

    name: str
    passed: tuple[str, ...]
    failed: tuple[Failure, ...]
    skipped: dict[str, str]

    @property
    def failures(self) -> dict[str, Failure]:
        """The failures by the name of their check."""
        return {failure.check: failure for failure in self.failed}

    def __str__(self) -> str:
        head = f"{self.name}: {len(self.passed)} passed, {len(self.failed)} failed, {len(self.skipped)} skipped"
        failed = [f"  failed {failure}" for failure in self.failed]
        skipped = [f"  skipped {check}: {reason}" for check, reason in self.skipped.items()]
        return "\n".join([head, *failed, *skipped])


class ContractError(AssertionError):
    """A transform breaks the contract. `report` holds all that was found; the message lists the failures."""

    def __init__(self, report: Report):
        super().__init__(str(report))
        self.report = report


CHECKS: dict[str, Check] = {}
CAUSES: dict[str, str] = {}
LAWS = ("weight_decay", "bias_correction")  # checks of what only some transforms claim


def check(cause: str) -> Callable[[Check], Check]:
    """Registers a function of a `Case` under its own name.

    Args:
        cause: what is likely to be wrong in a transform that fails it, and the way out.
    """

    def register(function: Check) -> Check:
        CHECKS[function.__name__] = function
        CAUSES[function.__name__] = cause
        return function

    return register


def require(holds: Any, seen: str) -> None:
    """Raises AssertionError with what was seen, unless it holds (unlike `assert`, under `python -O` too)."""
    if not holds:
        raise AssertionError(seen)
