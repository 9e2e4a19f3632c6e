"""The report of ordinary runs: their curves over each other, and where their configs differ."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from optlab.config import ConfigError, flatten, text_of
from optlab.report._charts import Chart, Line, distinct
from optlab.report._page import Section, Table, page
from optlab.runs import Run
from optlab.runs._curves import panel_rank
from optlab.runs._metrics import COUNTS

_LOGARITHMIC = {"loss", "gradient_norm"}


def report_runs(folders: Sequence[str | Path]) -> str:
    """The page of some run folders.

    Raises:
        FileNotFoundError: for a folder that isn't there.
        ConfigError: for one without metrics.
    """
    runs = [Run(folder) for folder in folders]
    names = names_of([run.folder for run in runs])
    metrics = []
    for run in runs:
        metrics.append(run.metrics())
        if not metrics[-1]:
            raise ConfigError(
                f"{run.folder} has no metrics.jsonl with a logged step: name run folders, such as runs/digits"
            )
    title = names[0] if len(runs) == 1 else f"{len(runs)} runs"
    return page(
        title,
        [
            Section("Runs", [_outcomes(runs, names, metrics)]),
            *([Section("Where their configs differ", [_differences(runs, names)])] if len(runs) > 1 else []),
            Section("Curves", _charts(names, metrics)),
        ],
    )


def names_of(folders: Sequence[Path]) -> list[str]:
    """The folders' names, or as much of their paths as it takes to tell them apart."""
    whole = [folder.resolve().parts for folder in folders]
    for depth in range(1, max(map(len, whole)) + 1):
        found = ["/".join(parts[-depth:]) for parts in whole]
        if len(set(found)) == len(found):
            return found
    raise ConfigError(f"{folders[0]} is named twice")


def _outcomes(runs: Sequence[Run], names: Sequence[str], metrics: Sequence[Any]) -> Table:
    """The end of each run: its last values of everything on held-out splits."""
    held_out = sorted({k for m in metrics for k in m if k.startswith(("validation/", "test/"))})
    shown = ["train/loss", *held_out]
    rows = []
    for run, name, columns in zip(runs, names, metrics, strict=True):
        summary = run.summary or {}
        last = [_last(columns.get(k, [])) for k in shown]
        seconds = _last(columns.get("seconds", []))
        rows.append(
            [name, str(summary.get("outcome", "not ended")), f"{int(columns['step'][-1]):,}",
             "–" if math.isnan(seconds) else f"{seconds:.1f}", *("–" if math.isnan(v) else f"{v:.4g}" for v in last)]
        )  # fmt: skip
    return Table(["run", "outcome", "steps", "seconds", *shown], rows)


def _last(values: Any) -> float:
    return next((float(v) for v in reversed(values) if not math.isnan(v)), math.nan)


def _differences(runs: Sequence[Run], names: Sequence[str]) -> Table | str:
    """Every key of the configs whose value isn't the same in all runs."""
    there = [(run.folder / "config.json").exists() for run in runs]
    if not all(there):
        return f"{names[there.index(False)]} has no config.json: what it was run with isn't known."
    try:
        flat = [{k: _text(v) for k, v in flatten(run.config).items()} for run in runs]
    except ConfigError as error:  # one of Python's `train`, which has none
        return f"Their configs can't be compared: {error}."
    keys = dict.fromkeys(key for one in flat for key in one)
    rows = [[key, *(one.get(key, "–") for one in flat)] for key in keys if len({one.get(key) for one in flat}) > 1]
    return Table(["key", *names], rows) if rows else "Their configs are the same."


def _text(value: Any) -> str:
    try:
        return text_of(value)
    except (TypeError, ValueError):
        return json.dumps(value, default=str)


def _charts(names: Sequence[str], metrics: Sequence[Any]) -> list[Chart]:
    """A chart for every metric, with a line for every run that has it, over steps and the counts that all runs have."""
    keys = {k for columns in metrics for k in columns if k not in (*COUNTS, "skipped")}
    counts = [c for c in COUNTS[1:] if all(c in columns and not np.isnan(columns[c]).any() for columns in metrics)]
    charts = []
    for key in sorted(keys, key=lambda k: (panel_rank(k.rpartition("/")[2]), k)):
        lines: list[Line] = []
        views: dict[str, list[Any]] = {c: [] for c in counts}
        for group, (name, columns) in enumerate(zip(names, metrics, strict=True)):
            there = np.flatnonzero(~np.isnan(columns.get(key, ())))
            if there.size:
                x, y = columns["step"][there], columns[key][there]
                lines.append(Line(name, x, y, group, style="line" if there.size > 1 else "points"))
                for count in counts:
                    views[count].append(columns[count][there])
        tail = key.rpartition("/")[2]
        charts.append(Chart(key, key, "steps", tail, lines, log_y=tail in _LOGARITHMIC, views=views))
    return distinct(charts)
