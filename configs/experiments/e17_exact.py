"""E17. Many noisy steps or few exact ones, for the same number of examples; early and late, SGD and Adam.

The digits and a network of 64 hidden units. A budget of examples buys steps: of 16 examples, of 128, or of all 1,297,
whose gradient is exact. Each batch size and optimizer has its best of nine constant learning rates for that budget, and
the loss over all training images is what counts.
"""

import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
from shared import Learner, Page, at_values, band, digits, estimate, main

import optlab
from optlab.models import mlp
from optlab.report import Table

CONTENDERS = {"SGD": optlab.sgd, "Adam": optlab.adam}


def losses(learner, factory, rates, steps, keys):
    """Of all training images at the end, (rates, seeds)."""

    def run(rate, key):
        return learner.mean_loss(learner.path(factory(rate), steps, key).final, learner.train)

    return np.asarray(jax.vmap(jax.vmap(run, (None, 0)), (0, None))(rates, keys))


def measure(smoke: bool) -> Page:
    train, *_ = digits()
    size = len(train[0])
    keys = jax.random.split(jax.random.key(0), 2 if smoke else 4)
    rates = jnp.logspace(-3.5, 0.5, 3 if smoke else 9)
    budgets = (1,) if smoke else (1, 4, 16)
    batches = (128, size) if smoke else (16, 128, size)
    rows, curves = [], {}
    for name, factory in CONTENDERS.items():
        for batch_size in batches:
            learner = Learner(mlp(outputs=10, widths=[64]), train, batch_size)
            cells = []
            for epochs in budgets:
                found = losses(learner, factory, rates, epochs * size // batch_size, keys)
                best = int(np.nanargmin(found.mean(1)))
                cells.append(f"{estimate(found[best], 4)} (η = {rates[best]:.2g})")
                curves.setdefault((name, batch_size), []).append(found[best])
            what = "all: exact" if batch_size == size else str(batch_size)
            rows.append([name, what, f"{size / batch_size:.0f}", *cells])
    gaps = [
        [str(n), *(estimate(a - s, 4) for a, s in zip(curves["Adam", n], curves["SGD", n], strict=True))]
        for n in batches
    ]
    figure, ax = plt.subplots(figsize=(6, 3.2))
    for (name, batch_size), curve in curves.items():
        style = "-" if name == "SGD" else "--"
        color = f"C{batches.index(batch_size)}"
        band(ax, budgets, np.transpose(curve), linestyle=style, marker=".", color=color, label=f"{name}, {batch_size}")
    ax.set(xscale="log", yscale="log", xlabel="epochs' worth of examples", ylabel="training loss, all seeds")
    at_values(ax.xaxis, budgets)
    ax.legend(title="optimizer, examples a step", title_fontsize=7, fontsize=7, handlelength=4)
    columns = [
        "optimizer",
        "batch",
        "steps an epoch",
        *(f"training loss after {n} epoch{'s' * (n > 1)}" for n in budgets),
    ]
    middle = len(budgets) // 2
    small, exact = ({n: np.mean(curves[n, b], axis=1) for n in CONTENDERS} for b in (batches[0], size))
    return Page(
        f"{len(keys)} seeds, {len(rates)} learning rates, batches drawn with replacement.",
        [Table(columns, rows), Table(["Adam's loss less SGD's, seed by seed: batch", *columns[3:]], gaps)],
        figure,
        f"""
        After one epoch's worth of examples SGD's small batches are at {small["SGD"][0]:.2f} and its exact gradients at
        {exact["SGD"][0]:.2f}; after {budgets[-1]} at {small["SGD"][-1]:.4f} and {exact["SGD"][-1]:.2f}. An exact step
        costs {size // batches[0]} noisy ones and isn't worth them, neither early nor late: the images are alike, so
        that 16 of them may well point much as all do while the loss is far from its floor (that wasn't measured). A
        network that can fit every image has a floor of zero, so that the noise dies out with the loss.

        "Adam early, SGD late" isn't what is seen. With small batches the two can't be told apart after one epoch
        ({small["Adam"][0]:.2f} for Adam and {small["SGD"][0]:.2f} for SGD) or after {budgets[-1]}
        ({small["Adam"][-1]:.4f} and {small["SGD"][-1]:.4f}). After {budgets[middle]} SGD is ahead by
        {gaps[0][1 + middle]}. With batches of 128 and with exact gradients Adam is ahead after every budget: where few
        steps are made, steps that don't depend on the gradient's size go farther. All this is for equal numbers of
        examples; where a large batch takes the time of a small one, equal time is another question.
        """,
    )


if __name__ == "__main__":
    main(measure)
