"""E1. A line fitted by SGD and by Adam: which of the two comes closer.

Courses fit y = 2x + 1, x uniform on [−1, 1], by a line w·x + b from 0 with batches of 16, a learning rate of 0.1 and
100 steps, and report something like w = 1.95 for SGD against w = 1.999 for Adam: "Adam converges more precisely". One
seed is one seed, and a squared error with and without its factor ½ are two learning rates. Here are all four over many
seeds, with and without noise on y.
"""

import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
from shared import Page, estimate, main, share

import optlab
from optlab.report import Table

BATCH, STEPS, RATE = 16, 100, 0.1
CONTENDERS = {
    "SGD, mean squared error": (optlab.sgd, 1.0),
    "SGD, half of it": (optlab.sgd, 0.5),
    "Adam, mean squared error": (optlab.adam, 1.0),
    "Adam, half of it": (optlab.adam, 0.5),
}


def paths(factory, scale, noise, keys):
    """The iterates (w, b) of every seed, (seeds, STEPS + 1, 2)."""

    def loss(line, key):
        for_x, for_y = jax.random.split(key)
        x = jax.random.uniform(for_x, (BATCH,), minval=-1, maxval=1)
        y = 2 * x + 1 + noise * jax.random.normal(for_y, (BATCH,))
        return scale * jnp.mean((line[0] * x + line[1] - y) ** 2)

    run = lambda key: optlab.minimize(loss, factory(RATE), jnp.zeros(2), steps=STEPS, key=key).x
    return np.asarray(jax.vmap(run)(keys))


def measure(smoke: bool) -> Page:
    keys = jax.random.split(jax.random.key(0), 8 if smoke else 1_000)
    rows, figure, axes = [], *plt.subplots(1, 2, figsize=(9, 3.2))
    final = {}
    for noise, ax in zip((0.0, 0.3), axes, strict=True):
        for name, (factory, scale) in CONTENDERS.items():
            path = paths(factory, scale, noise, keys)
            end = final[name, noise] = path[:, -1]
            error = np.linalg.norm(path - np.array([2.0, 1.0]), axis=-1)
            within = share(error[:, -1] < 0.01)
            rows.append(
                [name, f"{noise:g}", estimate(end[:, 0], 4), estimate(end[:, 1], 4), f"{end[:, 0].std():.3f}", within]
            )
            dashes = "--" if name == "Adam, half of it" else "-"  # it lies on the curve without the half
            ax.plot(np.median(error, axis=0), dashes, label=name)
        ax.set(yscale="log", xlabel="step", title=f"noise {noise:g}", ylim=(1e-4, 4))
    axes[0].set_ylabel("distance from (2, 1), median")
    axes[1].legend(fontsize=7, handlelength=3)
    columns = [
        "optimizer, loss",
        "noise on y",
        "w at the end",
        "b at the end",
        "SD of w over seeds",
        "within 0.01 of (2, 1)",
    ]
    w = {key: end[:, 0].mean() for key, end in final.items()}
    sgd_sd, half_sd = (final[name, 0.3][:, 0].std() for name in list(CONTENDERS)[:2])
    sgd, half, adam = (w[name, 0.0] for name in list(CONTENDERS)[:3])
    return Page(
        f"{len(keys):,} seeds, each with batches of its own.",
        [Table(columns, rows)],
        figure,
        f"""
        Without noise SGD on the mean squared error ends at w = {sgd:.3f}, and Adam at {adam:.3f}: SGD is
        closer. With ½ in the loss its learning rate is half as large, and it ends at {half:.3f}, which is about
        the course's number. That is the whole of the effect: 100 steps at a rate too small for them.

        Adam doesn't see the ½, since its step has no unit of the loss in it. That is worth something, and is
        the better lesson: not "more precise", but less in need of a rate that fits the loss's scale. At a
        constant rate of 0.1 it runs past the solution and swings back, so that it is still on its way at step
        100.

        With noise on y both hover. SGD's hovering shrinks with its learning rate: with ½ in the loss the SD of
        w over the seeds is {half_sd:.3f} in the place of {sgd_sd:.3f}. Adam was run at one rate alone. Nobody's
        single run is as precise as four digits suggest.
        """,
    )


if __name__ == "__main__":
    main(measure)
