"""E8. Warm-up for a Transformer: with and without, over learning rates.

"Transformers need warm-up", one reads: without it training diverges, or ends higher. A small pre-norm Transformer reads
bytes (windows of 32, batches of 16), trained by AdamW along a cosine, with a linear warm-up over the first tenth of the
steps and without. The same seeds, rates and batches for both; validation loss at the end, and the largest rise of the
training loss above the lowest value before it, in nats.
"""

import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
from shared import Learner, Page, band, estimate, main, text

import optlab
from optlab import schedules
from optlab.compare.statistics import mean
from optlab.models import transformer
from optlab.report import Table

LENGTH = 32
SCHEDULES = {
    "without": schedules.cosine,
    "with": lambda rate, steps: schedules.warmup_cosine(rate, steps, warmup=steps // 10),
}


def swept(learner, schedule, rates, steps, keys, held):
    """Validation loss at the end and every step's training loss, (rates, seeds) and (rates, seeds, steps)."""

    def run(pair):
        rate, key = pair
        path = learner.path(optlab.adamw(schedule(rate, steps)), steps, key)
        return learner.mean_loss(path.final, held), path.values[:steps]

    # In turn: side by side these matrices are slower on a CPU.
    pairs = (jnp.repeat(rates, len(keys)), jnp.tile(keys, len(rates)))
    end, values = jax.jit(lambda pairs: jax.lax.map(run, pairs))(pairs)
    shape = len(rates), len(keys)
    return np.asarray(end).reshape(shape), np.asarray(values).reshape(*shape, steps)


def rise(values):
    """The largest rise of the smoothed training loss above its lowest value so far."""
    smooth = np.lib.stride_tricks.sliding_window_view(values, min(5, values.shape[-1]), axis=-1).mean(-1)
    return np.max(smooth - np.minimum.accumulate(smooth, axis=-1), axis=-1)


def measure(smoke: bool, path: str | None = None) -> Page:
    train, held = text(path, LENGTH, held=16 if smoke else 256)
    depth, steps = (1, 10) if smoke else (2, 250)
    learner = Learner(transformer(256, width=32, depth=depth, heads=2, length=LENGTH), train, 16)
    rates = jnp.logspace(-3, -1, 2) if smoke else jnp.logspace(-3, 0, 7)
    keys = jax.random.split(jax.random.key(0), 2 if smoke else 12)
    found = {name: swept(learner, schedule, rates, steps, keys, held) for name, schedule in SCHEDULES.items()}
    rows, rises, clear = [], [], []
    for i, rate in enumerate(rates):
        without, with_ = (found[name][0][i] for name in SCHEDULES)
        rises.append([estimate(rise(found[name][1][i]), 2) for name in SCHEDULES])
        lost = mean(without - with_)
        if lost.low > 0 or lost.high < 0:
            clear.append(f"η = {rate:.2g}")
        rows.append([f"{rate:.2g}", estimate(without), estimate(with_), estimate(without - with_), *rises[-1]])
    figure, axes = plt.subplots(1, 3, figsize=(12, 3.2))
    for name in SCHEDULES:
        end = found[name][0]
        band(axes[0], rates, end.T, marker=".", label=f"{name} warm-up")
    axes[0].set(xscale="log", xlabel="η", ylabel="validation loss, nats a byte, all seeds")
    axes[0].legend()
    best = {name: int(np.nanargmin(found[name][0].mean(1))) for name in SCHEDULES}
    for ax, i in zip(axes[1:], (best["with"], len(rates) - 1), strict=True):
        for name in SCHEDULES:
            band(ax, np.arange(steps), found[name][1][i], linewidth=1)
        ax.set(xlabel="step", ylabel="training loss, all seeds", title=f"η = {rates[i]:.2g}")
    figure.tight_layout()
    at_best = mean(found["without"][0][best["with"]] - found["with"][0][best["with"]])
    half = (at_best.high - at_best.low) / 2
    at = {name: estimate(found[name][0][i]) for name, i in best.items()}
    columns = [
        "η",
        "validation loss without",
        "with",
        "lost without warm-up",
        "largest rise without",
        "with warm-up",
    ]
    return Page(
        f"{len(keys)} seeds, {len(rates)} learning rates, {depth} blocks of width 32, {steps} steps.",
        [Table(columns, rows)],
        figure,
        f"""
        Not here, where it costs a little. Both are best at η = {rates[best["without"]]:.2g} and η =
        {rates[best["with"]]:.2g}, at {at["without"]} nats without warm-up and {at["with"]} with it; seed by seed the
        one without ends {-at_best.value:.3f} ± {half:.3f} lower. Over three decades of rates the difference is larger
        than its interval at {len(clear)} of {len(rates)} ({", ".join(clear) or "none"}), each time in favour of none;
        one interval in twenty excludes 0 by chance. A warm-up spends a tenth of so short a training at small rates, and
        in the middle panel the lead of the first steps is kept to the end.

        No training ends in NaN, either way. At η = {rates[-2]:.2g} the loss jumps by {rises[-2][0]} nats without
        warm-up and by {rises[-2][1]} with it, so that there is something that warm-up prevents; at η = {rates[-1]:.2g}
        it jumps by {rises[-1][0]} and {rises[-1][1]}. But at such rates all is lost anyhow: they end at {rows[-2][1]}
        and {rows[-2][2]} nats, where the frequencies of the bytes alone give 3.3.

        The claim comes from Transformers whose norm follows the sum (post-norm). That pre-norm ones, as this one and
        nearly all of today's, can do without it is what Xiong et al. 2020 (arXiv 2002.04745) found; large models warm
        up for safety, and it costs next to nothing. Two blocks and {steps} steps don't say that a hundred blocks need
        none.
        """,
    )


if __name__ == "__main__":
    main(measure)
