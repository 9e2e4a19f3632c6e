"""E4. The assignment, shortened: SGD with momentum, Adam and AdamW at η = 0.001, 0.01 and 0.1 on CIFAR-10.

The assignment is ResNet-20 on CIFAR-10 by three optimizers at three learning rates, warm-up and cosine, validation
accuracy against epochs: which wins? In full it needs an accelerator (`optlab compare configs/assignment_resnet20.py`).
Here it is cut down to two CPU cores, at every place: images averaged to 16 × 16 pixels, a ResNet-8 of width 8 (20,000
parameters) in the place of a ResNet-20 of width 16 (270,000), and three epochs in the place of thirty. Mirrored and
shifted images, the warm-up and the cosine are the assignment's. By `optlab.compare` the grid is trained in each of
three studies, with the same initializations and batches for all, and every study's winners are trained afresh. Give
`--data FOLDER` with cifar-10-batches-bin in it; without it the digits stand in.
"""

import functools

import matplotlib.pyplot as plt
import numpy as np
from flax import linen as nn
from shared import Page, band, estimate, main

import optlab
from optlab import data, models
from optlab.compare import choice
from optlab.config import Target
from optlab.report import Table
from optlab.training import Workload, accuracy

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


def searched(verdict):
    """Validation accuracy in percent of the searches, by name and rate, (studies, evaluations)."""
    found = {}
    for result in sorted(verdict.results.values(), key=lambda result: result.trial.study):
        if not result.trial.is_final:
            curve = 100 * np.array(result.curve["validation/accuracy"])
            found.setdefault((result.trial.contender, result.trial.values["learning_rate"]), []).append(curve)
    return {key: np.array(curves) for key, curves in found.items()}


def measure(smoke: bool, path: str | None = None) -> Page:
    source = data.digits() if path is None else data.cifar10(str(path), validation=1_000)
    workload = Workload.from_model(
        Halved(),
        source,
        metrics={"accuracy": accuracy},
        batch_size=64,
        target=Target(metric="validation/accuracy", mode="max"),
    )
    epoch = len(source.train) // 64
    size = (
        {"steps": 4, "studies": 2, "evaluate_every": 2}
        if smoke
        else {"steps": 3 * epoch, "studies": 3, "evaluate_every": epoch // 4}
    )
    rates, names = (RATES[:2], list(CONTENDERS)[:2]) if smoke else (RATES, list(CONTENDERS))
    verdict = optlab.compare(
        {name: CONTENDERS[name] for name in names},
        workload,
        spaces={name: {"learning_rate": choice(*rates)} for name in names},
        design="grid",
        executor="series",  # side by side these convolutions are slower on a CPU
        paired=True,
        quiet=True,
        **size,
    )
    curves = searched(verdict)
    ends = {key: found[:, -1] for key, found in curves.items()}
    at = 64 * np.array(next(iter(verdict.results.values())).curve["step"]) / len(source.train)
    figure, axes = plt.subplots(1, len(names), figsize=(10, 3), sharey=True, squeeze=False)
    rows = []
    for name, ax in zip(names, axes[0], strict=True):
        for rate in rates:
            band(ax, at, curves[name, rate], marker=".", label=f"η = {rate:g}")
        ax.set(title=name, xlabel="epochs")
        standing = verdict.standings[name]
        best = ", ".join(f"{b['learning_rate']:g}" for b in standing.best)
        tuned = estimate(100 * np.array(standing.scores), 1)
        rows.append([name, *(estimate(ends[name, rate], 1) for rate in rates), best, tuned])
    axes[0, 0].set_ylabel("validation accuracy, %, all seeds")
    axes[0, 0].legend(fontsize=8)
    figure.tight_layout()
    means = {name: [ends[name, rate].mean() for rate in rates] for name in names}
    spreads = ", ".join(f"{max(m) - min(m):.0f} ({name})" for name, m in means.items())
    one_rate = {rate: max(names, key=lambda name, rate=rate: ends[name, rate].mean()) for rate in rates}
    winners = ", ".join(f"{name} at η = {rate:g}" for rate, name in one_rate.items())
    said = " ".join(str(verdict).splitlines()[1 : len(names)])
    columns = ["validation accuracy, %", *(f"η = {rate:g}" for rate in rates), "best η, study by study", "test, tuned"]
    return Page(
        f"{size['studies']} studies of {len(rates)} trials each, {size['steps']:,} steps, {64 * size['steps']:,} "
        f"images each; {len(source.validation):,} to validate.",
        [Table(columns, rows)],
        figure,
        f"""
        Which wins? {said} The grid is the assignment's, and isn't fair: SGD takes its largest rate in every study, and
        what a larger one would do isn't known. AdamW alone has a decay. AdamW's mean test accuracy, tuned, lies
        {100 * (verdict.standings[names[-1]].mean.value - verdict.standings[names[1]].mean.value):.1f} points above
        Adam's, well inside of the latter's interval.

        The learning rate decides more than the optimizer. Between the best and the worst of three lie {spreads} points.
        With one rate for all, that rate would say who is ahead, though mostly by less than an interval: {winners}. At η
        = {rates[0]:g} SGD ends at {means[names[0]][0]:.0f} %, far behind; at η = {rates[-1]:g} it is level with Adam,
        and AdamW, at {means[names[-1]][-1]:.0f} %, is the last.

        All this is after {size["steps"] / epoch:.0f} epochs of a small network; about the end of a long training, where
        accuracies are around 90 %, it says nothing.
        """,
    )


if __name__ == "__main__":
    main(measure)
