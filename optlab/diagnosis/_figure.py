"""diagnosis.png: the evidence of a diagnosis, drawn."""

from __future__ import annotations

import textwrap
from pathlib import Path
from typing import Any

import numpy as np

from optlab.diagnosis._evidence import Evidence

LAYERS = 24  # marks; of more, those with the smallest and the largest gradients


def draw(evidence: Evidence, title: str, file: str | Path) -> None:
    """Draws losses, gradient norm and learning rate over the steps, and the layers' gradients where they are known."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    others = [name for name in ("train/gradient_norm", "learning_rate") if len(evidence.curve(name)[1])]
    layers = [x for x in evidence.layers if x.is_matrix]
    panels = 1 + len(others) + bool(layers)
    figure = Figure(figsize=(7, 2.2 * panels + 0.4), layout="constrained")
    FigureCanvasAgg(figure)
    loss, *rest = figure.subplots(panels, squeeze=False)[:, 0]
    _losses(loss, evidence)
    for axes, name in zip(rest, others, strict=False):
        axes.plot(*evidence.curve(name), lw=1)
        axes.set_ylabel(name.split("/")[-1])
        axes.set_yscale("log", nonpositive="mask")
    for axes in (loss, *rest[: len(others)]):
        axes.grid(alpha=0.3)
        axes.set_xlabel("step")
    if layers:
        _gradients(rest[-1], evidence, layers)
    figure.suptitle("\n".join(textwrap.wrap(title, 80)), fontsize=10)
    figure.savefig(file, dpi=110)


def _losses(axes: Any, e: Evidence) -> None:
    steps, losses = e.curve("train/loss")
    axes.plot(steps, losses, lw=1, alpha=0.4, color="C0", label="train/loss")
    axes.plot(steps, e.smooth, lw=1.5, color="C0", label="its running median")
    if len(e.validation):
        axes.plot(*e.curve("validation/loss"), marker="o", ms=3, lw=1, color="C1", label="validation/loss")
    if e.chance is not None:
        axes.axhline(e.chance, ls="--", lw=1, color="gray", label="a uniform guess")
    axes.set_ylabel("loss")
    if len(losses) and losses.min() > 0 and losses.max() > 20 * losses.min():
        axes.set_yscale("log")
    axes.legend(fontsize=8)


def _gradients(axes: Any, e: Evidence, layers: list[Any]) -> None:
    if len(layers) > LAYERS:
        kept = np.argsort([x.gradient for x in layers])
        chosen = sorted([*kept[: LAYERS // 2], *kept[-LAYERS // 2 :]])
        layers = [layers[i] for i in chosen]
    norms = np.array([x.gradient for x in layers])
    axes.plot(norms, range(len(layers)), "o", ms=5)
    axes.set_yticks(range(len(layers)), [x.path for x in layers], fontsize=6)
    if norms.any():
        axes.set_xscale("log", nonpositive="mask")
        axes.set_xlim(norms[norms > 0].min() / 10, norms.max() * 10)
    axes.grid(alpha=0.3)
    axes.set_xlabel(f"gradient norm at step {e.at}")
