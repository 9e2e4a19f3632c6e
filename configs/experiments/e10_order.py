"""E10. The order of the examples: shuffled every epoch, with replacement, as they stand, and ordered by class.

"Shuffle your data" is on every checklist. Here the training images of the digits come in four orders: shuffled anew in
every epoch, drawn with replacement, in one fixed order that was shuffled once, and sorted by class. The network has 64
hidden units and is trained by SGD with momentum 0.9 on batches of 32, at a large and at a small learning rate.
"""

import dataclasses

import matplotlib.pyplot as plt
import numpy as np
from shared import Page, estimate, main

import optlab
from optlab import data
from optlab.models import mlp
from optlab.report import Table
from optlab.training import Workload, accuracy, train

BATCH, EVERY = 32, 5
PER_EPOCH = 1_297 // BATCH


def workload(order):
    """The digits with one of the four orders."""
    source = data.digits()
    rows = source.train.take(np.arange(len(source.train)))
    if order == "ordered by class":
        by_class = np.argsort(rows["labels"], kind="stable")
        sorted_rows = data.arrays(rows["inputs"][by_class], rows["labels"][by_class], validation=0, test=0)
        source = dataclasses.replace(source, train=sorted_rows.train)
    draw = {"shuffled": "shuffled", "with replacement": "replacement"}.get(order, "ordered")
    return Workload.from_model(
        mlp(outputs=10, widths=[64]), source, metrics={"accuracy": accuracy}, batch_size=BATCH, draw=draw
    )


def errors(order, rate, seeds, steps):
    """Validation error along training, in percent, (seeds, records), and the steps."""
    histories = [
        train(workload(order), optlab.sgd(rate, momentum=0.9), steps=steps, seed=s, evaluate_every=EVERY) for s in seeds
    ]
    at = histories[0]["validation/accuracy"][0]
    return at, np.array([100 * (1 - h["validation/accuracy"][1]) for h in histories])


def measure(smoke: bool) -> Page:
    seeds, steps = (range(2), 20) if smoke else (range(4), 5 * PER_EPOCH)
    orders = ("shuffled", "with replacement", "one fixed order", "ordered by class")
    figure, axes = plt.subplots(1, 2, figsize=(9, 3), sharey=True)
    rows, found = [], {}
    for rate, ax in zip((0.1, 0.01), axes, strict=True):
        for order in orders:
            at, curves = errors(order, rate, seeds, steps)
            last = curves[:, -(PER_EPOCH // EVERY) :]
            mean_error, worst = last.mean(1), last.max(1)
            found[order, rate] = np.mean(mean_error), np.mean(worst)
            rows.append([order, f"{rate:g}", estimate(curves[:, -1], 2), estimate(mean_error, 2), estimate(worst, 2)])
            ax.plot(at, curves.mean(0), ".-", markersize=3, label=order)
        ax.set(xlabel="step", yscale="log", title=f"η = {rate:g}")
    axes[0].set_ylabel("validation error, %")
    axes[1].legend(fontsize=8)
    columns = ["order", "η", "validation error at the end, %", "mean over the last epoch", "worst in the last epoch"]
    sorted_, small = (found["ordered by class", rate] for rate in (0.1, 0.01))
    shuffled = found["shuffled", 0.1]
    random = [found[order, 0.1][0] for order in orders[:3]]
    return Page(
        f"{len(seeds)} seeds, {steps} steps (five epochs).",
        [Table(columns, rows)],
        figure,
        f"""
        Sorted by class the network learns the class at hand and forgets the others: the worst error in the last epoch is
        {sorted_[0]:.0f} % on average over it and {sorted_[1]:.0f} % at its worst, where shuffled it is {shuffled[0]:.1f} %
        and {shuffled[1]:.1f} %. A small η helps ({small[0]:.0f} % and {small[1]:.0f} %), since forgetting is a matter of how
        far one walks between two visits of a class.

        Between the three random orders there is next to nothing ({min(random):.1f} % to {max(random):.1f} %), not even
        between one fixed order and a new one every epoch. "Shuffle in every epoch" is right and cheap; what matters is
        that neighbours in the data aren't alike, once.
        """,
    )


if __name__ == "__main__":
    main(measure)
