"""The cause of each diverged or flat trial, inferred from the trials beside it."""

from __future__ import annotations

import collections
import math
from collections.abc import Mapping, Sequence

from optlab.compare.trials import Result
from optlab.diagnosis import FLAT

SHOWN = 2  # trials of a cause; the frame of a verdict has all
HIGH, LOW = "learning rate too high", "learning rate too low"


def causes(results: Sequence[Result], beside: Sequence[Result] = ()) -> dict[str, str]:
    """The causes by a trial's id, of one contender's trials; those that trained have none.

    A trial is flat if its training loss fell less than `FLAT` of what the best one's fell from the highest loss that
    was logged first, of trials that have no higher learning rate: above it losses may burst before that. Its learning
    rate is compared with that of the best one. Beside a better contender the best one may be flat itself, the lowest
    by its initialization: then all are, and the learning rates say nothing.

    Args:
        results: of the contender.
        beside: of all contenders.

    Returns:
        "learning rate too high", "learning rate too low", or, where the learning rates don't explain it, "diverged" or
        "flat".
    """
    losses, others = _losses(results), _losses(beside)
    best = min(losses, key=lambda name: losses[name][1], default=None)
    rates = {r.trial.id: r.trial.values.get("learning_rate") for r in results}
    calm = [name for name in losses if best is not None and _sign(rates[name], rates[best]) <= 0]
    start = max((losses[name][0] for name in calm), default=math.nan)
    has_trained = best is not None and _has_trained(
        *losses[best], min((end for _, end in others.values()), default=math.inf)
    )
    rate = rates[best] if best is not None and has_trained else None
    found = {}
    for result in results:
        name = result.trial.id
        if result.diverged is not None:
            found[name] = HIGH if _sign(rates[name], rate) > 0 else "diverged"
        elif best is None or name not in losses:
            continue
        elif not has_trained or start - losses[name][1] < FLAT * (start - losses[best][1]):
            found[name] = {1: HIGH, -1: LOW}.get(_sign(rates[name], rate), "flat")
    return found


def _losses(results: Sequence[Result]) -> dict[str, tuple[float, float]]:
    """The first and the last training loss of each trial that finished, by its id; one evaluation shows no fall."""
    found = {r.trial.id: r.curve.get("train/loss", ()) for r in results if r.diverged is None}
    return {name: (float(x[0]), float(x[-1])) for name, x in found.items() if len(x) > 1 and math.isfinite(x[-1])}


def _has_trained(first: float, end: float, lowest: float) -> bool:
    """Whether a contender's best trial gained `FLAT` of what it might have; the best of all has."""
    return end <= lowest or first - end >= FLAT * (first - lowest)


def counted(found: Mapping[str, str]) -> str:
    """How often there is each cause, as words, with the first of its trials."""
    words = []
    for cause, count in collections.Counter(found.values()).most_common():
        ids = [name for name, its in found.items() if its == cause]
        shown = ", ".join(ids[:SHOWN]) + (", …" if count > SHOWN else "")
        words.append(f"{count} {'by ' if cause in (HIGH, LOW) else ''}{cause} ({shown})")
    return ", ".join(words)


def _sign(rate: object, best: object) -> int:
    """Whether a learning rate is above (1) or below (−1) another; 0 where that isn't known."""
    if not isinstance(rate, int | float) or not isinstance(best, int | float):
        return 0
    return (rate > best) - (rate < best)
