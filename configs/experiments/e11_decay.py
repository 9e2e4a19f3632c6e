"""E11. Learning rate and weight decay: can they be tuned apart, with AdamW and with Adam on an L2 penalty.

AdamW's paper argues that the best decay λ of Adam with L2 moves with η, and AdamW's doesn't, so that the two can be
tuned one after the other. Here is the whole grid of η × λ for both, on the first 200 training images of the digits with
a tenth of the labels wrong, so that decay has something to do: a network of 64 hidden units, 400 steps of 64 images
down to η = 0 along a cosine. "Apart" is what tuning one after the other costs: λ at a first η, then η at that λ. Where
several λ are equally good, the middle of their logarithms counts.
"""

import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
from shared import Learner, Page, digits, estimate, main

import optlab
from optlab import schedules
from optlab.models import mlp
from optlab.report import Table

RATES = 10.0 ** np.arange(-3.5, -0.9, 0.5)
DECAYS = {"AdamW": 10.0 ** np.arange(-2, 2.1, 0.5), "Adam with L2": 10.0 ** np.arange(-3, 1.1, 0.5)}
CONTENDERS = {"AdamW": optlab.adamw, "Adam with L2": optlab.adam_l2}


def grid(factory, decays, learner, steps, keys, test):
    """Test errors in percent, (rates, decays, seeds)."""

    def run(rate, decay, key):
        tx = factory(schedules.cosine(rate, steps), weight_decay=decay)
        return learner.error(learner.path(tx, steps, key).final, test)

    over = jax.vmap(jax.vmap(jax.vmap(run, (None, None, 0)), (None, 0, None)), (0, None, None))
    return np.asarray(over(jnp.asarray(RATES), jnp.asarray(decays), keys))


def best_decay(errors, decays):
    """log₁₀ of the best λ, (rates, seeds), the mean of the equally good ones."""
    is_best = errors == errors.min(axis=1, keepdims=True)
    return np.sum(is_best * np.log10(decays)[None, :, None], axis=1) / np.sum(is_best, axis=1)


def apart(errors):
    """What tuning λ at a first η, and then η, costs beside the best of the grid: the mean over all first η."""
    best_decays = errors.argmin(axis=1)
    return np.mean([errors[:, decay].min() for decay in best_decays]) - errors.min()


def measure(smoke: bool) -> Page:
    train, _, test = digits()
    images, labels = train[0][:200], train[1][:200]
    labels = labels.at[:20].set((labels[:20] + 1) % 10)
    learner = Learner(mlp(outputs=10, widths=[64]), (images, labels), 64)
    keys = jax.random.split(jax.random.key(0), 2 if smoke else 6)
    figure, axes = plt.subplots(1, 2, figsize=(9.5, 3.2))
    rows, slopes, inner, lost = [], {}, {}, {}
    for (name, factory), ax in zip(CONTENDERS.items(), axes, strict=True):
        errors = grid(factory, DECAYS[name], learner, 10 if smoke else 400, keys, test)
        mean = errors.mean(-1)
        i, j = np.unravel_index(mean.argmin(), mean.shape)
        best = best_decay(errors, DECAYS[name])
        slopes[name] = np.polyfit(np.log10(RATES), best, 1)[0]
        inner[name] = np.polyfit(np.log10(RATES[1:]), best[1:], 1)[0]
        lost[name] = [apart(errors[..., s]) for s in range(len(keys))]
        where = f"η = {RATES[i]:.2g}, λ = {DECAYS[name][j]:.2g}"
        slope = [estimate(x[name], 2) for x in (slopes, inner)]
        rows.append([name, where, estimate(errors[i, j], 2), *slope, estimate(lost[name], 2)])
        picture = ax.pcolormesh(np.log10(DECAYS[name]), np.log10(RATES), mean, shading="nearest", vmax=mean.min() + 10)
        ax.plot(np.log10(DECAYS[name])[mean.argmin(1)], np.log10(RATES), "r.")
        ax.set(title=name, xlabel="log₁₀ λ", ylabel="log₁₀ η")
        figure.colorbar(picture, ax=ax, label="test error, %")
    columns = [
        "optimizer",
        "best",
        "test error there, chosen by it, %",
        "decades of best λ per decade of η",
        "without the smallest η",
        "lost by tuning apart, points",
    ]
    figure.tight_layout()
    w, l2 = CONTENDERS
    return Page(
        f"{len(keys)} seeds, {len(RATES)} × {len(DECAYS['AdamW'])} settings each.",
        [Table(columns, rows)],
        figure,
        f"""
        Look at the dots, the best λ of every row. If λ and η were independent, the dots would form a column. If only
        their product mattered, they would form a diagonal, one decade of λ down for a decade of η up. AdamW's move by
        {estimate(slopes[w], 2)} decades of λ a decade of η, Adam with L2's by {estimate(slopes[l2], 2)}. Without the
        smallest η, with which little is learned in so few steps, it is {estimate(inner[w], 2)} and
        {estimate(inner[l2], 2)}.

        The claim isn't seen here: where training works, neither best λ moves by more than its interval allows, L2's as
        little as AdamW's. What L2's drift there is over all rates comes from the smallest one, and goes up with η.
        Tuning λ first at a wrong η, and η after it, loses {estimate(lost[w], 2)} points with AdamW and
        {estimate(lost[l2], 2)} with L2, a difference of {estimate(np.subtract(lost[l2], lost[w]), 2)}, seed by seed.

        That is one small problem. Every number here is of settings picked by the same 300 test images that it is
        measured on, and is too good by that: the two test errors, {rows[0][2]} % with AdamW and {rows[1][2]} % with L2,
        don't say which is better. AdamW's λ and L2's are different numbers ({rows[0][1]} against {rows[1][1]}), and
        can't be carried over.
        """,
    )


if __name__ == "__main__":
    main(measure)
