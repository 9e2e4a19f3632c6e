"""E15. One cycle and other schedules: epochs to a target, and what a short and a longer training get out of each.

The one-cycle policy promises "super-convergence": as good in a few epochs as a constant or a stepped rate in many. The
digits, a network of 64 hidden units, SGD with momentum 0.9, batches of 64, trainings of 2 to 15 epochs. Every schedule
has its best of ten peaks for every length, chosen on 200 validation images; errors count on 300 test images, the loss
on the training ones.

The target is the mean error in which the constant rate ends its longest training, at its best peak, plus one standard
deviation over the seeds. For every schedule the length is chosen too: the pair of length and peak whose validation
error gets there first on average, looked at every half epoch. Then fresh seeds train with them, and the epochs count
until the test error gets there. A training that ends without it counts as one that never does.
"""

import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
from scipy import stats
from shared import Learner, Page, at_values, digits, estimate, main

import optlab
from optlab import schedules
from optlab.compare.statistics import median_time, restricted_mean, time_ratio
from optlab.models import mlp
from optlab.report import Table

BATCH = 64
SCHEDULES = {
    "constant": lambda peak, steps: schedules.constant(peak),
    "steps (÷10 at each third)": lambda peak, steps: schedules.step_decay(peak, every=max(steps // 3, 1)),
    "1/√t": lambda peak, steps: schedules.inverse_sqrt(peak, timescale=max(steps / 10, 1)),
    "cosine": schedules.cosine,
    "warm-up, cosine": schedules.warmup_cosine,
    "linear to 0": schedules.linear_to_zero,
    "one cycle": schedules.one_cycle,
}


def trained(learner, settings, epochs, keys, sets):
    """Trainings of one length, of every (schedule's number, peak) in one program.

    Returns:
        the errors on each set every half epoch, (sets, settings, seeds, 2·epochs), and the training losses at the end,
        (settings, seeds).
    """
    half = len(learner.train[0]) // BATCH // 2
    steps = 2 * half * epochs
    starts = jax.jit(jax.vmap(learner.init))(keys)  # apart, as compiling it takes longer than all the rest

    def run(number, peak, start, key):
        rate = lambda step: jnp.stack([make(peak, steps)(step) for make in SCHEDULES.values()])[number]
        errors = lambda params: jnp.stack([learner.error(params, data) for data in sets])
        tx = optlab.sgd(rate, momentum=0.9)
        path = optlab.minimize(learner.loss, tx, start, steps=steps, key=key, record=errors)
        return path.x[half::half].T, learner.mean_loss(path.final, learner.train)

    over_seeds = jax.vmap(run, (None, None, 0, 0))
    numbers, peaks = (jnp.asarray(x) for x in zip(*settings, strict=True))
    errors, losses = jax.jit(jax.vmap(over_seeds, (0, 0, None, None)))(numbers, peaks, starts, keys)
    return np.moveaxis(np.asarray(errors), 2, 0), np.asarray(losses)


def times(errors, goal, horizon):
    """Epochs until an error is at most the goal, or the horizon, and whether it ever is; the last axis is the time's.

    A training that ends above the goal is censored at the horizon, not at its end: it wouldn't get there any more.
    """
    hits = errors <= goal
    reached = hits.any(-1)
    return np.where(reached, (1 + hits.argmax(-1)) / 2, horizon), reached


def median(epochs, reached):
    """The median of the epochs to the target as a cell, with the order statistics that hold it in 95 % of samples."""
    n = len(epochs)
    ranked = np.sort(np.where(reached, epochs, np.inf))
    rank = int(stats.binom.ppf(0.025, n, 0.5))
    said = lambda x: f"{x:g}" if np.isfinite(x) else "never"
    interval = f" [{said(ranked[rank - 1])}, {said(ranked[n - rank])}]" if rank else ""
    return said(median_time(epochs, reached)) + interval


def measure(smoke: bool) -> Page:
    train, *held_out = digits()
    learner = Learner(mlp(outputs=10, widths=[64]), train, BATCH)
    keys = jax.random.split(jax.random.key(0), 2 if smoke else 6)
    fresh = jax.random.split(jax.random.key(1), 4 if smoke else 20)
    rates, lengths, shown = np.logspace(-2, 0.25, 10), (2, 3, 5, 8, 15), (2, 5, 8, 15)
    if smoke:
        rates, lengths, shown = rates[4:9:2], (1,), (1,)
    names, settings = list(SCHEDULES), [(i, peak) for i in range(len(SCHEDULES)) for peak in rates]
    found = {}
    for epochs in lengths:
        errors, loss = trained(learner, settings, epochs, keys, held_out)
        for i, name in enumerate(names):
            mine = slice(i * len(rates), (i + 1) * len(rates))
            found[name, epochs] = errors[:, mine], loss[mine]
    ends, losses, peaks = {}, {}, {}
    for at, ((validation, test), loss) in found.items():
        best = int(validation[..., -1].mean(1).argmin())
        ends[at], peaks[at] = (validation[best, :, -1], test[best, :, -1]), rates[best]
        losses[at] = loss[int(np.nanargmin(loss.mean(1)))]
    of_validation, of_test = (x.mean() + x.std(ddof=1) for x in ends["constant", lengths[-1]])

    chosen, needed, horizon = {}, {}, lengths[-1]
    for name in names:
        means = {
            (epochs, i): restricted_mean(*times(found[name, epochs][0][0][i], of_validation, horizon), horizon)
            for epochs in lengths
            for i in range(len(rates))
        }
        length, i = min(means, key=means.get)
        chosen[name] = length, rates[i]
    for length in sorted({length for length, _ in chosen.values()}):
        at_length = [name for name in names if chosen[name][0] == length]
        again = [(names.index(name), chosen[name][1]) for name in at_length]
        (_, test), _ = trained(learner, again, length, fresh, held_out)
        needed |= {name: times(errors, of_test, horizon) for name, errors in zip(at_length, test, strict=True)}
    ratios = {name: time_ratio(*needed["one cycle"], *needed[name]) for name in SCHEDULES if name != "one cycle"}
    return Page(
        f"{len(keys)} seeds to choose by and for the ends, {len(fresh)} fresh ones for the epochs to the target; "
        f"{len(rates)} peaks, lengths of {', '.join(map(str, lengths))} epochs.",
        [to_the_target(chosen, needed, ratios, of_test), at_the_end(shown, ends, peaks), of_training(shown, losses)],
        drawn(shown, losses, needed, horizon),
        said(shown, ends, losses, needed, ratios, (of_validation, of_test)),
    )


def to_the_target(chosen, needed, ratios, goal):
    rows = [
        [
            name,
            str(length),
            f"{peak:.2g}",
            median(*needed[name]),
            f"{needed[name][1].sum()} of {len(needed[name][1])}",
            between(ratios[name]) if name in ratios else "–",
        ]
        for name, (length, peak) in chosen.items()
    ]
    columns = [
        "schedule",
        "its best length, epochs",
        "its peak, η",
        f"epochs to a test error of {goal:.2f} %, median",
        "runs that reach it",
        "one cycle's epochs over these",
    ]
    return Table(columns, rows)


def between(ratio):
    return f"{ratio.value:.2f} [{ratio.low:.2f}, {ratio.high:.2f}]"


def at_the_end(shown, ends, peaks):
    rows = [
        [name, *(f"{estimate(ends[name, n][1], 2)} (η = {peaks[name, n]:.2g})" for n in shown)] for name in SCHEDULES
    ]
    return Table(["schedule, test error in %", *(f"after {epochs(n)}" for n in shown)], rows)


def of_training(shown, losses):
    rows = [[name, *(estimate(losses[name, n], 4) for n in shown)] for name in SCHEDULES]
    return Table(["schedule, training loss at the best η for it", *(f"after {epochs(n)}" for n in shown)], rows)


def epochs(n):
    return f"{n} epoch{'s' * (n > 1)}"


def drawn(shown, losses, needed, horizon):
    figure, (left, right) = plt.subplots(1, 2, figsize=(11, 3.4))
    for i, name in enumerate(SCHEDULES):
        sample = np.array([losses[name, n] for n in shown])
        mean, reach = sample.mean(1), np.abs(np.stack([sample.min(1), sample.max(1)]) - sample.mean(1))
        at = np.array(shown) * 1.02 ** (i - 3)  # beside one another
        left.errorbar(at, mean, reach, fmt=".-", capsize=2, linewidth=1)
        epochs, reached = needed[name]
        ranked = np.sort(epochs[reached])
        share = np.arange(1, len(ranked) + 1) / len(epochs)
        right.step(
            [0, *ranked, horizon], [0, *share, len(ranked) / len(epochs)], where="post", linewidth=1.2, label=name
        )
    left.set(
        xscale="log", yscale="log", xlabel="epochs of the training", ylabel="training loss, lowest to highest seed"
    )
    at_values(left.xaxis, shown)
    right.set(xlabel="epochs", ylabel="share of runs that reached the target", ylim=(0, 1.02), xlim=(0, horizon))
    right.legend(fontsize=7, bbox_to_anchor=(1.02, 1), loc="upper left")
    figure.tight_layout()
    return figure


def said(shown, ends, losses, needed, ratios, goals):
    took = {
        name: f"{median(*times)} epochs ({times[1].sum()} of {len(times[1])} runs)" for name, times in needed.items()
    }
    steps, cycle = "steps (÷10 at each third)", "one cycle"
    beside = lambda a, b, n: estimate(losses[a, n] - losses[b, n], 4)
    short, middle, long, late = shown[0], shown[len(shown) // 2 - 1], shown[-2:][0], shown[-1]
    at_goal = [f"{estimate(ends[name, long][1], 2)} % ({name})" for name in ("constant", steps, cycle)]
    beside_constant = [f"{estimate(ends[cycle, n][1] - ends['constant', n][1], 2)} points after {n}" for n in shown]
    return f"""
    No super-convergence. The target is a test error of {goals[1]:.2f} %, and {goals[0]:.2f} % on the validation images,
    by which lengths and peaks are chosen. One cycle takes {took[cycle]} to it, the constant rate {took["constant"]} and
    the staircase {took[steps]}. That is {between(ratios["constant"])} times the constant rate's epochs and
    {between(ratios[steps])} times the staircase's. Beside the constant rate and 1/√t the interval lies above 1, so that
    one cycle is slower there; it is not measurably faster than any other. (Bounds of 0 or "never" come from schedules
    of which about half of the runs don't arrive.) The time is that of the first touch, on 300 images and every half
    epoch, which favours schedules that are noisy on the way over those that decay within 8 epochs; and the target is
    the constant rate's own.

    Most schedules get to the target first in the longest training of those allowed, and on the way, not at its end. A
    shorter decaying training doesn't reach the target by its end, although the longer one passes it on the way; a
    constant rate's just does: after {long} epochs the mean errors are {", ".join(at_goal)}. The test errors of equally
    long trainings can't tell one cycle from the constant rate; the differences, seed by seed, are
    {", ".join(beside_constant)} epochs.

    In the training loss, seed by seed, decay pays in trainings of {middle} epochs: the line to 0 ends
    {beside("linear to 0", "constant", middle)} from the constant rate, 1/√t {beside("1/√t", "constant", middle)}.
    After {late} no schedule's mean loss is below the constant rate's. This network can fit every image, so that the
    gradients' noise may die out by itself. One cycle and the constant rate can't be told apart at any length:
    {", ".join(beside(cycle, "constant", n) for n in shown)}.

    The claim was made beside staircases, and beside the staircase it holds for the training loss: one cycle's is lower
    at every length ({", ".join(beside(cycle, steps, n) for n in shown)}). Two thirds of the training at a tenth and a
    hundredth of the rate seem too much for trainings of {short} to {late} epochs. In the epochs to the target that
    isn't seen. And the claim was made of ResNets, of which this says nothing.
    """


if __name__ == "__main__":
    main(measure)
