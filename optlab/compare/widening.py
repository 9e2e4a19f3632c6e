"""Widening: where the best values lie at an edge of a space, the search goes on beyond it, for all contenders alike."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

from optlab.compare._arguments import check_flags
from optlab.compare._errors import StudyError
from optlab.compare.points import Interval, Space
from optlab.compare.study import Study

ROUNDS = 3
SHARE = 1 / 3  # of the decades that a space has, so many more are added at an edge


def check_widening(study: Study, widen: object) -> None:
    """Refuses `widen` where there is nothing to widen.

    Raises:
        StudyError: if it isn't True or False, or no contender searches an interval of decades.
    """
    check_flags(widen=widen)
    is_log = lambda found: isinstance(found, Interval) and found.is_log
    if widen and not any(is_log(found) for c in study.contenders.values() for found in c.space.values()):
        raise StudyError("widen=True needs a log_uniform space, which goes on beyond its bounds; no contender has one")


def widened(study: Study, edges: Mapping[str, Mapping[str, str]]) -> Study | None:
    """Returns the study with as many trials again for every contender, or None if no space can be widened.

    A contender with an edge draws them beyond it, every other one from its own space.

    Args:
        study: finished.
        edges: by contender, {hyperparameter: "low" or "high"}.
    """
    spaces = {name: _beyond(study, name, found) for name, found in edges.items()}
    if not any(spaces.values()):
        return None
    return dataclasses.replace(study, widened=(*study.widened, spaces))


def _beyond(study: Study, name: str, edges: Mapping[str, str]) -> Space | None:
    """Returns the space that begins at the first edge; the other edges are moved, so that it holds their inner side."""
    whole, contender = dict(study.searched(name)), study.contenders[name]
    found: dict[str, Interval] = {}
    for key, side in edges.items():
        inner, first = whole[key], contender.space[key]
        if not (isinstance(inner, Interval) and isinstance(first, Interval) and inner.is_log):
            continue  # beyond a uniform bound, such as that of a momentum, there may be nothing
        factor = (first.high / first.low) ** SHARE
        low, high = (inner.low / factor, inner.low) if side == "low" else (inner.high, inner.high * factor)
        try:
            contender.make({**contender.middle, key: low if side == "low" else high})
        except Exception:  # whatever a user's factory raises: the edge is flagged all the same
            continue
        if found:
            low, high = min(low, inner.low), max(high, inner.high)
        found[key] = Interval(low, high, is_log=True)
    return {**whole, **found} if found else None
