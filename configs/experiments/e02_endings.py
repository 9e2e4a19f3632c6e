"""E2. Three endings of (x − 2)²: smooth, hovering, settling.

The simplest function there is, and the gradient exact, noisy, averaged over a batch of 16, and noisy with a decaying
learning rate. `theory` says where each ends: with the curvature h = 2 and gradient noise of variance s², a constant η
leaves a root mean square distance of √(ηs²/(h(2 − ηh))), and η = 1/(ht) leaves s/(h√T).
"""

import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
from shared import Page, main

import optlab
from optlab import schedules
from optlab.compare.statistics import mean
from optlab.report import Table

STEPS, NOISE, CURVATURE = 400, 2.0, 2.0
DECAYED = schedules.inverse(1 / CURVATURE)


def hover(rate, noise):
    """The root mean square distance that a constant rate leaves."""
    return np.sqrt(rate * noise**2 / (CURVATURE * (2 - rate * CURVATURE)))


ENDINGS = {  # name: (learning rate, noise, what is predicted)
    "exact, η = 0.01 (too small)": (0.01, 0.0, 4 * 0.98**STEPS),
    "exact, η = 0.1": (0.1, 0.0, 4 * 0.8**STEPS),
    "exact, η = 0.95 (jumps across)": (0.95, 0.0, 4 * 0.9**STEPS),
    "exact, η = 1.02 (too large)": (1.02, 0.0, 4 * 1.04**STEPS),
    "noisy, η = 0.3": (0.3, NOISE, hover(0.3, NOISE)),
    "noisy, η = 0.03": (0.03, NOISE, hover(0.03, NOISE)),
    "batches of 16, η = 0.3": (0.3, NOISE / 4, hover(0.3, NOISE / 4)),
    "noisy, η = 1/(2t)": (DECAYED, NOISE, NOISE / (CURVATURE * np.sqrt(STEPS))),
}


def paths(rate, noise, keys):
    """x₀ … x_T of every seed, (seeds, STEPS + 1)."""
    f = lambda x, key: (x - 2) ** 2 + noise * jax.random.normal(key) * x
    run = lambda key: optlab.minimize(f, optlab.sgd(rate), jnp.array(-2.0), steps=STEPS, key=key).x
    return np.asarray(jax.vmap(run)(keys))


def measure(smoke: bool) -> Page:
    keys = jax.random.split(jax.random.key(0), 8 if smoke else 2_000)
    figure, axes = plt.subplots(1, 3, figsize=(11, 4))
    rows, found = [], {}
    for name, (rate, noise, predicted) in ENDINGS.items():
        x = paths(rate, noise, keys)
        square = mean((x[:, -1] - 2) ** 2)
        low, value, high = np.sqrt(np.maximum((square.low, square.value, square.high), 0))
        found[name] = value
        interval = "the same for all" if noise == 0 else f"{low:.4f} to {high:.4f}"
        rows.append([name, f"{noise:g}", f"{value:.4g}", interval, f"{predicted:.4g}"])
        where = 0 if noise == 0 else 2 if callable(rate) else 1
        axes[where].plot(x[0, : 61 if where == 0 else None], label=name, linewidth=1)
    for ax, title in zip(axes, ("smooth (or not)", "hovering", "settling"), strict=True):
        ax.axhline(2, color="0.7", linewidth=0.8, zorder=0)
        ax.set(title=title, xlabel="step", ylim=(-3.2, 7.2))
        ax.legend(fontsize=7, loc="upper center", bbox_to_anchor=(0.5, -0.18))
    columns = ["gradient, learning rate", "noise", f"distance after {STEPS} steps, RMS", "interval", "predicted"]
    noisy, small, batch = (found[name] for name in list(ENDINGS)[4:7])
    return Page(
        f"{len(keys):,} seeds.",
        [Table(columns, rows)],
        figure,
        f"""
        With exact gradients the only question is η·h: below 1 it slides, between 1 and 2 it jumps across the minimum
        and still gets there, beyond 2 it leaves. Two of the exact rows end at a few 10⁻⁷: that is the resolution of
        float32 near 2, and the prediction, which is for exact arithmetic, lies far below it. The others agree with it,
        to three digits or within their intervals.

        With noise, of which the figure shows one path each, a constant rate doesn't converge, however long one waits:
        it hovers at {noisy:.2f}. A tenth of the rate gets down to {small:.2f} only (a factor of 3.7, as theory has it
        at this rate; √10 for small ones), a batch sixteen times as large to {batch:.2f} (a factor of 4). A rate that
        falls like 1/t settles, as fast as an average of {STEPS} noisy measurements would: that bound is the one of
        statistics, and no unbiased estimate gets below it.
        """,
    )


if __name__ == "__main__":
    main(measure)
