"""The verdict: what a study lets one say, in words, with its uncertainty."""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from optlab._extras import need
from optlab._messages import in_bytes
from optlab.compare import statistics
from optlab.compare.notes import causes_of_all, notes
from optlab.compare.standings import TOLERANCE, Comparison, Standing, compared, short, standing
from optlab.compare.statistics import CONFIDENCE, Estimate
from optlab.compare.study import Study
from optlab.compare.trials import Result, plain


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
        trials = "/".join(str(n) for n in dict.fromkeys(map(s.budget, s.trials)))
        head = (
            f"{len(s.contenders)} contenders on {s.workload.name}, {s.studies} {_plural('study', s.studies)} of "
            f"{trials} trials each, {s.steps} steps; {s.measure} of the winners, trained afresh, beside {s.baseline}:"
        )
        return [head, *map(self._compared, self.comparisons.values()), *notes(self.study, self.results, self.standings)]

    def frame(self) -> Any:
        """Every trial as a row of a pandas DataFrame."""
        need("Verdict.frame", "pandas", extra="compare")
        import pandas

        rows, causes_of = [], causes_of_all(self.results, self.standings)
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
                    "cause": causes_of.get(t.id),
                    "seconds": result.seconds,
                    "pace": result.pace,
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
        columns, *rows = self.table()
        row = lambda cells: f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in cells)} |"
        return "\n".join([*lines, row(columns), f"|{'---|' * len(columns)}", *map(row, rows)]) + "\n"

    def table(self) -> list[list[str]]:
        """The contenders' standings as text, the columns' names first."""
        has_target = self.study.workload.target.value is not None
        columns = ["contender", self.study.measure]
        columns += ["steps to target", "mean steps", "reached"] if has_target else []
        columns += [
            "diverged",
            f"decades within {TOLERANCE:.0%}",
            "best settings",
            "ms a step",
            "s a run",
            "optimizer state",
        ]
        rows = []
        for x in self.standings.values():
            best = "; ".join(dict.fromkeys(", ".join(f"{k} {short(v)}" for k, v in b.items()) for b in x.best))
            cells = [x.name, _interval(x.mean)]
            if x.steps is not None and x.restricted is not None and x.reached is not None:
                cells += [
                    "never" if math.isinf(x.steps) else short(x.steps),
                    short(x.restricted),
                    f"{x.reached[0]} of {x.reached[1]}",
                ]
            cells += [f"{x.diverged[0]} of {x.diverged[1]}", "–" if x.decades is None else f"{x.decades:.1f}"]
            pace = "–" if math.isnan(x.pace) else f"{1000 * x.pace:.3g}"
            rows.append([*cells, best or "–", pace, f"{x.seconds:.2f}", in_bytes(self.study.state_bytes(x.name))])
        return [columns, *rows]

    def _compared(self, c: Comparison) -> str:
        base, here = self.standings[self.study.baseline], self.standings[c.name]
        higher = self.study.workload.target.mode == "max"
        scores = f"{short(here.mean.value)} against {short(base.mean.value)}"
        by = f"{_interval(c.difference, signed=True)}"
        if math.isnan(c.p):
            numbers = f"{scores}, a difference of {by}; " if math.isfinite(c.difference.value) else ""
            words = f"{c.name}: {numbers}{self._untested(here, base)}"
        elif c.is_different:
            is_better = (c.difference.value > 0) == higher
            corrected = "" if len(self.comparisons) == 1 else f" after Holm's correction for {len(self.comparisons)}"
            words = (
                f"{c.name} is {'better' if is_better else 'worse'} than {base.name}: {scores}, {by} "
                f"(p = {c.p:.2g}{corrected}); its winner is the better one with probability {c.above.value:.2f}"
            )
        else:
            words = f"{c.name} and {base.name} can't be told apart with {self.study.studies} studies: {scores}, {by}"
            if not math.isnan(c.missed):
                words += f" (a true one below {short(c.missed)}, {self.detectable:.1f} SD, would often be missed)"
            if c.difference.p < 1 - CONFIDENCE:
                words += f"; by itself it would be told apart, not among {len(self.comparisons)} comparisons (Holm)"
        flip = f"; the order of the two on validation flips from {c.flip - 1} to {c.flip} trials" if c.flip else ""
        return words + self._in_steps(c) + flip + "."

    def _untested(self, here: Standing, base: Standing) -> str:
        """Why nothing can be said of a difference."""
        if self.study.studies == 1:
            return "one study has no interval, so that nothing can be said"
        finished = {x.name: sum(map(math.isfinite, x.scores)) for x in (here, base)}
        if min(finished.values()) > 1:
            return "the studies are all alike, and don't show how they spread, so that nothing can be said"
        shares = ", ".join(f"{count} of {self.study.studies} of {name}" for name, count in finished.items())
        return f"too few winners have a finite {self.study.measure} to be compared: {shares}"

    def _in_steps(self, c: Comparison) -> str:
        if c.ratio is None:
            return ""
        target = self.study.workload.target
        what = f"{target.metric} {target.value:g}"
        base, here = self.standings[self.study.baseline], self.standings[c.name]
        assert here.reached is not None
        assert base.reached is not None
        time = "" if c.time is None else f" and {c.time:.2g} of its time"
        if here.reached[0] == here.reached[1] and base.reached[0] == base.reached[1]:
            return f"; it reaches {what} in {_interval(c.ratio, digits=2)} of {base.name}'s steps{time}"
        shares = (
            f"in {here.reached[0]} of {here.reached[1]} runs, {base.name} in {base.reached[0]} of {base.reached[1]}"
        )
        if 0 < c.ratio.value < math.inf:
            ratio = f", by the medians in {_interval(c.ratio, digits=2)} of {base.name}'s steps{time}"
        else:
            ratio = "" if math.isnan(c.ratio.low) else f", a ratio of steps in {_bounds(c.ratio)}"
        means = f"; until then or the end {here.restricted:.4g} steps on average, {base.name} {base.restricted:.4g}"
        return f"; it reaches {what} {shares}{ratio}{means}"


def judge(study: Study, results: Mapping[str, Result]) -> Verdict:
    """The verdict on a finished study."""
    standings = {name: standing(study, name, results) for name in study.contenders}
    found = statistics.detectable(study.studies, comparisons=len(standings) - 1, is_paired=study.is_paired)
    return Verdict(study, results, standings, compared(study, results, standings), found)


def _plural(word: str, count: int) -> str:
    return word if count == 1 else word.removesuffix("y") + "ies"


def _interval(e: Estimate, *, signed: bool = False, digits: int = 4) -> str:
    form = f"{'+' if signed else ''}.{digits}g"
    return f"{e.value:{form}}" if math.isnan(e.low) else f"{e.value:{form}} [{e.low:{form}}, {e.high:{form}}]"


def _bounds(e: Estimate) -> str:
    return f"[{e.low:.2g}, {e.high:.2g}]"
