"""E16. BatchNorm: does it allow larger learning rates, and does its noise regularize.

Networks of four hidden layers of 64 units on the digits, without normalization, with BatchNorm and with LayerNorm, each
at 15 learning rates of SGD, 200 steps of 32 images. Then on 200 images only, at each one's best rate: if BatchNorm's
noise regularizes, batches of 8 should help it more than they help LayerNorm, which has no such noise. Errors are
measured with the statistics of the whole set, so that no running average blurs them.
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
        (10, jax.random.split(jax.random.key(0), 2)) if smoke else (200, jax.random.split(jax.random.key(0), 5))
    )
    figure, ax = plt.subplots(figsize=(6, 3))
    rows, small, span, gain = [], [], {}, {}
    for norm in NORMS:
        model = mlp(outputs=10, widths=[64] * (1 if smoke else 4), norm=norm)
        errors, on_test = swept(Learner(model, train, 32), rates, steps, keys, (validation, test))
        mean = errors.mean(1)
        good = rates[mean < mean.min() + 2]
        best = int(mean.argmin())
        span[norm] = good.max()
        rows.append([norm, f"{rates[best]:.2g}", estimate(on_test[best], 2), f"{good.min():.2g} to {good.max():.2g}"])
        band(ax, rates, errors.T, marker=".", label=norm)
        cells = []
        for size in (8, 64):
            found = swept(Learner(model, few, size), rates[::2], 2 * steps, keys, (validation, test))
            at = int(found[0].mean(1).argmin())
            cells.append(found[1][at])
        small.append([norm, *(estimate(c, 2) for c in cells), estimate(cells[1] - cells[0], 2)])
        gain[norm] = estimate(cells[1] - cells[0], 2)
    ax.set(xscale="log", xlabel="η", ylabel="validation error, %, all seeds")
    ax.legend()
    return Page(
        f"{len(keys)} seeds.",
        [
            Table(["norm", "best η", "test error, %", "η within two points of the best"], rows),
            Table(["norm, 200 images", "test error, batches of 8", "batches of 64", "gain by small batches"], small),
        ],
        figure,
        f"""
        **It allows larger learning rates**: the largest η within two points of the best is {span["batch"]:.2g} with
        BatchNorm, {span["none"]:.2g} without normalization, a factor of {span["batch"] / span["none"]:.1f}, and
        {span["layer"]:.2g} with LayerNorm. What that is good for is another matter: its *best* rate is {rows[1][1]},
        and that of the network without normalization {rows[0][1]}. BatchNorm makes the rate easier to choose, and this
        network of four layers perhaps a little better: {rows[1][2]} % of test error, against {rows[0][2]} % without
        and {rows[2][2]} % with LayerNorm.

        **Its noise regularizes**: not seen here. From batches of 64 to batches of 8, whose statistics are much
        noisier, the test error on 200 images falls by {gain["batch"]} points with BatchNorm and {gain["layer"]} with
        LayerNorm. Both intervals hold 0. An effect of three points would have been missed, so that this is no
        refutation; it is no evidence either.
        """,
    )


if __name__ == "__main__":
    main(measure)
