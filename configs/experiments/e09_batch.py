"""E9. The batch size: steps and examples to a target, the gradient noise scale, throughput, and the sweet spot.

Courses draw two regimes: at small batches twice the batch halves the steps, beyond the gradient's noise scale it saves
none. `optlab.batch_range` (on the command line `optlab batch-range configs/digits.py`) trains the digits' MLP by SGD to
a validation loss of 0.15, each batch size at the best of three or more constant learning rates, and measures the noise
scale tr Σ/|G|² on the way. Several seeds; the seconds are those of a shared CPU, and rough.
"""

import dataclasses

import matplotlib.pyplot as plt
import numpy as np
from shared import Page, at_values, band, estimate, main

import optlab
from optlab.config import Target
from optlab.report import Table
from optlab.training import Workload


def measure(smoke: bool) -> Page:
    goal = 2.2 if smoke else 0.15
    sizes, steps, seeds = ([64, 256], 20, range(2)) if smoke else ([8, 32, 128, 512, 1_297], 120, range(3))
    workload = dataclasses.replace(Workload.digits(), target=Target(metric="validation/loss", value=goal))
    tests = [
        optlab.batch_range(workload, "sgd", learning_rate=0.3, steps=steps, sizes=sizes, seed=seed) for seed in seeds
    ]
    of = lambda get: np.array([[get(size) for size in test.sizes] for test in tests])  # seeds, sizes
    steps_ = of(lambda s: np.nan if s.steps is None else s.steps)
    pace, rates = of(lambda s: s.throughput), of(lambda s: s.rate)
    predicted = np.array([[test.predicted(size) for size in sizes] for test in tests])
    seconds = of(lambda s: s.seconds_to_target)
    rows = [
        [
            str(size),
            f"{np.median(rates[:, i]):.2g}",
            estimate(steps_[:, i], 0),
            f"{np.median(predicted[:, i]):.0f}",
            estimate(size * steps_[:, i] / 1e3, 1),
            f"{np.median(pace[:, i]):,.0f}",
            f"{1e3 * np.median(seconds[:, i]):.2g}",
        ]
        for i, size in enumerate(sizes)
    ]
    figure, axes = plt.subplots(1, 3, figsize=(11, 3))
    band(axes[0], sizes, steps_, marker=".", label="measured, all seeds")
    axes[0].plot(sizes, np.median(predicted, 0), "--", label="predicted by the noise scale")
    axes[0].set(ylabel="steps to the target")
    axes[0].legend(fontsize=8)
    band(axes[1], sizes, steps_ * sizes, marker=".")
    axes[1].set(ylabel="examples to the target")
    band(axes[2], sizes, seconds, marker=".")
    axes[2].set(ylabel="seconds to the target")
    for ax in axes:
        ax.set(xscale="log", yscale="log", xlabel="batch size")
        at_values(ax.xaxis, sizes)
    figure.tight_layout()
    scale, fitted = np.array([t.scale for t in tests]), np.array([t.fitted for t in tests])
    spots = ", ".join(str(test.suggestion) for test in tests)
    average = steps_.mean(0)
    fall = average[:-1] / average[1:]
    costs = average[-1] * sizes[-1] / (average[0] * sizes[0])
    columns = [
        "batch",
        "best η",
        "steps to the target",
        "predicted",
        "thousand examples",
        "examples a second",
        "ms to the target",
    ]
    return Page(
        f"{len(tests)} seeds, to a validation loss of {goal:g}.",
        [Table(columns, rows)],
        figure,
        f"""
        The two regimes are there. From {sizes[0]} to {sizes[1]} examples the steps fall by a factor of
        {fall[0]:.1f}, for {sizes[1] / sizes[0]:.0f} times the batch; from {sizes[-2]} to {sizes[-1]} by {fall[-1]:.1f}
        (1 is nothing), for {sizes[-1] / sizes[-2]:.1f} times. In examples the smallest batch is the cheapest, and the
        largest costs {costs:.0f} times as many.

        The noise scale says about where the bend is: measured on the way it is {estimate(scale, 0)} examples, and the
        steps themselves would fit {estimate(fitted, 0)}. That is the right order of magnitude and not more. The theory
        is SGD's on a quadratic with one noise scale, and the scale grows while the loss falls.

        The sweet spot is neither. A large batch is faster by the example
        ({np.median(pace[:, -1]) / np.median(pace[:, 0]):.0f} times, from {sizes[0]} to {sizes[-1]}), but not by so
        much as it needs more of them: the least seconds are at {spots} examples, seed by seed. On hardware where a
        large batch costs nearly the time of a small one, the same steps would put it far higher. Measure; don't carry
        it over.
        """,
    )


if __name__ == "__main__":
    main(measure)
