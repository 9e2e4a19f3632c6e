"""The range tests as PNGs."""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from optlab.tuning._errors import RangeError

if TYPE_CHECKING:
    from optlab.tuning._batches import BatchRange
    from optlab.tuning._learning_rates import LrRange

COLORS = {"flat": "tab:blue", "good": "tab:green", "explodes": "tab:red"}


def check_free(path: str | Path) -> Path:
    """Returns the place of a new picture.

    Raises:
        RangeError: if something is there already, or the name isn't a PNG's.
    """
    path = Path(path).expanduser()
    if path.suffix != ".png":
        raise RangeError(f"the picture must be a .png, got {path}")
    if path.exists():
        raise RangeError(f"{path} is there already: name another place, or delete it")
    return path


def draw_lr_range(found: LrRange, path: str | Path) -> Path:
    """Draws the short trainings' losses against the rate, and one loss curve of each regime."""
    path = check_free(path)
    figure, (left, right) = _figure(2, found.name)
    regimes = found.regimes
    for part, marker, size in ((found.first, "o-", 5), (found.second, "s-", 4), (found.sweep, "^-", 4)):
        shown = [t for t in part if math.isfinite(t.end(found.metric))]
        if shown:
            label = f"{shown[0].steps} steps"
            left.plot([t.rate for t in shown], [t.end(found.metric) for t in shown], marker, ms=size, lw=1, label=label)
    top = found.first[0].start
    for t in found.first:
        left.plot(
            t.rate, min(_finite(t.end(found.metric), top), top), "o", ms=9, mfc="none", color=COLORS[regimes[t.rate]]
        )
    if found.ramp is not None:
        smoothed = found.ramp.smoothed
        left.plot(found.ramp.rates, np.where(smoothed <= 1.2 * top, smoothed, np.nan), color="0.7", lw=1, label="ramp")
    if found.suggestion is not None:
        left.axvline(found.suggestion, ls="--", color="black", lw=1, label=f"suggestion {found.suggestion:.2g}")
    left.set(xscale="log", xlabel="learning rate", ylabel=found.metric, ylim=(None, 1.2 * top))
    left.legend(fontsize=8)
    for regime, color in COLORS.items():
        members = [t for t in found.first if regimes[t.rate] == regime]
        if members:
            t = _typical(members, regime, found.metric)
            right.plot(np.arange(1, len(t.losses) + 1), t.losses, color=color, lw=1, label=f"{regime}: {t.rate:.2g}")
    lowest = min(float(np.min(t.losses)) for t in found.first if len(t.losses))
    right.set(xlabel="step", ylabel="train/loss", ylim=(lowest, 2 * found.first[0].start - lowest))
    right.legend(fontsize=8)
    figure.savefig(path, dpi=110)
    return path


def draw_batch_range(found: BatchRange, path: str | Path) -> Path:
    """Draws steps to the target with the noise scale's prediction, and seconds to it with the throughput."""
    path = check_free(path)
    figure, (left, right) = _figure(2, f"{found.name}   to {found.target.metric} {found.target.value:g}")
    reached = [s for s in found.sizes if s.steps is not None]
    left.plot([s.batch_size for s in reached], [s.steps for s in reached], "o-", label="measured")
    if math.isfinite(found.scale):
        sizes = sorted({round(b) for b in np.geomspace(found.sizes[0].batch_size, found.sizes[-1].batch_size, 50)})
        label = f"noise scale {found.scale:.2g}"
        left.plot(sizes, [found.predicted(b) for b in sizes], "--", color="gray", label=label)
        left.axvline(found.scale, ls=":", color="gray", lw=1)
    left.set(xscale="log", xlabel="batch size", ylabel="steps to target")
    right.plot([s.batch_size for s in reached], [s.seconds_to_target for s in reached], "o-", label="seconds to target")
    right.set(xscale="log", xlabel="batch size", ylabel="seconds to target")
    other = right.twinx()
    sizes_, throughput = zip(*((s.batch_size, s.throughput) for s in found.sizes), strict=True)
    other.plot(sizes_, throughput, "s--", color="tab:orange", ms=4, label="examples/s")
    other.set(ylabel="examples/s")
    if found.suggestion is not None:
        right.axvline(found.suggestion, ls="--", color="black", lw=1, label=f"suggestion {found.suggestion}")
    for axes in (left, right):
        axes.set_xticks([s.batch_size for s in found.sizes], [str(s.batch_size) for s in found.sizes], minor=False)
        axes.minorticks_off()
    _scale(left, [s.steps or math.nan for s in reached] + [found.predicted(s.batch_size) for s in found.sizes])
    _scale(right, [s.seconds_to_target for s in reached])
    _scale(other, list(throughput))
    left.legend(fontsize=8)
    figure.legend(*(a + b for a, b in zip(*(x.get_legend_handles_labels() for x in (right, other)), strict=True)),
                  fontsize=8, loc="outside lower right", ncols=3)  # fmt: skip
    figure.savefig(path, dpi=110)
    return path


def _scale(axes: Any, values: list[float]) -> None:
    """Makes the values' axis logarithmic if they span a decade, with ticks at 1, 2 and 5; else it starts at 0."""
    from matplotlib.ticker import FuncFormatter, LogLocator

    finite = [v for v in values if math.isfinite(v)]
    if finite and max(finite) >= 10 * min(finite) > 0:
        axes.set_yscale("log")
        axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    elif finite:
        axes.set_ylim(0, 1.1 * max(finite))


def _typical(members: list[Any], regime: str, metric: str) -> Any:
    """The lowest flat rate, the best good one, the lowest that explodes."""
    if regime == "good":
        return min(members, key=lambda t: t.end(metric))
    return members[0]


def _finite(value: float, instead: float) -> float:
    return value if math.isfinite(value) else instead


def _figure(panels: int, title: str) -> Any:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(5.5 * panels, 4), layout="constrained")
    FigureCanvasAgg(figure)
    figure.suptitle(title, fontsize=10)
    axes = figure.subplots(1, panels)
    for a in axes:
        a.grid(alpha=0.3)
    return figure, axes
