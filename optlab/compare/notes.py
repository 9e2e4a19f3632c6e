"""Notes below a verdict: what in the study itself limits what it says."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Mapping

from optlab.compare.causes import causes, counted
from optlab.compare.contenders import is_ours, origin
from optlab.compare.standings import Standing, difference
from optlab.compare.statistics import CONFIDENCE
from optlab.compare.study import Study
from optlab.compare.trials import Result
from optlab.compare.widening import goes_on

# A general optimizer, and the one that it becomes where its space is wide enough.
SPECIAL = {"adamw": "adam", "adam_l2": "adam", "muon": "adamw", "normuon": "adamw", "adamuon": "adamw"}
ENDS = {"low": "lower", "high": "upper"}


def notes(study: Study, results: Mapping[str, Result], standings: Mapping[str, Standing]) -> list[str]:
    """The notes, a sentence or two each."""
    found, causes_of = [], causes_of_all(results, standings)
    if study.studies == 1:
        found.append("One study has no interval: its differences may be the luck of one tuning. Say studies=5.")
    for x in standings.values():
        found += [*_of_spaces(study, x), *_of_trials(x, results, causes_of), *_of_winners(study, x)]
    return [*found, *_of_special_cases(study, standings)]


def causes_of_all(results: Mapping[str, Result], standings: Mapping[str, Standing]) -> dict[str, str]:
    """The cause of each diverged or flat trial, by its id."""
    every = list(results.values())
    groups = [[r for r in every if r.trial.contender == name] for name in standings]
    return {name: cause for group in groups for name, cause in causes(group, every).items()}


def _of_spaces(study: Study, x: Standing) -> Iterator[str]:
    now, first = study.searched(x.name), study.contenders[x.name].space
    if shown := ", ".join(f"{k} {found}" for k, found in now.items() if found != first[k]):
        yield f"The space of {x.name} was widened beyond an edge, to {shown}; all had as many trials more."
    if x.edges:
        shown = ", ".join(f"{k} ({ENDS[side]} end of {now[k]})" for k, side in x.edges.items())
        advice = "Say widen=True" if any(goes_on(now[k]) for k in x.edges) else "Give it a wider space"
        yield f"The best values of {x.name} lie at the edge of what was tried: {shown}. {advice}."


def _of_trials(x: Standing, results: Mapping[str, Result], causes_of: Mapping[str, str]) -> Iterator[str]:
    if x.diverged[0]:
        yield f"{x.diverged[0]} of {x.diverged[1]} trials of {x.name} diverged: {x.causes[0]}."
    own = [r.trial.id for r in results.values() if r.trial.contender == x.name]
    mine = {name: causes_of[name] for name in own if name in causes_of}
    if mine:
        yield f"Trials of {x.name} that diverged or are flat: {counted(mine)}."
    if len(mine) == x.diverged[1] > x.diverged[0]:
        yield f"No trial of {x.name} trained as the best of the others did: give it another space, or more steps."


def _of_winners(study: Study, x: Standing) -> Iterator[str]:
    if lost := sum(map(math.isnan, x.scores)):
        rest = ": its mean is that of the others, and flatters it" if lost < len(x.scores) else ""
        yield (
            f"{lost} of {len(x.scores)} winners of {x.name} ended without a finite {study.measure} when they were "
            f"trained afresh{rest}."
        )
    if x.steps == study.evaluate_every:
        yield (
            f"{x.name} has reached the target by its first evaluation, after {study.evaluate_every} steps: when isn't "
            "known. Say a smaller evaluate_every, or a target that is harder to reach."
        )


def _of_special_cases(study: Study, standings: Mapping[str, Standing]) -> Iterator[str]:
    """Contenders that do significantly worse than what they could have been."""
    origins = {name: origin(c.factory) for name, c in study.contenders.items() if is_ours(c.factory)}
    sign = 1 if study.workload.target.mode == "max" else -1
    for general, special in itertools.permutations(origins, 2):
        if SPECIAL.get(origins[general]) != origins[special]:
            continue
        found = difference(standings[general].scores, standings[special].scores, study.is_paired)
        if found.p < 1 - CONFIDENCE and sign * found.value < 0:
            yield (
                f"{general} is worse than {special}, which is a special case of it or of what it is made of: its space "
                "is too small, or its trials are too few for its hyperparameters."
            )
