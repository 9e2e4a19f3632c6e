"""E15. One cycle and other schedules: what a short and a longer training get out of each.

The one-cycle policy promises "super-convergence": as good in a few epochs as a constant or a stepped rate in many. The
digits, a network of 64 hidden units, SGD with momentum 0.9, batches of 64, trainings of 2, 5 and 15 epochs. Every
schedule has its best of ten peaks for every length; the error counts on 300 test images, the loss on the training ones.
"""

import functools

import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
from shared import Learner, Page, digits, estimate, main

import optlab
from optlab import schedules
from optlab.models import mlp
from optlab.report import Table

SCHEDULES = {
    "constant": lambda peak, steps: schedules.constant(peak),
    "steps (÷10 at each third)": lambda peak, steps: schedules.step_decay(peak, every=max(steps // 3, 1)),
    "1/√t": lambda peak, steps: schedules.inverse_sqrt(peak, timescale=max(steps / 10, 1)),
    "cosine": schedules.cosine,
    "warm-up, cosine": schedules.warmup_cosine,
    "linear to 0": schedules.linear_to_zero,
    "one cycle": schedules.one_cycle,
}


def searched(learner, schedule, rates, steps, keys, sets):
    """Errors in percent on each set and the training loss, (sets + 1, rates, seeds)."""

    def run(rate, key):
        params = learner.path(optlab.sgd(schedule(rate, steps), momentum=0.9), steps, key).final
        return jnp.stack([*(learner.error(params, data) for data in sets), learner.mean_loss(params, learner.train)])

    found = jax.vmap(jax.vmap(run, (None, 0)), (0, None))(jnp.asarray(rates), keys)
    return np.moveaxis(np.asarray(found), -1, 0)


def measure(smoke: bool) -> Page:
    train, validation, test = digits()
    learner = Learner(mlp(outputs=10, widths=[64]), train, 64)
    keys = jax.random.split(jax.random.key(0), 2 if smoke else 6)
    rates, epochs = np.logspace(-2, 0.25, 3 if smoke else 10), (1,) if smoke else (2, 5, 15)
    rows, loss = [], {}
    for name, schedule in SCHEDULES.items():
        cells, loss[name] = [], []
        for n in epochs:
            run = functools.partial(searched, learner, schedule, rates, n * len(train[0]) // 64, keys)
            on_validation, on_test, of_training = run((validation, test))
            best = int(np.nanargmin(on_validation.mean(1)))
            cells.append(f"{estimate(on_test[best], 2)} (η = {rates[best]:.2g})")
            loss[name].append(np.nanmin(of_training.mean(1)))
        rows.append([name, *cells, ", ".join(f"{x:.4f}" for x in loss[name])])
    figure, ax = plt.subplots(figsize=(6, 3))
    for name, curve in loss.items():
        ax.plot(epochs, curve, ".-", label=name)
    ax.set(xscale="log", yscale="log", xlabel="epochs", ylabel="training loss, the best η")
    ax.legend(fontsize=7)
    columns = [
        "schedule",
        *(f"test error after {n} epochs, %" for n in epochs),
        f"mean training loss after {', '.join(map(str, epochs))} epochs, the best η for it",
    ]
    ends = [[cell.split(" (")[0] for cell in row[1:-1]] for row in rows]
    return Page(
        f"{len(keys)} seeds, {len(rates)} peaks.",
        [Table(columns, rows)],
        figure,
        f"""
        No super-convergence. One cycle ends at {ends[6][0]} % of test error after {epochs[0]} epochs, a constant rate
        at {ends[0][0]} %; after {epochs[-1]} they are at {ends[6][-1]} % and {ends[0][-1]} %. After
        {epochs[len(epochs) // 2]} epochs no schedule's mean error is as low as the constant rate's after
        {epochs[-1]}. The claim was made of ResNets, and beside staircases. Here too one cycle's mean training loss is
        lower than the staircase's. With its own best peak every schedule's test error is about as good; and note the
        peaks: in the shorter trainings every schedule takes a higher one than the constant rate.

        That isn't yet an answer to how many epochs a target takes. Trainings of three lengths bound the number, and no
        more; the epochs to a given error were not measured.

        The training losses have no intervals: what follows is of their means. In a short training, decay pays: of the
        losses after {epochs[0]} epochs the line to 0 has the lowest, {loss["linear to 0"][0]:.3f} against
        {loss["constant"][0]:.3f} of the constant rate. After {epochs[-1]} it is the other way round,
        {loss["linear to 0"][-1]:.4f} against {loss["constant"][-1]:.4f}. This network can fit every image, so that the
        gradients' noise dies out by itself; a schedule may take too much from the last steps. Nothing of that is seen
        in the test error.

        The one that stands out is the staircase, by its training loss at every length: two thirds of the training at a
        tenth and a hundredth of the rate seem too much for trainings as short as these.
        """,
    )


if __name__ == "__main__":
    main(measure)
