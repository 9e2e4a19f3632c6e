"""Report of the checks, the failures with their likely cause, and the registry of checks."""

import dataclasses
from collections.abc import Callable
from typing import Any, TypeAlias

from optlab._messages import aligned

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
    """Result of `check_transform`. `print` shows a table of what holds and what doesn't; `check` raises.

    Attributes:
        name: of the transform.
        passed: the checks that hold.
        failed: those that don't, with what was seen.
        skipped: the others, each with the reason.
    """

    name: str
    passed: tuple[str, ...]
    failed: tuple[Failure, ...]
    skipped: dict[str, str]

    @property
    def failures(self) -> dict[str, Failure]:
        """Failures by the name of their check."""
        return {failure.check: failure for failure in self.failed}

    def check(self) -> "Report":
        """Returns the report of a transform that keeps the contract, for tests.

        Raises:
            ContractError: if a check failed; it lists all that did, and holds the report.
        """
        if self.failed:
            raise ContractError(self)
        return self

    def __str__(self) -> str:
        verdicts = {
            **{name: ("holds", "") for name in self.passed},
            **{failure.check: ("fails", failure.seen) for failure in self.failed},
            **{name: ("skipped", reason) for name, reason in self.skipped.items()},
        }
        counts = f"{len(self.passed)} hold, {len(self.failed)} fail, {len(self.skipped)} skipped"
        rows = [(f"  {name}", *verdicts[name]) for name in CHECKS if name in verdicts]
        lines = [f"{self.name}: {counts}", aligned(rows)] if rows else [f"{self.name}: {counts}"]
        causes = [f"  {failure.check}: {failure.cause}" for failure in self.failed]
        return "\n".join([*lines, *(["likely causes:", *causes] if causes else [])])


class ContractError(AssertionError):
    """A transform breaks the contract. `report` holds all results; the message lists the failures."""

    def __init__(self, report: Report):
        failed = "".join(f"\n  {failure}" for failure in report.failed)
        super().__init__(f"{report.name}: {len(report.failed)} of the contract's checks fail{failed}")
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
