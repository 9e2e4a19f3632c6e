"""Measurements of each contender, and of each beside the baseline: numbers alone."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from optlab.compare import statistics
from optlab.compare.points import at_edge
from optlab.compare.statistics import CONFIDENCE, Estimate
from optlab.compare.study import Study
from optlab.compare.trials import Result

TOLERANCE = 0.1  # of the best loss: how far a learning rate may be off


@dataclass(frozen=True)
class Standing:
    """One contender by itself.

    Attributes:
        name: its name.
        scores: of each study's winner the measure, the mean over its fresh trainings; NaN if none of them has one.
        mean: over the studies, with Student's interval.
        reached: how many of the fresh trainings reached the target; None without a target's value.
        steps: their median number of steps to the target, inf if fewer than half reach it; None likewise.
        restricted: their mean number of steps to the target or the end of the run; None likewise.
        diverged: how many trials diverged, of how many.
        causes: of the first few of those.
        best: the winners' hyperparameters, study by study.
        edges: hyperparameters whose best value lay at an edge of what was searched in most of the studies.
        decades: of the learning rate, within `TOLERANCE` of the best validation loss; None if more was searched.
        best_of: the expected best of k trials on validation, k = 1 … trials: the mean over the studies, with Student's
            interval; no interval where a study's trials diverged.
        seconds: of a training, as the executor measured it.
        pace: seconds a step without compilation, the median of all trainings; NaN where it wasn't measured.
    """

    name: str
    scores: list[float]
    mean: Estimate
    reached: tuple[int, int] | None
    steps: float | None
    restricted: float | None
    diverged: tuple[int, int]
    causes: list[str]
    best: list[dict[str, Any]]
    edges: dict[str, str]
    decades: float | None
    best_of: list[Estimate]
    seconds: float
    pace: float


@dataclass(frozen=True)
class Comparison:
    """A contender beside the baseline.

    Attributes:
        name: the contender's.
        difference: of the measure, the contender's less the baseline's.
        p: of no difference, Holm's over all contenders.
        above: the probability that the contender's winner is better than the baseline's.
        ratio: of the steps to the target, and so of the examples, over the studies; None without a target's value.
        time: of the seconds to the target, `ratio` times the ratio of the paces; None where these can't be compared.
        flip: from how many trials on the order of the best-of-k curves is the final one; None if it always is.
        missed: a true difference below this would be missed more than once in five; NaN where no spread is seen.
    """

    name: str
    difference: Estimate
    p: float
    above: Estimate
    ratio: Estimate | None
    time: float | None
    flip: int | None
    missed: float

    @property
    def is_different(self) -> bool:
        return self.p < 1 - CONFIDENCE


def compared(study: Study, results: Mapping[str, Result], standings: Mapping[str, Standing]) -> dict[str, Comparison]:
    """Each contender beside the baseline, corrected for their number."""
    base = standings[study.baseline]
    others = [standings[name] for name in study.contenders if name != study.baseline]
    differences = [difference(x.scores, base.scores, study.is_paired) for x in others]
    found = statistics.detectable(study.studies, comparisons=len(others), is_paired=study.is_paired)
    sign = 1 if study.workload.target.mode == "max" else -1
    ranked = lambda x: sign * np.where(np.isnan(x.scores), -sign * math.inf, x.scores)
    curve = lambda x: sign * np.array([e.value for e in x.best_of])
    return {
        x.name: Comparison(
            x.name,
            between,
            float(p),
            statistics.probability_above(ranked(x), ranked(base)),
            ratio := _ratio(study, results, x.name),
            _time(results, ratio, x, base),
            statistics.order_flip(curve(x), curve(base)) if len(x.best_of) == len(base.best_of) else None,
            found * _spread(x.scores, base.scores, study.is_paired),
        )
        for x, between, p in zip(others, differences, statistics.holm([d.p for d in differences]), strict=True)
    }


def standing(study: Study, name: str, results: Mapping[str, Result]) -> Standing:
    target, studies = study.workload.target, range(study.studies)
    finals = [[results[t.id] for t in study.finals_of(name, s, results)] for s in studies]
    searched = [[results[t.id] for t in study.searches(name, s)] for s in studies]
    scores = [_mean([r.last(study.measure) for r in group]) for group in finals]
    whole = [x for x in scores if math.isfinite(x)]
    flat = [r for group in finals for r in group]
    every = [r for group in (*searched, *finals) for r in group]
    failed = [f"{_settings(r.trial.values)}: {r.diverged}" for r in every if r.diverged]
    times = None if target.value is None else _times(study, flat)
    best = [dict(group[0].trial.values) for group in finals]
    return Standing(
        name,
        scores,
        statistics.mean(whole) if whole else Estimate(math.nan),
        None if times is None else (int(sum(times[1])), len(flat)),
        None if times is None else statistics.median_time(*times),
        None if times is None else statistics.restricted_mean(*times, study.steps),
        (len(failed), len(every)),
        failed[:5],
        best,
        _edges(study, name, best),
        _decades(study, name, searched),
        _best_of(study, searched),
        float(np.mean([r.seconds for r in every])),
        float(np.median([r.pace for r in every])),
    )


def difference(a: Sequence[float], b: Sequence[float], is_paired: bool) -> Estimate:
    """Over the studies whose winners finished."""
    if is_paired:
        both = [(x, y) for x, y in zip(a, b, strict=True) if math.isfinite(x - y)]
        return statistics.paired([x for x, _ in both], [y for _, y in both]) if both else Estimate(math.nan)
    x, y = ([v for v in s if math.isfinite(v)] for s in (a, b))
    return statistics.welch(x, y) if x and y else Estimate(math.nan)


def _spread(a: Sequence[float], b: Sequence[float], is_paired: bool) -> float:
    """The standard deviation that `statistics.power` counts in: pooled, or that of the differences."""
    x, y = np.asarray(a), np.asarray(b)
    if is_paired:
        x, y = x - y, x - y
    parts = [v[np.isfinite(v)] for v in (x, y)]
    if min(map(len, parts)) < 2:
        return math.nan
    return math.sqrt(sum(float(v.var(ddof=1)) for v in parts) / 2) or math.nan


def _times(study: Study, results: Sequence[Result]) -> tuple[list[float], list[bool]]:
    found = [r.reached(study.workload.target) for r in results]
    return [float(study.steps if t is None else t) for t in found], [t is not None for t in found]


def _ratio(study: Study, results: Mapping[str, Result], name: str) -> Estimate | None:
    """Of one time a study: the median of its winner's fresh trainings, which don't count as repetitions."""
    if study.workload.target.value is None:
        return None

    def times(contender: str) -> tuple[list[float], list[bool]]:
        groups = [[results[t.id] for t in study.finals_of(contender, s, results)] for s in range(study.studies)]
        medians = [statistics.median_time(*_times(study, group)) for group in groups]
        return [min(m, study.steps) for m in medians], [math.isfinite(m) for m in medians]

    return statistics.time_ratio(*times(name), *times(study.baseline))


def _edges(study: Study, name: str, best: Sequence[Mapping[str, Any]]) -> dict[str, str]:
    space = study.searched(name)
    count: dict[tuple[str, str], int] = {}
    for s, values in enumerate(best):
        for edge in at_edge(space, list(study.points(name, s).values()), values).items():
            count[edge] = count.get(edge, 0) + 1
    return {k: side for (k, side), n in count.items() if 2 * n > len(best)}


def _decades(study: Study, name: str, searched: Sequence[Sequence[Result]]) -> float | None:
    """Of a contender whose learning rate alone is searched; all studies' trials together."""
    if list(study.contenders[name].space) != ["learning_rate"]:
        return None
    flat = [r for group in searched for r in group]
    losses = [r.last("validation/loss") for r in flat]
    losses = [x if math.isfinite(x) else math.inf for x in losses]
    rates = [r.trial.values["learning_rate"] for r in flat]
    if min(losses) <= 0 or math.isinf(min(losses)) or min(rates) <= 0:
        return None
    return statistics.sensitivity(rates, losses, TOLERANCE)


def _best_of(study: Study, searched: Sequence[Sequence[Result]]) -> list[Estimate]:
    target = study.workload.target
    sign = 1 if target.mode == "max" else -1
    curves = []
    for group in searched:
        points: dict[int | str, list[float]] = {}
        for r in group:
            points.setdefault(r.trial.point, []).append(r.last(target.metric))
        means = [sign * float(np.mean(v)) for v in points.values()]
        curves.append(sign * statistics.best_of([x if math.isfinite(x) else -math.inf for x in means]))
    columns = np.transpose(curves)
    return [statistics.mean(x) if np.isfinite(x).all() else Estimate(float(np.mean(x))) for x in columns]


def _time(results: Mapping[str, Result], ratio: Estimate | None, a: Standing, b: Standing) -> float | None:
    """The paces of two executors say more about these than about the optimizers."""
    is_alike = len({r.executor for r in results.values() if r.trial.contender in (a.name, b.name)}) == 1
    time = math.nan if ratio is None else ratio.value * a.pace / b.pace
    return time if is_alike and 0 < time < math.inf else None


def _mean(values: Sequence[float]) -> float:
    whole = [v for v in values if math.isfinite(v)]
    return float(np.mean(whole)) if whole else math.nan


def _settings(values: Mapping[str, Any]) -> str:
    return ", ".join(f"{k}={short(v)}" for k, v in values.items()) or "at its settings"


def short(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)
