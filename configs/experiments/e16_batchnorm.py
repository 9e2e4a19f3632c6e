"""E16. BatchNorm: does it allow larger learning rates, and does its noise regularize.

Networks of four hidden layers of 64 units on the digits, without normalization, with BatchNorm and with LayerNorm, each
at 15 learning rates of SGD, 200 steps of 32 images. Then on 200 images only, each at the best of eight rates: if
BatchNorm's noise regularizes, batches of 8 should help it more than they help LayerNorm, which has no such noise.
Batches of 64 have 400 steps; batches of 8 as many steps, and as many examples, which is eight times the steps. Errors
are measured with the statistics of the whole set, so that no running average blurs them.
"""

import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
from shared import Learner, Page, band, digits, estimate, main

import optlab
from optlab.models import mlp
from optlab.report import Table

NORMS = ("none", "batch", "layer")


def swept(learner, rates, steps, keys, sets):
    """Errors in percent on each set, (sets, rates, seeds)."""

    def run(rate, key):
        params = learner.path(optlab.sgd(rate), steps, key).final
        return jnp.stack([learner.error(params, data) for data in sets])

    found = jax.vmap(jax.vmap(run, (None, 0)), (0, None))(jnp.asarray(rates), keys)
    return np.moveaxis(np.asarray(found), -1, 0)


def measure(smoke: bool) -> Page:
    train, validation, test = digits()
    few = train[0][:200], train[1][:200]
    rates = np.logspace(-2.5, 1, 3 if smoke else 15)
    steps, keys = (
        (10, jax.random.split(jax.random.key(0), 2)) if smoke else (200, jax.random.split(jax.random.key(0), 10))
    )
    figure, ax = plt.subplots(figsize=(6, 3))
    rows, small, span, gain = [], [], {}, {}
    for norm in NORMS:
        model = mlp(outputs=10, widths=[64] * (1 if smoke else 4), norm=norm)
        errors, on_test = swept(Learner(model, train, 32), rates, steps, keys, (validation, test))
        mean = errors.mean(1)
        good = rates[mean < mean.min() + 2]
        best = int(mean.argmin())
        span[norm] = max(rates[mean < max(20, mean.min() + 2)])  # in a few steps none may get below 20 %
        rows.append(
            [
                norm,
                f"{rates[best]:.2g}",
                estimate(on_test[best], 2),
                f"{good.min():.2g} to {good.max():.2g}",
                f"{span[norm]:.2g}",
            ]
        )
        band(ax, rates, errors.T, marker=".", label=norm)
        ends, cells = [], []
        for size, length in ((64, 2 * steps), (8, 2 * steps), (8, 16 * steps)):
            found = swept(Learner(model, few, size), rates[::2], length, keys, (validation, test))
            at = int(found[0].mean(1).argmin())
            ends.append(found[1][at])
            cells.append(f"{estimate(found[1][at], 2)} (η = {rates[::2][at]:.2g})")
        gain[norm] = [ends[0] - end for end in ends[1:]]
        small.append([norm, *cells, *(estimate(x, 2) for x in gain[norm])])
    ax.set(xscale="log", xlabel="η", ylabel="validation error, %, all seeds")
    ax.legend()
    return Page(
        f"{len(keys)} seeds.",
        [
            Table(["norm", "best η", "test error, %", "η within two points of the best", "largest η below 20 %"], rows),
            Table(
                [
                    "norm, test error on 200 images",
                    "batches of 64",
                    "of 8, as many steps",
                    "of 8, as many examples",
                    "gain by small batches, equal steps",
                    "equal examples",
                ],
                small,
            ),
        ],
        figure,
        f"""
        **It allows larger learning rates**: the largest η that ends below 20 % of validation error is
        {span["batch"]:.2g} with BatchNorm, {span["none"]:.2g} without normalization, a factor of
        {span["batch"] / span["none"]:.0f}, and {span["layer"]:.2g} with LayerNorm. What that is good for is another
        matter: its *best* rate is {rows[1][1]}, and that of the network without normalization {rows[0][1]}. BatchNorm
        makes the rate easier to choose, and this network of four layers a little better: {rows[1][2]} % of test error,
        against {rows[0][2]} % without and {rows[2][2]} % with LayerNorm.

        **Its noise regularizes**: from batches of 64 to batches of 8, whose statistics are much noisier, the test error
        on 200 images falls by {estimate(gain["batch"][0], 2)} points with BatchNorm and {estimate(gain["layer"][0], 2)}
        with LayerNorm at equal steps, by {estimate(gain["batch"][1], 2)} and {estimate(gain["layer"][1], 2)} at equal
        examples. BatchNorm's gain less LayerNorm's is {estimate(gain["batch"][0] - gain["layer"][0], 2)} and
        {estimate(gain["batch"][1] - gain["layer"][1], 2)}, seed by seed. Both hold 0: it isn't seen here, and an effect
        of two points would have been missed.
        """,
    )


if __name__ == "__main__":
    main(measure)
