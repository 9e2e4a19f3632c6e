"""Report of the checks, the failures with their likely cause, and the registry of checks."""

import dataclasses
from collections.abc import Callable
from typing import Any, TypeAlias

Check: TypeAlias = Callable[[Any], None]


class Skipped(Exception):  # noqa: N818  # not an error
    """Raised by a check that doesn't apply. The message is the reason."""


@dataclasses.dataclass(frozen=True)
class Failure:
    """A failed check: its name, the observation, and the likely cause."""

    check: str
    seen: str
    cause: str

    def __str__(self) -> str:
        return f"{self.check}: {self.seen}\n    likely: {self.cause}"


@dataclasses.dataclass(frozen=True)
class Report:
    """Result of `check_transform`. `print(report)` shows it."""

    name: str
    passed: tuple[str, ...]
    failed: tuple[Failure, ...]
    skipped: dict[str, str]

    @property
    def failures(self) -> dict[str, Failure]:
        """Failures by the name of their check."""
        return {failure.check: failure for failure in self.failed}

    def __str__(self) -> str:
        head = f"{self.name}: {len(self.passed)} passed, {len(self.failed)} failed, {len(self.skipped)} skipped"
        failed = [f"  failed {failure}" for failure in self.failed]
        skipped = [f"  skipped {check}: {reason}" for check, reason in self.skipped.items()]
        return "\n".join([head, *failed, *skipped])


class ContractError(AssertionError):
    """A transform breaks the contract. `report` holds all results; the message lists the failures."""

    def __init__(self, report: Report):
        super().__init__(str(report))
        self.report = report


CHECKS: dict[str, Check] = {}
CAUSES: dict[str, str] = {}
LAWS = ("weight_decay", "bias_correction")  # checks of claims that only some transforms make


def check(cause: str) -> Callable[[Check], Check]:
    """Registers a function of a `Case` under its own name.

    Args:
        cause: likely fault of a transform that fails it, and the way out.
    """

    def register(function: Check) -> Check:
        CHECKS[function.__name__] = function
        CAUSES[function.__name__] = cause
        return function

    return register


def require(holds: Any, seen: str) -> None:
    """Raises AssertionError with the observation unless it holds; unlike `assert`, under `python -O` too."""
    if not holds:
        raise AssertionError(seen)
