"""curves.png: the loss, the metrics and the learning rate of a run over its steps."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from optlab.runs._metrics import read_metrics

_STYLES: dict[str, dict[str, Any]] = {
    "train": {"alpha": 0.6, "lw": 1},
    "validation": {"marker": "o", "ms": 3},
    "test": {"marker": "*", "ms": 9, "lw": 0},
}
_LOGARITHMIC = {"loss", "gradient_norm", "update_norm", "update_to_weight", "sigma_max", "sigma_median", "sigma_min"}


def plot_curves(run: str | Path) -> Path:
    """Draws the metrics of a run folder, and returns the picture's path."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    run = Path(run)
    records = read_metrics(run)
    keys = list(dict.fromkeys(key for r in records for key in r if key not in ("step", "skipped")))
    names = sorted({key.split("/")[-1] for key in keys}, key=_order)
    figure = Figure(figsize=(7, 2.2 * len(names)), layout="constrained")
    FigureCanvasAgg(figure)
    for axes, name in zip(figure.subplots(len(names), sharex=True, squeeze=False)[:, 0], names, strict=True):
        for key in (key for key in keys if key.split("/")[-1] == name):  # one line a split, or a probe
            points = [(r["step"], r[key]) for r in records if key in r]
            axes.plot(*zip(*points, strict=True), label=key, **_STYLES.get(key.split("/")[0], {}))
        axes.set_ylabel(name)
        if name in _LOGARITHMIC and all(v > 0 for line in axes.lines for v in line.get_ydata()):
            axes.set_yscale("log")
        axes.grid(alpha=0.3)
        axes.legend(fontsize=8)
    axes.set_xlabel("step")
    figure.savefig(run / "curves.png", dpi=110)
    return run / "curves.png"


def _order(name: str) -> tuple[int, str]:
    """A sort key: loss first, then metrics, then learning rate and gradient norm."""
    return ({"loss": 0, "learning_rate": 2, "gradient_norm": 3}.get(name, 1), name)
