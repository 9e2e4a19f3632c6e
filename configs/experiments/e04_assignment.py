"""E4. The assignment, shortened: SGD with momentum, Adam and AdamW at η = 0.001, 0.01 and 0.1 on CIFAR-10.

The assignment is ResNet-20 on CIFAR-10 by three optimizers at three learning rates, warm-up and cosine, validation
accuracy against epochs: which wins? In full it needs an accelerator (`optlab compare configs/assignment_resnet20.py`).
Here it is cut down to two CPU cores, at every place: images averaged to 16 × 16 pixels, a ResNet-8 of width 8 (20,000
parameters) in the place of a ResNet-20 of width 16 (270,000), and 300 steps of 64 images, two fifths of an epoch.
Mirrored and shifted images, a warm-up over a tenth of the steps and the cosine are the assignment's. Give `--data
FOLDER` with cifar-10-batches-bin in it; without it the digits stand in.
"""

import functools

import matplotlib.pyplot as plt
import numpy as np
from flax import linen as nn
from shared import Page, estimate, main

import optlab
from optlab import data, models, schedules
from optlab.report import Table
from optlab.training import Workload, accuracy, train

CONTENDERS = {
    "SGD, momentum 0.9": functools.partial(optlab.sgd, momentum=0.9),
    "Adam": optlab.adam,
    "AdamW, λ = 0.1": functools.partial(optlab.adamw, weight_decay=0.1),
}
RATES = (0.001, 0.01, 0.1)


class Halved(nn.Module):
    """A ResNet-8 that sees the mean of every 2 × 2 pixels."""

    @nn.compact
    def __call__(self, images_BxHxWxC, *, train: bool = False):
        small = nn.avg_pool(images_BxHxWxC, (2, 2), strides=(2, 2))
        return models.ResNet(10, stages=(1, 1, 1), width=8)(small, train=train)


def accuracies(workload, factory, rate, seeds, steps, every):
    """Validation accuracy in percent, (seeds, evaluations), and the steps; NaN from where a run diverged."""
    curves, at = [], np.arange(every, steps + 1, every)
    for seed in seeds:
        tx = factory(schedules.warmup_cosine(rate, steps, warmup=max(steps // 10, 1)))
        history = train(workload, tx, steps=steps, seed=seed, evaluate_every=every)
        found = dict(zip(*history["validation/accuracy"], strict=True))
        curves.append([100 * found.get(step, np.nan) for step in at])
    return np.array(curves), at


def measure(smoke: bool, path: str | None = None) -> Page:
    source = data.digits() if path is None else data.cifar10(str(path), validation=1_000)
    workload = Workload.from_model(Halved(), source, metrics={"accuracy": accuracy}, batch_size=64)
    seeds, steps, every = (range(2), 4, 2) if smoke else (range(3), 300, 30)
    rates, contenders = (RATES[1:2], dict(list(CONTENDERS.items())[:1])) if smoke else (RATES, CONTENDERS)
    figure, axes = plt.subplots(1, len(contenders), figsize=(10, 3), sharey=True, squeeze=False)
    rows, ends = [], {}
    for (name, factory), ax in zip(contenders.items(), axes[0], strict=True):
        for rate in rates:
            curves, at = accuracies(workload, factory, rate, seeds, steps, every)
            ends[name, rate] = curves[:, -1]
            ax.errorbar(64 * at / len(source.train), curves.mean(0), curves.std(0), capsize=2, label=f"η = {rate:g}")
        rows.append([name, *(estimate(ends[name, rate], 1) for rate in rates)])
        ax.set(title=name, xlabel="epochs")
        ax.legend(fontsize=8, loc="lower right")
    axes[0, 0].set_ylabel("validation accuracy, %")
    figure.tight_layout()
    best = {name: max(rates, key=lambda rate, name=name: ends[name, rate].mean()) for name in contenders}
    order = sorted(contenders, key=lambda name: -ends[name, best[name]].mean())
    cells = {name: f"{estimate(ends[name, best[name]], 1)} % at η = {best[name]:g}" for name in contenders}
    between = [ends[order[0], best[order[0]]] - ends[name, best[name]] for name in order[1:]]
    gaps_said = " and ".join(estimate(gap, 1) for gap in between) or "no"
    others = " and ".join(f"{name} at {cells[name]}" for name in order[1:]) or "alone"
    means = {name: [ends[name, rate].mean() for rate in rates] for name in contenders}
    spread_said = ", ".join(f"{max(m) - min(m):.0f} ({name})" for name, m in means.items())
    return Page(
        f"{len(seeds)} seeds, {64 * steps:,} images each, {len(source.validation):,} to validate.",
        [Table(["optimizer, validation accuracy, %", *(f"η = {rate:g}" for rate in rates)], rows)],
        figure,
        f"""
        (The figure's bars are one standard deviation of the seeds, numpy's with divisor n, about a third of the table's
intervals.) Which wins? Each at its best rate, {order[0]} ends at {cells[order[0]]}, {others}. Between the first and the
        others lie {gaps_said} points, seed by seed and before rounding: three optimizers that can't be told apart by
        {len(seeds)} seeds.

        What can be told apart is the learning rate. Between the best and the worst of three lie {spread_said} points.
        SGD with momentum wants the largest rate of the grid, so that a larger one might do better still, and Adam and
        AdamW the middle one. A comparison of all three at η = {rates[0]:g} "finds" that SGD can't learn, and one at η =
        {rates[-1]:g} that it is as good as the others or better: with one rate for all, the rate decides who wins.

        Adam and AdamW can't be told apart at any of the rates: in {steps} steps there is little to decay. All this is
        after two fifths of an epoch of a small network; about the end of a long training, where accuracies are around
        90 %, it says nothing.
        """,
    )


if __name__ == "__main__":
    main(measure)
