"""The cause of each diverged or flat trial, inferred from the trials beside it."""

from __future__ import annotations

import collections
import math
from collections.abc import Sequence

from optlab.compare.trials import Result
from optlab.diagnosis import FLAT

HIGH, LOW = "learning rate too high", "learning rate too low"


def causes(results: Sequence[Result]) -> dict[str, str]:
    """The causes by a trial's id, of one contender's trials; those that trained have none.

    A trial is flat if its training loss fell less than `FLAT` of what the best one's fell from the highest loss that
    was logged first. Its learning rate is compared with that of the best one.

    Returns:
        "learning rate too high", "learning rate too low", or, where the learning rates don't explain it, "diverged" or
        "flat".
    """
    losses = {r.trial.id: r.curve.get("train/loss", ()) for r in results if r.diverged is None}
    ends = {name: float(values[-1]) for name, values in losses.items() if len(values) and math.isfinite(values[-1])}
    best = min(ends, key=lambda name: ends[name], default=None)
    rates = {r.trial.id: r.trial.values.get("learning_rate") for r in results}
    start = max((float(losses[name][0]) for name in ends), default=math.nan)
    found = {}
    for result in results:
        name = result.trial.id
        if result.diverged is not None:
            found[name] = HIGH if _sign(rates[name], rates.get(best or "")) > 0 else "diverged"
        elif best is not None and name in ends and start - ends[name] < FLAT * (start - ends[best]):
            found[name] = {1: HIGH, -1: LOW}.get(_sign(rates[name], rates[best]), "flat")
    return found


def counted(found: Sequence[str]) -> str:
    """How often there is each cause, as words."""
    return ", ".join(
        f"{count} by {cause}" if cause in (HIGH, LOW) else f"{count} {cause}"
        for cause, count in collections.Counter(found).most_common()
    )


def _sign(rate: object, best: object) -> int:
    """Whether a learning rate is above (1) or below (−1) another; 0 where that isn't known."""
    if not isinstance(rate, int | float) or not isinstance(best, int | float):
        return 0
    return (rate > best) - (rate < best)
