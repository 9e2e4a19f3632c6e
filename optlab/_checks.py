"""Checks of settings when a factory is called: Python numbers are checked, traced values and schedules pass."""

import numbers
from typing import Any


def is_number(value: Any) -> bool:
    """Whether `value` is a plain Python number (a bool is none)."""
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def is_count(value: Any) -> bool:
    """Whether `value` is a whole number of at least 1, NumPy's too (a bool is none)."""
    return isinstance(value, numbers.Integral) and not isinstance(value, bool) and int(value) >= 1


def check_decay(name: str, value: Any) -> None:
    """A decay rate of a running average: 1 would never forget, and never learn."""
    if is_number(value) and not 0 <= value < 1:
        raise ValueError(f"{name} must lie in [0, 1), got {value}")


def check_positive(name: str, value: Any) -> None:
    """A number that something is divided by, or a length."""
    if is_number(value) and not value > 0:
        raise ValueError(f"{name} must be positive, got {value}")


def check_not_negative(name: str, value: Any) -> None:
    """A learning rate, a decay, an epsilon."""
    if is_number(value) and not value >= 0:
        raise ValueError(f"{name} must not be negative, got {value}")


def check_choice(name: str, value: Any, choices: tuple[str, ...]) -> None:
    """One of a few names."""
    if value not in choices:
        raise ValueError(f"{name} must be one of {', '.join(map(repr, choices))}, got {value!r}")
