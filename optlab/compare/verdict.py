"""The verdict: what a study lets one say, in words, with its uncertainty."""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from optlab._extras import need
from optlab.compare import statistics
from optlab.compare.contenders import origin
from optlab.compare.points import at_edge
from optlab.compare.statistics import CONFIDENCE, Estimate
from optlab.compare.study import Study
from optlab.compare.trials import Result, plain

# A general optimizer, and the one that it becomes where its space is wide enough.
SPECIAL = {"adamw": "adam", "adam_l2": "adam", "muon": "adamw", "normuon": "adamw", "adamuon": "adamw"}
TOLERANCE = 0.1  # of the best loss: how far a learning rate may be off


@dataclass(frozen=True)
class Standing:
    """One contender by itself.

    Attributes:
        name: its name.
        scores: of each study's winner the measure, the mean over its fresh trainings; NaN if all of them diverged.
        mean: over the studies, with Student's interval.
        reached: how many of the fresh trainings reached the target; None without a target's value.
        steps: their median number of steps to the target, inf if fewer than half reach it; None likewise.
        restricted: their mean number of steps to the target or the end of the run; None likewise.
        diverged: how many trials diverged, of how many.
        causes: of the first few of those.
        best: the winners' hyperparameters, study by study.
        edges: hyperparameters whose best value was at an edge of what was tried in most of the studies.
        decades: of the learning rate, within `TOLERANCE` of the best validation loss; None if more was searched.
        best_of: the mean over the studies of the expected best of k trials on validation, k = 1 … trials.
        seconds: of a training, as the executor measured it.
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
    best_of: list[float]
    seconds: float


@dataclass(frozen=True)
class Comparison:
    """A contender beside the baseline.

    Attributes:
        name: the contender's.
        difference: of the measure, the contender's less the baseline's.
        p: of no difference, Holm's over all contenders.
        above: the probability that the contender's winner is better than the baseline's.
        ratio: of the steps to the target; None without a target's value.
        flip: from how many trials on the order of the best-of-k curves is the final one; None if it always is.
        missed: a true difference below this would be missed more than once in five; NaN where no spread is known.
    """

    name: str
    difference: Estimate
    p: float
    above: Estimate
    ratio: Estimate | None
    flip: int | None
    missed: float

    @property
    def is_different(self) -> bool:
        return self.p < 1 - CONFIDENCE


@dataclass(frozen=True)
class Verdict:
    """The conclusions of a study. `print` shows them in words."""

    study: Study
    results: Mapping[str, Result]
    standings: Mapping[str, Standing]
    comparisons: Mapping[str, Comparison]
    detectable: float

    def __str__(self) -> str:
        return "\n".join(self.lines())

    def lines(self) -> list[str]:
        """The verdict, a sentence or two a line."""
        s = self.study
        trials = "/".join(str(n) for n in dict.fromkeys(s.trials.values()))
        head = (
            f"{len(s.contenders)} contenders on {s.workload.name}, {s.studies} {_plural('study', s.studies)} of "
            f"{trials} trials each, {s.steps} steps; {s.measure} of the winners, trained afresh, beside {s.baseline}:"
        )
        return [head, *map(self._compared, self.comparisons.values()), *self._notes()]

    def frame(self) -> Any:
        """Every trial as a row of a pandas DataFrame."""
        need("Verdict.frame", "pandas", extra="compare")
        import pandas

        rows = []
        for result in self.results.values():
            t, names = result.trial, [n for n in result.curve if n != "step"]
            about = {k: getattr(t, k) for k in ("id", "contender", "study", "point", "repeat", "is_final", "seed")}
            rows.append(
                {
                    **about,
                    **t.values,
                    **{n: result.last(n) for n in names},
                    **result.test,
                    "reached": result.reached(self.study.workload.target),
                    "diverged": result.diverged,
                    "seconds": result.seconds,
                    "executor": result.executor,
                }
            )
        return pandas.DataFrame(rows)

    def to_json(self) -> dict[str, Any]:
        """The numbers as JSON data; what isn't finite as a string."""
        tree = {
            "words": self.lines(),
            "measure": self.study.measure,
            "baseline": self.study.baseline,
            "detectable": self.detectable,
            "standings": {n: dataclasses.asdict(x) for n, x in self.standings.items()},
            "comparisons": {n: dataclasses.asdict(x) for n, x in self.comparisons.items()},
        }
        return plain(tree)

    def write(self, folder: str | Path) -> None:
        """verdict.md and verdict.json in a folder."""
        folder = Path(folder).expanduser()
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "verdict.json").write_text(json.dumps(self.to_json(), indent=2, allow_nan=False) + "\n")
        (folder / "verdict.md").write_text(self.markdown())

    def markdown(self) -> str:
        """The words, and a table of the contenders."""
        lines = [*(f"- {line}" if i else f"{line}\n" for i, line in enumerate(self.lines())), ""]
        names = ["contender", self.study.measure, "steps to target", "reached", "diverged", "best settings", "s a run"]
        lines += [f"| {' | '.join(names)} |", f"|{'---|' * len(names)}"]
        for x in self.standings.values():
            best = "; ".join(dict.fromkeys(", ".join(f"{k} {_short(v)}" for k, v in b.items()) for b in x.best))
            cells = [
                x.name,
                _interval(x.mean),
                "–" if x.steps is None else _short(x.steps),
                "–" if x.reached is None else f"{x.reached[0]} of {x.reached[1]}",
                f"{x.diverged[0]} of {x.diverged[1]}",
                best or "–",
                f"{x.seconds:.2f}",
            ]
            lines.append(f"| {' | '.join(cells)} |")
        return "\n".join(lines) + "\n"

    def _compared(self, c: Comparison) -> str:
        base, here = self.standings[self.study.baseline], self.standings[c.name]
        higher = self.study.workload.target.mode == "max"
        scores = f"{_short(here.mean.value)} against {_short(base.mean.value)}"
        by = f"{_interval(c.difference, signed=True)}"
        if math.isnan(c.p):
            words = f"{c.name}: {scores}, a difference of {by}; one study has no interval, so that nothing can be said"
            if self.study.studies > 1:
                words = f"{c.name}: too few winners finished to compare it with {base.name}"
        elif c.is_different:
            is_better = (c.difference.value > 0) == higher
            corrected = "" if len(self.comparisons) == 1 else f" after Holm's correction for {len(self.comparisons)}"
            words = (
                f"{c.name} is {'better' if is_better else 'worse'} than {base.name}: {scores}, {by} "
                f"(p = {c.p:.2g}{corrected}); its winner is the better one with probability {c.above.value:.2f}"
            )
        else:
            words = (
                f"{c.name} and {base.name} can't be told apart with {self.study.studies} studies: {scores}, {by} "
                f"(a true one below {_short(c.missed)}, {self.detectable:.1f} SD, would often be missed)"
            )
            if c.difference.p < 1 - CONFIDENCE:
                words += f"; by itself it would be told apart, not among {len(self.comparisons)} comparisons (Holm)"
        return words + self._in_steps(c) + "."

    def _in_steps(self, c: Comparison) -> str:
        if c.ratio is None:
            return ""
        target = self.study.workload.target
        what = f"{target.metric} {target.value:g}"
        base, here = self.standings[self.study.baseline], self.standings[c.name]
        assert here.steps is not None
        assert base.steps is not None
        if math.isinf(here.steps) or math.isinf(base.steps):
            shares = ", ".join(f"{x.name} in {x.reached[0]} of {x.reached[1]} runs" for x in (here, base) if x.reached)
            bound = "" if math.isnan(c.ratio.low) else f", a ratio of steps in {_bounds(c.ratio)}"
            return f"; it reaches {what} {shares.removeprefix(c.name + ' ')}{bound}"
        return f"; it reaches {what} in {_interval(c.ratio, digits=2)} of {base.name}'s steps"

    def _notes(self) -> list[str]:
        notes = []
        if self.study.studies == 1:
            notes.append("One study has no interval: its differences may be the luck of one tuning. Say studies=5.")
        for x in self.standings.values():
            if x.edges:
                shown = ", ".join(f"{k} ({'lower' if side == 'low' else 'upper'} end)" for k, side in x.edges.items())
                notes.append(f"The best values of {x.name} lie at the edge of its space: {shown}. Widen it.")
            if x.diverged[0]:
                notes.append(f"{x.diverged[0]} of {x.diverged[1]} trials of {x.name} diverged: {x.causes[0]}.")
            if lost := sum(map(math.isnan, x.scores)):
                notes.append(
                    f"{lost} of {len(x.scores)} winners of {x.name} diverged when they were trained afresh: its mean "
                    "is that of the others, and flatters it."
                )
        return notes + self._special_cases()

    def _special_cases(self) -> list[str]:
        """Contenders that do significantly worse than what they could have been."""
        notes = []
        by_origin = {origin(c.factory): name for name, c in self.study.contenders.items()}
        sign = 1 if self.study.workload.target.mode == "max" else -1
        for general, special in SPECIAL.items():
            if general not in by_origin or special not in by_origin:
                continue
            a, b = (self.standings[by_origin[k]] for k in (general, special))
            found = _difference(a.scores, b.scores, self.study.is_paired)
            if found.p < 1 - CONFIDENCE and sign * found.value < 0:
                notes.append(
                    f"{a.name} is worse than {b.name}, which is a special case of it or of what it is made of: its "
                    "space is too small, or its trials are too few for its hyperparameters."
                )
        return notes


def judge(study: Study, results: Mapping[str, Result]) -> Verdict:
    """The verdict on a finished study."""
    standings = {name: _standing(study, name, results) for name in study.contenders}
    base = standings[study.baseline]
    others = [standings[name] for name in study.contenders if name != study.baseline]
    differences = [_difference(x.scores, base.scores, study.is_paired) for x in others]
    found = statistics.detectable(study.studies, comparisons=len(others), is_paired=study.is_paired)
    adjusted = statistics.holm([d.p for d in differences])
    sign = 1 if study.workload.target.mode == "max" else -1

    def ranked(x: Standing) -> np.ndarray:
        return sign * np.where(np.isnan(x.scores), -sign * math.inf, x.scores)

    comparisons = {
        x.name: Comparison(
            x.name,
            difference,
            float(p),
            statistics.probability_above(ranked(x), ranked(base)),
            _ratio(study, results, x.name),
            statistics.order_flip(sign * np.array(x.best_of), sign * np.array(base.best_of))
            if len(x.best_of) == len(base.best_of)
            else None,
            found * _spread(x.scores, base.scores, study.is_paired),
        )
        for x, difference, p in zip(others, differences, adjusted, strict=True)
    }
    return Verdict(study, results, standings, comparisons, found)


def _standing(study: Study, name: str, results: Mapping[str, Result]) -> Standing:
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
    )


def _difference(a: Sequence[float], b: Sequence[float], is_paired: bool) -> Estimate:
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
    return math.sqrt(sum(float(v.var(ddof=1)) for v in parts) / 2)


def _times(study: Study, results: Sequence[Result]) -> tuple[list[float], list[bool]]:
    found = [r.reached(study.workload.target) for r in results]
    return [float(study.steps if t is None else t) for t in found], [t is not None for t in found]


def _ratio(study: Study, results: Mapping[str, Result], name: str) -> Estimate | None:
    if study.workload.target.value is None:
        return None
    times = [
        _times(study, [results[t.id] for s in range(study.studies) for t in study.finals_of(n, s, results)])
        for n in (name, study.baseline)
    ]
    return statistics.time_ratio(*times[0], *times[1])


def _edges(study: Study, name: str, best: Sequence[Mapping[str, Any]]) -> dict[str, str]:
    space = study.contenders[name].space
    count: dict[tuple[str, str], int] = {}
    for s, values in enumerate(best):
        for edge in at_edge(space, study.points(name, s), values).items():
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


def _best_of(study: Study, searched: Sequence[Sequence[Result]]) -> list[float]:
    target = study.workload.target
    sign = 1 if target.mode == "max" else -1
    curves = []
    for group in searched:
        points: dict[int, list[float]] = {}
        for r in group:
            points.setdefault(r.trial.point, []).append(r.last(target.metric))
        means = [sign * float(np.mean(v)) for v in points.values()]
        curves.append(sign * statistics.best_of([x if math.isfinite(x) else -math.inf for x in means]))
    return [float(x) for x in np.mean(curves, axis=0)]


def _mean(values: Sequence[float]) -> float:
    whole = [v for v in values if math.isfinite(v)]
    return float(np.mean(whole)) if whole else math.nan


def _settings(values: Mapping[str, Any]) -> str:
    return ", ".join(f"{k}={_short(v)}" for k, v in values.items()) or "at its settings"


def _plural(word: str, count: int) -> str:
    return word if count == 1 else word.removesuffix("y") + "ies"


def _short(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _interval(e: Estimate, *, signed: bool = False, digits: int = 4) -> str:
    form = f"{'+' if signed else ''}.{digits}g"
    return f"{e.value:{form}}" if math.isnan(e.low) else f"{e.value:{form}} [{e.low:{form}}, {e.high:{form}}]"


def _bounds(e: Estimate) -> str:
    return f"[{e.low:.2g}, {e.high:.2g}]"
