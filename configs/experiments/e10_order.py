"""E10. The order of the examples: shuffled every epoch, with replacement, shuffled once, as they stand, by class.

"Shuffle your data" is on every checklist. Here the training images of the digits come in five orders: shuffled anew in
every epoch, drawn with replacement, in one order that was shuffled once, in the data set's own order (apparently one
writer after another), and sorted by class. The network has 64 hidden units and is trained by SGD with momentum 0.9 on
batches of 32, at a large and at a small learning rate.
"""

import dataclasses

import matplotlib.pyplot as plt
import numpy as np
from shared import Page, band, estimate, main

import optlab
from optlab import data
from optlab.models import mlp
from optlab.report import Table
from optlab.training import Workload, accuracy, train

BATCH, EVERY = 32, 5
PER_EPOCH = 1_297 // BATCH


def workload(order, seed):
    """The digits with one of the five orders; shuffled once, every seed has its own."""
    source = data.digits()
    if order in ("shuffled once", "ordered by class"):
        rows = source.train.take(np.arange(len(source.train)))
        once = np.random.default_rng(seed).permutation(len(source.train))
        by_class = np.argsort(rows["labels"], kind="stable")
        new = once if order == "shuffled once" else by_class
        held = {"validation": 0, "test": 0}
        source = dataclasses.replace(source, train=data.arrays(rows["inputs"][new], rows["labels"][new], **held).train)
    draw = {"shuffled": "shuffled", "with replacement": "replacement"}.get(order, "ordered")
    return Workload.from_model(
        mlp(outputs=10, widths=[64]), source, metrics={"accuracy": accuracy}, batch_size=BATCH, draw=draw
    )


def errors(order, rate, seeds, steps):
    """Validation error along training, in percent, (seeds, records), and the steps."""
    histories = [
        train(workload(order, s), optlab.sgd(rate, momentum=0.9), steps=steps, seed=s, evaluate_every=EVERY)
        for s in seeds
    ]
    at = histories[0]["validation/accuracy"][0]
    return at, np.array([100 * (1 - h["validation/accuracy"][1]) for h in histories])


def measure(smoke: bool) -> Page:
    seeds, steps = (range(2), 20) if smoke else (range(4), 5 * PER_EPOCH)
    orders = ("shuffled", "with replacement", "shuffled once", "as they stand", "ordered by class")
    figure, axes = plt.subplots(1, 2, figsize=(9, 3), sharey=True)
    rows, found = [], {}
    for rate, ax in zip((0.1, 0.01), axes, strict=True):
        for order in orders:
            at, curves = errors(order, rate, seeds, steps)
            last = curves[:, -(PER_EPOCH // EVERY) :]
            mean_error, worst = last.mean(1), last.max(1)
            found[order, rate] = np.mean(mean_error), np.mean(worst)
            rows.append([order, f"{rate:g}", estimate(curves[:, -1], 2), estimate(mean_error, 2), estimate(worst, 2)])
            band(ax, at, curves, marker=".", markersize=3, linewidth=1, label=order)
        ax.set(xlabel="step", yscale="log", title=f"η = {rate:g}")
    axes[0].set_ylabel("validation error, %, all seeds")
    axes[1].legend(fontsize=8)
    columns = ["order", "η", "validation error at the end, %", "mean over the last epoch", "worst in the last epoch"]
    sorted_, small = (found["ordered by class", rate] for rate in (0.1, 0.01))
    shuffled = found["shuffled", 0.1]
    random, own = [found[order, 0.1][0] for order in orders[:3]], found["as they stand", 0.1]
    return Page(
        f"{len(seeds)} seeds, {steps} steps (five epochs).",
        [Table(columns, rows)],
        figure,
        f"""
        Sorted by class the network learns the class at hand and forgets the others: over the last epoch its
        error is {sorted_[0]:.0f} % on average and {sorted_[1]:.0f} % at its worst, where shuffled it is
        {shuffled[0]:.1f} % and {shuffled[1]:.1f} %. A small η changes that to {small[0]:.0f} % and
        {small[1]:.0f} %: forgetting is a matter of how far one walks between two visits of a class.

        The three random orders can't be told apart ({min(random):.1f} % to {max(random):.1f} %): in five epochs no loss
        is seen from shuffling once. What costs is that neighbours are alike. They can be so in a file that doesn't
        look sorted: these digits seem to stand writer after writer, and that order ends at {own[0]:.1f} % where random
        ones end at {min(random):.1f} % to {max(random):.1f} %. So shuffle, at least once, also what looks shuffled.
        """,
    )


if __name__ == "__main__":
    main(measure)
