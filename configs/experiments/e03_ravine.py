"""E3. A ravine and a saddle: who zigzags, who gets through, who gets off.

In a ravine, ½(x₁² + 25x₂²), gradient descent is said to zigzag, and momentum and Adam not to. Each optimizer gets its
best constant learning rate of 41, for the median of 64 starts on an ellipse around the minimum. A "zigzag" is a step
that changes the sign of x₂. The function is then turned by 45°, which changes nothing for a rule that knows no axes.
For the heavy ball theory has a best β as well, ((√κ − 1)/(√κ + 1))² = 0.44 at κ = 25.
Muon sees (x₁, x₂) as a matrix of one column: its orthogonalization is then the momentum's direction alone.

On the saddle ½(x₁² − x₂²) + ¼x₂⁴ the start is (1, 0), from which exact descent ends on the saddle. The gradient gets a
noise of standard deviation 0.01, and the steps until |x₂| > ½ are counted.
"""

import functools

import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
import optax
from shared import Page, estimate, main

import optlab
from optlab.report import Table
from optlab.theory import landscapes

STEPS, GOAL, CONDITION = 200, 1e-3, 25.0
SADDLE_RATE, SADDLE_NOISE, FAR = 0.05, 0.01, 0.5
RAVINE, SADDLE = landscapes.ravine(CONDITION), landscapes.saddle()


def muon(learning_rate, beta=0.9):
    """Muon for one matrix alone."""
    return optax.chain(
        optlab.momentum(beta, nesterov=True), optlab.orthogonalize("svd"), optlab.scale_by_learning_rate(learning_rate)
    )


CONTENDERS = {
    "SGD": optlab.sgd,
    "momentum 0.9": functools.partial(optlab.sgd, momentum=0.9),
    "momentum 0.44": functools.partial(optlab.sgd, momentum=((CONDITION**0.5 - 1) / (CONDITION**0.5 + 1)) ** 2),
    "Adam": optlab.adam,
    "Muon": muon,
}


def ravine(turn):
    """The ravine over a matrix of one column, turned by an angle."""
    c, s = np.cos(turn), np.sin(turn)
    R = jnp.array([[c, s], [-s, c]])
    return lambda X: RAVINE.f(R @ X[:, 0]), R


def searched(factory, turn, starts, rates):
    """At the best rate for the median start: the rate, steps to the goal, zigzags in 30 steps, the paths."""
    f, R = ravine(turn)
    start = jnp.einsum("ji,nj->ni", R, starts)[:, :, None]
    run = lambda rate, x0: optlab.minimize(f, factory(rate), x0, steps=STEPS)
    path = jax.vmap(jax.vmap(run, (None, 0)), (0, None))(rates, start)
    below = path.values <= GOAL * path.values[:, :, :1]
    steps = np.where(below.any(-1), np.argmax(below, -1), np.inf)  # rates, starts
    best = int(np.argmin(np.median(steps, axis=1)))
    x = np.einsum("ij,ntj->nti", R, path.x[best, :, :, :, 0])
    zigzags = np.sum(x[:, 1:31, 1] * x[:, :30, 1] < 0, axis=1)
    return float(rates[best]), steps[best], zigzags, x


def off_the_saddle(factory, keys):
    """The steps until |x₂| > ½, of every seed; inf where 2,000 aren't enough."""

    def f(X, key):
        return SADDLE.f(X[:, 0]) + SADDLE_NOISE * jax.random.normal(key) * X[1, 0]

    start = jnp.array([[1.0], [0.0]])
    record = lambda X: jnp.abs(X[1, 0]) > FAR
    run = lambda key: optlab.minimize(f, factory(SADDLE_RATE), start, steps=2_000, key=key, record=record).x
    away = np.asarray(jax.vmap(run)(keys))
    return np.where(away.any(-1), np.argmax(away, -1), np.inf)


def measure(smoke: bool) -> Page:
    angles = np.linspace(0, 2 * np.pi, 8 if smoke else 64, endpoint=False) + 0.1
    starts = jnp.stack([2 * np.cos(angles), 0.5 * np.sin(angles)], axis=1)
    rates = jnp.logspace(-3, 1, 5 if smoke else 41)
    keys = jax.random.split(jax.random.key(0), 8 if smoke else 1_000)
    rows, figure, axes = [], *plt.subplots(1, 5, figsize=(13, 2.4), sharey=True)
    x1, x2 = np.meshgrid(np.linspace(-2.4, 1.2, 80), np.linspace(-0.8, 0.8, 80))
    found = {}
    for (name, factory), ax in zip(CONTENDERS.items(), axes, strict=True):
        rate, steps, zigzags, x = searched(factory, 0.0, starts, rates)
        turned = searched(factory, np.pi / 4, starts, rates)
        off = off_the_saddle(factory, keys)
        found[name] = [told(steps), told(turned[1]), told(off), np.mean(zigzags)]
        cells = [f"{rate:.3g}", told(steps), estimate(zigzags, 1), told(turned[1]), told(off)]
        rows.append([name, *cells])
        ax.contour(x1, x2, 0.5 * (x1**2 + CONDITION * x2**2), 12, colors="0.85", linewidths=0.7)
        at = int(np.argmin(np.abs(angles - 2.6)))
        ax.plot(*x[at, :60].T, ".-", markersize=3, linewidth=0.8)
        ax.set(title=name, xlabel=f"x₁  (η = {rate:.3g})")
    axes[0].set_ylabel("x₂")
    predicted = landscapes.escape_steps(1.0, learning_rate=SADDLE_RATE, noise=SADDLE_NOISE, distance=FAR)
    columns = [
        "optimizer",
        "best η",
        "steps to a thousandth, mean",
        "zigzags in 30 steps",
        "steps when turned by 45°, mean",
        f"steps off the saddle, mean, η = {SADDLE_RATE}",
    ]
    sgd, heavy, best, adam, _ = (found[name] for name in CONTENDERS)
    return Page(
        f"{len(angles)} starts, {len(rates)} learning rates; {len(keys):,} seeds on the saddle.",
        [Table(columns, rows)],
        figure,
        f"""
        It is true that SGD zigzags at the rate that suits it ({sgd[3]:.0f} changes of sign in 30 steps), since that
        rate jumps across the steep side. Momentum of 0.9 needs {heavy[0]} steps where SGD needs {sgd[0]}. But the
        fastest of those that always arrive is the heavy ball at the β of the theory: {best[0]} steps, with
        {best[3]:.0f} changes of sign. Zigzags aren't what is slow; the creep along the floor is. (0.9 is the best β at
        κ = 1,400.)

        One reads that Adam's good days are ravines along the axes. Turned by 45° it needs {adam[1]} steps
        instead of {adam[0]}: at a condition of {CONDITION:.0f}, and in two dimensions, the turn is no
        handicap. The others don't notice it at all.

        For a matrix of one column Muon keeps the direction and discards the length, so that with a constant rate it
        gets about as close as η: fast for most starts, never for the rest. That isn't what it is for: the notebook on
        Muon has two columns.

        Off the saddle SGD needs {sgd[2]} steps; theory says {float(predicted):.0f} for the root mean square. Momentum
        has a ten times larger effective rate. Adam needs {adam[2]}, as it divides even the smallest gradient by its own
        size. That is at one η for all, which wasn't tuned: at rates of their own the distances might differ.
        """,
    )


def told(steps):
    """The mean with its interval, or the median where some never get there."""
    if np.isfinite(steps).all():
        return estimate(steps, 1)
    return f"{np.median(steps):.0f} (median; {100 * np.mean(np.isinf(steps)):.0f} % never)"


if __name__ == "__main__":
    main(measure)
