"""What a rule finds, and what rules share."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from optlab.diagnosis._evidence import Evidence

NOISY = 0.1  # of the first loss

# What to try, of ills that more than one rule finds.
LESS = "a third of the learning rate, then a tenth; a warm-up; less weight decay if that is large"
MORE = "three times the learning rate, then ten times; if that changes nothing: is the gradient clipped?"
MOVE = "a learning rate above 0; check what is frozen or masked (optlab explain shows each parameter's rule)"
DRAW = "draw the weights at random: glorot_normal, he_normal; zeros are for biases"
IN_RANGE = "classes that count from 0, and as many outputs as there are classes"

Rule = Callable[[Evidence], "Finding | None"]
Severity = Literal["ill", "note"]


@dataclass(frozen=True)
class Finding:
    """One thing that a run shows.

    Attributes:
        name: such as "diverged".
        severity: "ill", or "note" for what may be meant.
        because: the evidence, in figures and steps.
        try_: what to try next.
        source: the paper or text that the rule comes from; "" for one that is measured here alone.
        settings: keys of a config with the values to try next; empty where there is no config, or no key for it.
        is_fatal: whether it explains everything that follows.
        is_cause: whether it was seen in the data or the model itself, so that it stands beside what is fatal.
        needs_probe: whether curves alone leave its cause open, so that a probe is what to do next;
            it isn't said beside another ill.
    """

    name: str
    severity: Severity
    because: str
    try_: str
    source: str = ""
    settings: Mapping[str, Any] = field(default_factory=dict)
    is_fatal: bool = False
    is_cause: bool = False
    needs_probe: bool = False


def cause(
    name: str,
    because: str,
    try_: str,
    source: str = "",
    settings: Mapping[str, Any] | None = None,
    severity: Severity = "ill",
) -> Finding:
    """The finding of what was seen in the data, the model or its twins."""
    return Finding(name, severity, because, try_, source, settings or {}, is_cause=True)


def rate_times(e: Evidence, factor: float) -> dict[str, float]:
    """The setting that multiplies a config's learning rate."""
    rate = e.settings.get("optimizer.learning_rate")
    return {"optimizer.learning_rate": float(f"{rate * factor:.2g}")} if isinstance(rate, int | float) else {}


def fell(first: float, share: float, last: float) -> str:
    """What a loss did, in words: "fell by 12%", or that it rose."""
    return f"fell by {share:.0%}" if share > 0 else f"rose from {first:.4g} to {last:.4g}"


def listed(names: list[str], most: int = 3) -> str:
    """The first names, and how many more there are."""
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")
