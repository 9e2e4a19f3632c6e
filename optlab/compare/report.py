"""The report of a study: the verdict first, then the curves that it rests on, and how to have it again."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np

from optlab.compare import statistics
from optlab.compare.points import Interval
from optlab.compare.standings import short
from optlab.compare.statistics import Estimate
from optlab.compare.trials import Result
from optlab.compare.verdict import Verdict
from optlab.report import Chart, Code, Line, Section, Table, distinct, draw, names_of, page
from optlab.report._charts import Details

FIGURES = "figures"


def write_report(verdict: Verdict, folder: Path, command: str = "") -> Path:
    """report.html in a study's folder, and every chart as a PNG under figures/. Returns the page's path.

    Args:
        verdict: of the study.
        folder: there already.
        command: what ran it, for whoever wants to run it again; "" where it was a call in Python.
    """
    charts = _charts(verdict)
    (folder / FIGURES).mkdir(exist_ok=True)
    for chart in charts:
        draw(chart, folder / FIGURES / f"{chart.key}.png")
    (folder / "report.html").write_text(_page(verdict, charts, command))
    return folder / "report.html"


def _page(verdict: Verdict, charts: Sequence[Chart], command: str) -> str:
    study = verdict.study
    head, *words = verdict.lines()
    columns, *rows = verdict.table()
    again = "This command" if command else "The same call of optlab.compare"
    return page(
        f"{', '.join(study.contenders)} on {study.workload.name}",
        [
            Section("Verdict", [head, words]),
            Section("Contenders", [Table(columns, rows)]),
            Section("Curves", charts),
            Section(
                "Again",
                [
                    f"{again} goes on in the study's folder, and trains nothing that is there. Every trial is a line "
                    "of trials.jsonl; a click on a trial above shows its settings and its seed.",
                    *([Code(command)] if command else []),
                    Code(json.dumps(study.about(), indent=2), "What the study is (study.json)"),
                ],
            ),
        ],
    )  # fmt: skip


def _charts(verdict: Verdict) -> list[Chart]:
    study, target = verdict.study, verdict.study.workload.target
    metrics = dict.fromkeys([target.metric, "validation/loss", "train/loss"])
    charts = [
        *(_learning(verdict, metric) for metric in metrics),
        *([_reached(verdict)] if target.value is not None else []),
        *_sensitivities(verdict),
        *(c for name in study.contenders if (c := _parallel(verdict, name)) is not None),
        _best_of(verdict),
    ]
    return distinct(charts)


def _learning(verdict: Verdict, metric: str) -> Chart:
    """The winners' fresh trainings: the mean over the studies, with Student's interval."""
    study, lines = verdict.study, []
    for group, name in enumerate(study.contenders):
        groups = [_whole(verdict, name, s, metric) for s in range(study.studies)]
        curves = [np.mean([c[metric] for c in curves], axis=0) for curves in groups if curves]
        if curves:
            steps = next(curves[0]["step"] for curves in groups if curves)
            means = [statistics.mean(x) if np.isfinite(x).all() else Estimate(math.nan) for x in np.transpose(curves)]
            lines.append(_banded(name, steps, means, group))
    if metric == study.workload.target.metric and study.workload.target.value is not None and lines:
        ends = [lines[0].x[0], lines[0].x[-1]]
        lines.append(Line("target", ends, [study.workload.target.value] * 2, 6, style="dashed"))
    factors = {"examples": [float(study.workload.batch_size)] * len(lines)}
    paces = [verdict.standings[line.name].pace if line.name in study.contenders else math.nan for line in lines]
    if not any(math.isnan(p) for p, line in zip(paces, lines, strict=True) if line.name in study.contenders):
        factors["seconds"] = [p if math.isfinite(p) else max(filter(math.isfinite, paces)) for p in paces]
    views = {n: [[f * x for x in line.x] for f, line in zip(fs, lines, strict=True)] for n, fs in factors.items()}
    return Chart(
        metric, f"{metric} of the winners", "steps", metric, lines, log_y=metric.endswith("loss"),
        views=views, note="The mean over the studies' winners, trained afresh, with its 95 % interval. Seconds leave "
        "compilation out; in a population they are a trial's share.",
    )  # fmt: skip


def _reached(verdict: Verdict) -> Chart:
    study, target = verdict.study, verdict.study.workload.target
    lines = []
    for group, name in enumerate(study.contenders):
        times = [r.reached(target) for r in _finals(verdict, name)]
        at, shares = statistics.survival(
            [study.steps if t is None else t for t in times], [t is not None for t in times]
        )
        x, y = [0.0, *at, float(study.steps)], [0.0, *(1 - shares)]
        lines.append(Line(name, x, [*y, y[-1]], group, style="steps"))
    what = f"{target.metric} {target.value:g}"
    return Chart("reached", f"Winners that have reached {what}", "steps", "share of runs", lines,
                 note="Kaplan and Meier's: a run that never gets there counts until its end.")  # fmt: skip


def _sensitivities(verdict: Verdict) -> list[Chart]:
    """Every trial over each hyperparameter that is a number."""
    study, metric = verdict.study, verdict.study.workload.target.metric
    spaces = {name: study.searched(name) for name in study.contenders}
    keys = {k: found for space in spaces.values() for k, found in space.items() if isinstance(found, Interval)}
    charts = []
    for key, found in keys.items():
        lines = []
        for group, name in enumerate(study.contenders):
            results = [r for r in _searched(verdict, name) if key in r.trial.values and math.isfinite(r.last(metric))]
            results.sort(key=lambda r: r.trial.values[key])
            x, y = [r.trial.values[key] for r in results], [r.last(metric) for r in results]
            details = [_details(r, metric) for r in results]
            lines.append(Line(name, x, y, group, style="points", details=details))
        note = "Every trial of every tuning; those that diverged aren't shown. Click on one for its settings."
        title, is_log_y = f"{metric} over {key}", metric.endswith("loss")
        charts.append(Chart(f"over-{key}", title, key, metric, lines, found.is_log, is_log_y, note=note))
    return charts


def _parallel(verdict: Verdict, name: str) -> Chart | None:
    """Parallel coordinates of one contender's trials; None for fewer than two hyperparameters."""
    study, metric = verdict.study, verdict.study.workload.target.metric
    space = study.searched(name)
    if len(space) < 2:
        return None
    results = [r for r in _searched(verdict, name) if math.isfinite(r.last(metric))]
    winners = {(s, next(iter(_finals_of(verdict, name, s))).trial.point) for s in range(study.studies)}
    scores = [r.last(metric) for r in results]
    if not results:
        return None
    ends = lambda found: f"{found.low:.3g} to {found.high:.3g}" if isinstance(found, Interval) else str(found)
    axes = [(key, found.share, ends(found)) for key, found in space.items()]
    span = max(scores) - min(scores) or 1.0
    lines: list[Line] = []
    is_winner = lambda r: (r.trial.study, r.trial.point) in winners
    for r in sorted(results, key=is_winner):  # drawn over the others
        heights = [place(r.trial.values[key]) for key, place, _ in axes] + [(r.last(metric) - min(scores)) / span]
        label, group = ("winners", 4) if is_winner(r) else ("trials", 6)
        details = [_details(r, metric)] * len(heights)
        is_first = label not in {line.name for line in lines}
        lines.append(
            Line(label, range(len(heights)), heights, group, style="line" if group == 4 else "thin", details=details,
                 is_in_legend=is_first)
        )  # fmt: skip
    ticks = [f"{key}<br>{shown}" for key, _, shown in axes]
    ticks.append(f"{metric}<br>{min(scores):.4g} to {max(scores):.4g}")
    note = "A line is a trial, from its hyperparameters to its result; upwards is more. Click on one for its settings."
    return Chart(f"parallel-{name}", f"The trials of {name}", "", "", lines, ticks=ticks, note=note)


def _best_of(verdict: Verdict) -> Chart:
    study, metric = verdict.study, verdict.study.workload.target.metric
    lines = [
        _banded(name, range(1, len(x.best_of) + 1), x.best_of, group)
        for group, (name, x) in enumerate(verdict.standings.items())
    ]
    flips = [
        f"{c.name} and {study.baseline} change places at {c.flip} trials"
        for c in verdict.comparisons.values()
        if c.flip
    ]
    note = "The mean over the studies, with its 95 % interval" + "".join(f"; {f}" for f in flips) + "."
    return Chart("best-of", f"{metric} of the best of k trials", "trials", metric, lines, note=note)


def _banded(name: str, x: Sequence[float], means: Sequence[Estimate], group: int) -> Line:
    has_band = any(math.isfinite(e.low) for e in means)
    end = lambda e, side: e.value if math.isnan(getattr(e, side)) else getattr(e, side)  # where all studies agree
    low, high = ([end(e, side) for e in means] if has_band else None for side in ("low", "high"))
    style: Literal["line", "points"] = "line" if len(means) > 1 else "points"  # of one point no line is drawn
    return Line(name, x, [e.value for e in means], group, low, high, style)


def _details(result: Result, metric: str) -> Details:
    t = result.trial
    settings = [(k, short(v)) for k, v in t.values.items()]
    end = result.diverged or f"{result.last(metric):.5g}"
    return [("trial", t.id), *settings, (metric, end), ("seed", str(t.seed)), ("seconds", f"{result.seconds:.3g}")]


def _finals_of(verdict: Verdict, name: str, study: int) -> list[Result]:
    return [verdict.results[t.id] for t in verdict.study.finals_of(name, study, verdict.results)]


def _finals(verdict: Verdict, name: str) -> list[Result]:
    return [r for s in range(verdict.study.studies) for r in _finals_of(verdict, name, s)]


def _whole(verdict: Verdict, name: str, study: int, metric: str) -> list[Mapping[str, Sequence[float]]]:
    """The curves of one study's winner that have the metric to their ends."""
    return [r.curve for r in _finals_of(verdict, name, study) if r.diverged is None and metric in r.curve]


def _searched(verdict: Verdict, name: str) -> list[Result]:
    study = verdict.study
    return [verdict.results[t.id] for s in range(study.studies) for t in study.searches(name, s)]


def report_studies(folders: Sequence[Path]) -> str:
    """The page of several finished studies: their verdicts, and a performance profile over their workloads.

    Args:
        folders: with a verdict.json each.
    """
    verdicts = [json.loads((folder / "verdict.json").read_text()) for folder in folders]
    found = dict(zip(names_of(folders), verdicts, strict=True))
    parts = [Section(name, [verdict["words"][0], verdict["words"][1:]]) for name, verdict in found.items()]
    title = next(iter(found)) if len(found) == 1 else f"{len(found)} studies"
    return page(title, [*parts, Section("Over all of them", [profile(found)])])


def profile(verdicts: Mapping[str, Mapping[str, Any]]) -> Chart | str:
    """The share of workloads that each contender solves within a factor of the best one's steps.

    Args:
        verdicts: by study what verdict.json holds.
    """
    common = [
        n for n in next(iter(verdicts.values()))["standings"] if all(n in v["standings"] for v in verdicts.values())
    ]
    steps = {n: [v["standings"][n]["steps"] for v in verdicts.values()] for n in common}
    if not common or any(s is None for row in steps.values() for s in row):
        return "No performance profile: it needs contenders that are in every study, and a target's value in each."
    factors = np.geomspace(1, 4, 61)
    shares = statistics.performance_profiles({n: [float(s) for s in row] for n, row in steps.items()}, factors)
    lines = [Line(n, list(factors), list(y), group, style="steps") for group, (n, y) in enumerate(shares.items())]
    return Chart("profile", "Performance profile", "factor of the best one's steps to the target", "share of workloads",
                 lines, note="Dolan and Moré 2002; the median steps of each study's winners.")  # fmt: skip
