"""E12. Four myths: the loss falls at every step; a larger batch is always better; Adam always wins; η is a detail.

The digits (8×8 pixels, ten classes) and a network of 64 hidden units. Who wins is asked by `optlab.compare`, which
tunes every optimizer anew in every study, on this network and on a linear model.
"""

import functools

import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
from shared import Learner, Page, band, digits, estimate, main

import optlab
from optlab.compare.statistics import mean
from optlab.config import Target
from optlab.models import mlp
from optlab.report import Table
from optlab.training import Workload, accuracy

MODEL = mlp(outputs=10, widths=[64])
RATES = np.logspace(-4, 1, 11)
CONTENDERS = {
    "adam": optlab.adam,
    "sgd": functools.partial(optlab.sgd, momentum=0.9),
    "muon": optlab.muon,
}


def falls(train, keys, steps):
    """Myth 1: the share of steps, in percent, after which the loss over all training images is higher than before."""
    rows = []
    for name, batch_size, tx in (
        ("SGD, η = 0.1, batches of 16", 16, optlab.sgd(0.1)),
        ("SGD, η = 0.1, batches of 256", 256, optlab.sgd(0.1)),
        ("Adam, η = 0.003, batches of 16", 16, optlab.adam(3e-3)),
        ("Adam, η = 0.003, batches of 256", 256, optlab.adam(3e-3)),
    ):
        learner = Learner(MODEL, train, batch_size)
        record = lambda p, learner=learner: learner.mean_loss(p, train)
        losses = jax.vmap(lambda key, run=learner.path, tx=tx, r=record: run(tx, steps, key, r).x)(keys)
        up, half = 100 * (np.diff(losses, axis=1) > 0), steps // 2
        rows.append([name, estimate(up[:, :half].mean(1), 1), estimate(up[:, half:].mean(1), 1)])
    return rows


def searched(learner, factory, steps, rates, keys, validation):
    """Validation errors in percent, (rates, seeds)."""

    def run(rate, key):
        return learner.error(learner.path(factory(rate), steps, key).final, validation)

    return np.asarray(jax.vmap(jax.vmap(run, (None, 0)), (0, None))(jnp.asarray(rates), keys))


def measure(smoke: bool) -> Page:
    train, validation, _ = digits()
    keys = jax.random.split(jax.random.key(0), 2 if smoke else 10)
    steps, examples = (20, 1_024) if smoke else (300, 20_480)
    uphill = falls(train, keys, steps if smoke else 150)

    sgd = CONTENDERS["sgd"]
    batches, by_batch, at_best = [4, 32, 256, 1024], [], []
    for size in batches:
        errors = searched(Learner(MODEL, train, size), sgd, examples // size, RATES[2:9], keys[:5], validation)
        best = int(np.argmin(errors.mean(1)))
        at_best.append(errors[best])
        by_batch.append([str(size), f"{examples // size:,}", f"{RATES[2:9][best]:.2g}", estimate(errors[best], 2)])

    learner, rates = Learner(MODEL, train, 64), RATES[::2] if smoke else RATES
    swept = {n: searched(learner, f, steps, rates, keys[:5], validation) for n, f in list(CONTENDERS.items())[:2]}
    good = {n: errors.mean(1) < errors.mean(1).min() + 1 for n, errors in swept.items()}

    judged = []
    for what, widths, names in (("network", [64], CONTENDERS), ("linear model", [], ["adam", "sgd"])):
        verdict = contest(widths, {n: CONTENDERS[n] for n in names}, smoke)
        judged += [[what, x.name, interval(x.mean), against(verdict, x.name)] for x in verdict.standings.values()]

    figure, axes = plt.subplots(1, 2, figsize=(9, 3))
    found = [mean(errors) for errors in at_best]
    reach = [0 if np.isnan(x.low) else x.high - x.value for x in found]
    axes[0].bar([row[0] for row in by_batch], [x.value for x in found], yerr=reach, color="0.6", capsize=3)
    axes[0].set(xlabel="batch size", ylabel="validation error, %", title=f"{examples:,} examples, the best η each")
    for name, errors in swept.items():
        band(axes[1], rates, errors.T, marker=".", label=name)
    axes[1].set(
        xscale="log",
        xlabel="η",
        ylabel="validation error, %, all seeds",
        title=f"{steps} steps, batches of 64",
        ylim=(0, None),
    )
    axes[1].legend()
    figure.tight_layout()
    span = {n: f"{rates[where].min():.2g} to {rates[where].max():.2g}" for n, where in good.items()}
    return Page(
        f"{len(keys)} seeds for the first myth, {len(keys[:5])} for each learning rate, three studies of 8 trials "
        "each for who wins.",
        [
            Table(["steps uphill, %", "first half", "second half"], uphill),
            Table(
                ["batch size", "steps", "best η of SGD with momentum", "validation error, η chosen by it, %"], by_batch
            ),
            Table(["model", "optimizer", "test accuracy, tuned", "beside adam"], judged),
            Table(["optimizer", "η within a point of the best error"], [[n, x] for n, x in span.items()]),
        ],
        figure,
        f"""
        **The loss falls at every step.** {uphill[0][2]} % of the small batches' later steps raise the loss over
        all images, and training works all the same. A step downhill on 16 images needn't be one on the others;
        near the end it often isn't. Of a single batch's loss still less can be said.

        **A larger batch is always better.** Not for the same number of examples: batches of {by_batch[0][0]}
        end at {by_batch[0][3]} % and batches of {by_batch[-1][0]} at {by_batch[-1][3]} %, both at their best η.
        With the large ones that is {by_batch[-1][1]} steps, with the small ones {by_batch[0][1]}. A large batch
        buys exactness per step, and pays in steps.

        **Adam always wins.** See the third table: tuned with as many trials as the others, and judged with its
        uncertainty, it is one of several that can't be told apart here. Three studies find only differences above
        those in the table's brackets.

        **η is a detail.** It is the one number that can't be left alone. Between a good and a bad one lies more
        than between any two of these optimizers: adam is within a point of its best from {span["adam"]} and sgd
        from {span["sgd"]}, of {len(rates)} rates from {rates[0]:g} to {rates[-1]:g}.
        """,
    )


def contest(widths, contenders, smoke):
    """The verdict over optimizers that are tuned alike."""
    workload = Workload.from_model(
        mlp(outputs=10, widths=widths),
        optlab.data.digits(),
        metrics={"accuracy": accuracy},
        batch_size=64,
        target=Target(metric="validation/accuracy", mode="max"),
    )
    size = {"steps": 20, "trials": 2, "studies": 2} if smoke else {"steps": 300, "trials": 8, "studies": 3}
    return optlab.compare(contenders, workload, **size, quiet=True)


def interval(estimate):
    return f"{estimate.value:.4f} [{estimate.low:.4f}, {estimate.high:.4f}]"


def against(verdict, name):
    """What the verdict says of the difference."""
    if name not in verdict.comparisons:
        return "–"
    found = verdict.comparisons[name]
    how = "different" if found.is_different else f"can't be told apart (below {found.missed:.3f} it would be missed)"
    return f"{interval(found.difference)}: {how}"


if __name__ == "__main__":
    main(measure)
