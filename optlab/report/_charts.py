"""Charts as data: what is drawn, for Plotly in the page and for Matplotlib in a PNG."""

from __future__ import annotations

import dataclasses
import itertools
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, TypeAlias

# Okabe and Ito 2008: told apart by everyone, on white and on black.
COLOURS = ("#0072b2", "#e69f00", "#009e73", "#cc79a7", "#d55e00", "#56b4e9", "#8c8c8c", "#b8a900")

Details: TypeAlias = Sequence[tuple[str, str]]


@dataclass(frozen=True)
class Line:
    """One curve, or a cloud of points.

    Attributes:
        name: in the legend; lines of one name are toggled together.
        x: the abscissas,
        y: and the ordinates; NaN is a gap.
        group: which colour.
        low: the band's lower end, if there is one,
        high: and its upper end.
        style: how it is drawn.
        details: for each point what a click on it shows, as (label, value).
        is_in_legend: whether the legend names it.
    """

    name: str
    x: Sequence[float]
    y: Sequence[float]
    group: int = 0
    low: Sequence[float] | None = None
    high: Sequence[float] | None = None
    style: Literal["line", "thin", "dashed", "points", "steps"] = "line"
    details: Sequence[Details] = ()
    is_in_legend: bool = True

    @property
    def colour(self) -> str:
        return COLOURS[self.group % len(COLOURS)]


@dataclass(frozen=True)
class Chart:
    """Lines over one pair of axes.

    Attributes:
        key: names the PNG and the place in the page, see `distinct`.
        title: above it.
        x: the abscissa's label.
        y: the ordinate's label.
        lines: what is drawn.
        log_x: whether the abscissa is logarithmic,
        log_y: and the ordinate; only where all is positive.
        ticks: names of the abscissas 0, 1, …
        views: by another abscissa's label, such as seconds, the abscissas of each line.
        note: a sentence below it.
    """

    key: str
    title: str
    x: str
    y: str
    lines: Sequence[Line]
    log_x: bool = False
    log_y: bool = False
    ticks: Sequence[str] = ()
    views: Mapping[str, Sequence[Sequence[float]]] = field(default_factory=dict)
    note: str = ""

    @property
    def is_log_x(self) -> bool:
        return self.log_x and _is_positive(line.x for line in self.lines)

    @property
    def is_log_y(self) -> bool:
        return self.log_y and _is_positive(line.y for line in self.lines)

    def y_range(self) -> tuple[float, float] | None:
        """The range that the ordinate shows: all lines, and of bands no more than the lines' span to either side.

        A band of two studies is six times as wide as all curves together, and would leave nothing of them.
        """
        scale = math.log10 if self.is_log_y else float
        lines = [scale(v) for line in self.lines for v in line.y if math.isfinite(v)]
        if not lines:
            return None
        bands = [v for line in self.lines for v in (*(line.low or ()), *(line.high or ())) if math.isfinite(v)]
        bands = [scale(v) for v in bands if v > 0 or not self.is_log_y]
        low, high = min(lines), max(lines)
        span = high - low or abs(high) or 1.0
        low, high = max(min([low, *bands]), low - span / 2), min(max([high, *bands]), high + span / 2)
        return low - span / 20, high + span / 20


def distinct(charts: Sequence[Chart]) -> list[Chart]:
    """The charts with keys of a few letters, digits and -, no two alike: they name files, and places in a page."""
    found: dict[str, Chart] = {}
    for chart in charts:
        key = name = re.sub("[^A-Za-z0-9]", "-", chart.key)[:60]
        for number in itertools.count(2):
            if name not in found:
                break
            name = f"{key}-{number}"
        found[name] = dataclasses.replace(chart, key=name)
    return list(found.values())


def figure(chart: Chart) -> dict[str, Any]:
    """The chart for Plotly.js: its traces, its layout, and its views' abscissas; JSON data."""
    shown = chart.y_range()
    floor = 10 ** shown[0] if chart.is_log_y and shown is not None else -math.inf
    bands = [(i, edge) for i, line in enumerate(chart.lines) for edge in _band(line, floor)]
    traces = [*bands, *((i, _trace(line)) for i, line in enumerate(chart.lines))]  # the lines over all bands
    axis = {"automargin": True, "zeroline": False, "exponentformat": "power"}
    layout: dict[str, Any] = {
        "xaxis": {**axis, "title": {"text": chart.x}, "type": "log" if chart.is_log_x else "linear"},
        "yaxis": {**axis, "title": {"text": chart.y}, "type": "log" if chart.is_log_y else "linear"},
        "margin": {"l": 8, "r": 8, "t": 8, "b": 8},
        "legend": {"orientation": "h", "y": 1.02, "yanchor": "bottom", "x": 0},
        "hovermode": "closest",
    }
    if shown is not None:
        layout["yaxis"]["range"] = shown
    if chart.ticks:
        layout["xaxis"] |= {"tickvals": list(range(len(chart.ticks))), "ticktext": list(chart.ticks), "tickangle": 0}
        layout["xaxis"]["range"] = [-0.45, len(chart.ticks) - 0.55]  # room for the outer names
        layout["yaxis"] |= {"showticklabels": False}
    views = {label: [_numbers(columns[i]) for i, _ in traces] for label, columns in chart.views.items()}
    return {"id": chart.key, "data": [trace for _, trace in traces], "layout": layout, "x": chart.x, "views": views}


def _band(line: Line, floor: float) -> list[dict[str, Any]]:
    """Its two edges, if there is one, with the area between them. On a logarithmic axis 0 would be a gap: the floor."""
    if line.low is None or line.high is None:
        return []
    edge = {**_common(line), "mode": "lines", "line": {"width": 0}, "showlegend": False, "hoverinfo": "skip"}
    filled = {"fill": "tonexty", "fillcolor": _faded(line.colour, 0.14)}
    low, high = ([max(v, floor) for v in side] for side in (line.low, line.high))
    return [{**edge, "y": _numbers(low)}, {**edge, "y": _numbers(high), **filled}]


def _trace(line: Line) -> dict[str, Any]:
    trace: dict[str, Any] = {
        **_common(line),
        "y": _numbers(line.y),
        "mode": "markers" if line.style == "points" else "lines",
        "line": {
            "color": _faded(line.colour, 0.45) if line.style == "thin" else line.colour,
            "width": 1 if line.style == "thin" else 2,
            "dash": "dash" if line.style == "dashed" else "solid",
            "shape": "hv" if line.style == "steps" else "linear",
        },
        "marker": {"color": line.colour, "size": 8},
        "showlegend": line.is_in_legend,
    }
    if line.details:
        trace["customdata"] = [[list(pair) for pair in details] for details in line.details]
    return trace


def _common(line: Line) -> dict[str, Any]:
    """A line and its band have one abscissa, and are toggled together."""
    return {"x": _numbers(line.x), "legendgroup": line.name, "name": line.name}


def draw(chart: Chart, path: str | Path) -> None:
    """Draws the chart as a PNG, by Matplotlib."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    made = Figure(figsize=(7, 4), layout="constrained")
    FigureCanvasAgg(made)
    axes = made.subplots()
    named: set[str] = set()
    for line in chart.lines:
        label = line.name if line.is_in_legend and line.name not in named else None
        named.add(line.name)
        if line.low is not None and line.high is not None:
            axes.fill_between(line.x, line.low, line.high, color=line.colour, alpha=0.18, lw=0)
        if line.style == "points":
            axes.plot(line.x, line.y, "o", ms=4, color=line.colour, label=label)
        else:
            how: dict[str, Any] = {
                "ls": "--" if line.style == "dashed" else "-",
                "lw": 0.7 if line.style == "thin" else 1.5,
            }
            how["drawstyle"] = "steps-post" if line.style == "steps" else "default"
            axes.plot(line.x, line.y, color=line.colour, label=label, **how)
    axes.set(title=chart.title, xlabel=chart.x, ylabel=chart.y)
    if chart.ticks:
        axes.set_xticks(range(len(chart.ticks)), [t.replace("<br>", "\n") for t in chart.ticks])
        axes.set_yticks([])
    if chart.is_log_x:
        axes.set_xscale("log")
    if chart.is_log_y:
        axes.set_yscale("log")
    if (shown := chart.y_range()) is not None:
        axes.set_ylim(*(10**v if chart.is_log_y else v for v in shown))
    axes.grid(alpha=0.3)
    if axes.get_legend_handles_labels()[0]:
        axes.legend(fontsize=8)
    made.savefig(path, dpi=110)


def _numbers(values: Sequence[float]) -> list[float | None]:
    """As JSON has them: what isn't finite is null."""
    return [float(v) if math.isfinite(v) else None for v in values]


def _faded(colour: str, alpha: float) -> str:
    return f"rgba({', '.join(str(int(colour[i : i + 2], 16)) for i in (1, 3, 5))}, {alpha})"


def _is_positive(columns: Any) -> bool:
    return all(v > 0 for column in columns for v in column if not math.isnan(v))
