"""Widening: where the best values lie at an edge of a space, the search goes on beyond it, for all contenders alike."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import TypeGuard

from optlab.compare._arguments import check_flags
from optlab.compare._errors import StudyError
from optlab.compare.points import EDGE, Choice, Interval, Space
from optlab.compare.study import Study

ROUNDS = 3
SHARE = 1 / 3  # of the decades that a space has, so many more are added at an edge


def check_widening(study: Study, widen: object) -> None:
    """Refuses `widen` where there is nothing to widen.

    Raises:
        StudyError: if it isn't True or False, or no contender searches an interval of decades.
    """
    check_flags(widen=widen)
    if widen and not any(goes_on(found) for c in study.contenders.values() for found in c.space.values()):
        raise StudyError("widen=True needs a log_uniform space, which goes on beyond its bounds; no contender has one")


def goes_on(found: Interval | Choice) -> TypeGuard[Interval]:
    """Whether there are decades beyond its bounds: beyond a uniform one, such as a momentum's, there may be nothing."""
    return isinstance(found, Interval) and found.is_log


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
    """Returns the space around the first edge; the other edges are moved, so that it holds their inner side.

    It begins inside the old bound, so that what lies between the best value and that is searched, too.
    """
    whole, contender = dict(study.searched(name)), study.contenders[name]
    found: dict[str, Interval] = {}
    for key, side in edges.items():
        inner, first = whole[key], contender.space[key]
        if not (goes_on(inner) and goes_on(first)):
            continue
        out, back = ((first.high / first.low) ** share for share in (SHARE, EDGE))
        outside = inner.low / out if side == "low" else inner.high * out
        low, high = (outside, inner.low * back) if side == "low" else (inner.high / back, outside)
        try:
            contender.make({**contender.middle, key: outside})
        except Exception:  # whatever a user's factory raises: the edge is flagged all the same
            continue
        if found:
            low, high = min(low, inner.low), max(high, inner.high)
        found[key] = Interval(low, high, is_log=True)
    return {**whole, **found} if found else None
