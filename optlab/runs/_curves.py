"""curves.png: the loss, the metrics and the learning rate of a run over its steps."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from optlab.runs._metrics import COUNTS, read_metrics
from optlab.runs._summary import read_summary

_STYLES: dict[str, dict[str, Any]] = {
    "train": {"alpha": 0.6, "lw": 1},
    "validation": {"marker": "o", "ms": 3},
    "test": {"marker": "*", "ms": 9, "lw": 0},
}
_LOGARITHMIC = {"loss", "gradient_norm", "update_norm", "update_to_weight", "sigma_max", "sigma_median", "sigma_min"}


PANELS = 6
WIDTH = 95  # characters of a title's line that the picture has room for
SATURATED = 0.9  # from here on an accuracy's last digits matter: its error is drawn, on a logarithmic axis


def plot_curves(run: str | Path) -> Path:
    """Draws the metrics of a run folder, and returns the picture's path.

    The title names the run, its optimizer and its best evaluation; a dashed line is the target. Of more metrics than
    six panels have room for, the last line names those that are left out.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    run = Path(run)
    records, summary = read_metrics(run), read_summary(run) or {}
    keys = list(dict.fromkeys(key for r in records for key in r if key not in (*COUNTS, "skipped")))
    every = sorted({key.split("/")[-1] for key in keys}, key=_order)
    names, target = every[:PANELS], summary.get("target") or {}
    figure = Figure(figsize=(7, 2.2 * len(names) + 0.4), layout="constrained")
    FigureCanvasAgg(figure)
    for axes, name in zip(figure.subplots(len(names), sharex=True, squeeze=False)[:, 0], names, strict=True):
        lines = {k: [(r["step"], r[k]) for r in records if k in r] for k in keys if k.split("/")[-1] == name}
        is_error = name == "accuracy" and max(v for points in lines.values() for _, v in points) >= SATURATED
        for key, points in lines.items():  # one line a split, or a probe
            steps, values = zip(*points, strict=True)
            shown = [1 - v for v in values] if is_error else values
            axes.plot(steps, shown, label=key, **_STYLES.get(key.split("/")[0], {}))
        if target.get("value") is not None and str(target.get("metric")).split("/")[-1] == name:
            goal = 1 - target["value"] if is_error else target["value"]
            axes.axhline(goal, ls="--", lw=1, color="gray", label=f"target {target['value']:g}")
        axes.set_ylabel("1 − accuracy" if is_error else name)
        if is_error:
            axes.set_yscale("log", nonpositive="mask")
        elif name in _LOGARITHMIC and all(v > 0 for line in axes.lines for v in line.get_ydata()):
            axes.set_yscale("log")
        axes.grid(alpha=0.3)
        axes.legend(fontsize=8)
    if epoch := records[-1].get("epoch"):
        _add_epochs(figure.axes[0], epoch / records[-1]["step"])
    left_out = f"\nnot drawn: {', '.join(every[PANELS:])}" if len(every) > PANELS else ""
    axes.xaxis.get_major_locator().set_params(integer=True)
    axes.set_xlabel(f"step{left_out}")
    figure.suptitle(_title(run, summary), fontsize=10)
    figure.savefig(run / "curves.png", dpi=110)
    return run / "curves.png"


def _add_epochs(axes: Any, per_step: float) -> None:
    """Adds an abscissa of epochs above the steps'."""

    def epochs(steps: Any) -> Any:
        return steps * per_step

    def steps(epochs: Any) -> Any:
        return epochs / per_step

    axes.secondary_xaxis("top", functions=(epochs, steps)).set_xlabel("epoch")


def _title(run: Path, summary: Mapping[str, Any]) -> str:
    parts = [run.name]
    try:
        optimizer = json.loads((run / "config.json").read_text())["config"]["optimizer"]
        rate = optimizer["arguments"].get("learning_rate")
        parts.append(optimizer["name"] + (f", learning rate {rate:g}" if isinstance(rate, int | float) else ""))
    except (OSError, ValueError, KeyError, TypeError):  # a run of Python's, or one whose config.json is gone
        pass
    if best := summary.get("best"):
        parts.append(f"best {summary['target']['metric']} {best['value']:.4g} at step {best['step']}")
    if len("   ".join(parts)) <= WIDTH:
        return "   ".join(parts)
    name = parts[0] if len(parts[0]) <= WIDTH else f"{parts[0][: WIDTH - 1]}…"
    return "\n".join(filter(None, [name, "   ".join(parts[1:])]))


def _order(name: str) -> tuple[int, str]:
    return panel_rank(name), name


def panel_rank(name: str) -> int:
    """The place of a metric's panel: loss first, then metrics, then learning rate and gradient norm."""
    return {"loss": 0, "learning_rate": 2, "gradient_norm": 3}.get(name, 1)
