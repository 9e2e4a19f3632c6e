"""E7. Plain and residual networks: what reaches the first layers, and the training error, as depth grows.

ResNets for 32×32 images and their plain twins (the same layers without shortcuts), on the 8×8 digits. Courses show that
the plain network's *training* error rises with depth, and explain it by vanishing gradients. At the start the norm of
the gradient over that of the weights is measured block by block, with and without BatchNorm; then all are trained with
BatchNorm by SGD with momentum 0.9, η = 0.05, on batches of 32.
"""

import re

import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
import optax
from shared import Page, estimate, main

import optlab
from optlab import data, models
from optlab.data import Batches
from optlab.report import Table
from optlab.training import Workload, train

DEPTHS = (20, 44)


def workload(depth, residual, norm="batch"):
    model = models.ResNet(10, stages=3 * ((depth - 2) // 6,), residual=residual, norm=norm)
    return Workload.from_model(model, data.digits(), batch_size=32)


def at_the_start(work, seeds):
    """‖∇‖/‖θ‖ of every block's first convolution, (seeds, blocks), and the loss, (seeds,)."""
    batch = jax.tree.map(jnp.asarray, Batches(work.data.train, 32).batch(0))

    @jax.jit
    def one(key):
        params, state = work.init(key)
        loss, gradient = jax.value_and_grad(lambda p: work.loss(p, state, batch, key, True)[0])(params)
        blocks = sorted((b for b in params if re.fullmatch(r"block_\d+", b)), key=lambda b: int(b[6:]))
        norms = [optax.tree.norm(gradient[b]["conv_0"]) / optax.tree.norm(params[b]["conv_0"]) for b in blocks]
        return jnp.stack(norms), loss

    found = [one(jax.random.key(seed)) for seed in seeds]
    return np.stack([x for x, _ in found]), np.stack([loss for _, loss in found])


def trained(work, seeds, steps):
    """The training loss over the last quarter of the steps, and over all steps, of every seed."""
    tx = optlab.sgd(0.05, momentum=0.9)
    runs = [train(work, tx, steps=steps, seed=s, evaluate_every=steps, log_every=1) for s in seeds]
    curves = np.array([run["train/loss"][1] for run in runs])
    return curves[:, -max(steps // 4, 1) :].mean(1), curves


def measure(smoke: bool) -> Page:
    seeds, steps, depths = (range(2), 3, (8,)) if smoke else (range(3), 80, DEPTHS)
    figure, axes = plt.subplots(1, 3, figsize=(12, 3))
    rows, ratio, losses = [], {}, {}
    for depth in depths:
        for residual in (False, True):
            name, color = f"{'residual' if residual else 'plain'}, {depth} layers", f"C{2 * residual + (depth > 20)}"
            for norm, ax in zip(("none", "batch"), axes, strict=False):
                norms, loss = at_the_start(workload(depth, residual, norm), seeds)
                ax.plot(norms.mean(0), ".-", color=color, label=name)
                ratio[name, norm] = norms[:, 0] / norms[:, -1], loss
            last, curves = trained(workload(depth, residual), seeds, steps)
            losses[name] = estimate(last, 3)
            smooth = np.lib.stride_tricks.sliding_window_view(curves.mean(0), min(8, steps)).mean(-1)
            axes[2].plot(smooth, color=color, label=name)
            cells = [f"{np.median(ratio[name, norm][0]):.3g}" for norm in ("none", "batch")]
            rows.append([name, f"{np.median(ratio[name, 'none'][1]):.3g}", *cells, losses[name]])
    for ax, title in zip(axes, ("at the start, no norm", "at the start, BatchNorm"), strict=False):
        ax.set(title=title, xlabel="block", yscale="log")
    axes[0].set_ylabel("‖gradient‖ / ‖weights‖")
    axes[2].set(title="trained, BatchNorm", xlabel="step", ylabel="training loss", yscale="log")
    axes[2].legend(fontsize=7)
    figure.tight_layout()
    columns = [
        "network",
        "loss at the start, no norm",
        "gradient of first block over last, no norm",
        "the same, BatchNorm",
        f"training loss, steps {steps - steps // 4} to {steps}",
    ]
    plain, deep = (f"plain, {depth} layers" for depth in (depths[0], depths[-1]))
    short, long = (f"residual, {depth} layers" for depth in (depths[0], depths[-1]))
    first = {(name, norm): np.median(ratio[name, norm][0]) for name, norm in ratio}
    start = np.median(ratio[long, "none"][1])
    return Page(
        f"{len(seeds)} seeds.",
        [Table(columns, rows)],
        figure,
        f"""
        The plain network's training loss does rise with depth: after {steps} steps it is at {losses[plain]} with
        {depths[0]} layers and at {losses[deep]} with {depths[-1]}, which is hardly below the {np.log(10):.2f} of
        knowing nothing. With shortcuts it is {losses[short]} and {losses[long]}: {depths[-1]} layers train, if not
        better than {depths[0]} in so few steps.

        Vanishing gradients are the explanation only where there is no normalization. There the first block of the deep
        plain network gets {first[deep, "none"]:.2g} of the last one's relative gradient, and all of them little. With
        BatchNorm, which those networks have, it is the other way round: the first block gets
        {first[deep, "batch"]:.0f} times *as much* as the last ({first[plain, "batch"]:.0f} times with {depths[0]}
        layers). Gradients explode backwards, and one learning rate can't suit the first and the last layer. Shortcuts
        keep the factor at {first[long, "batch"]:.0f}. That plain networks fail for another reason than vanishing
        gradients is what He et al. wrote themselves.

        Not measured here: the signal's norm layer by layer in the forward direction (the notebook on the assignment has
        it for dense networks without BatchNorm), and the training *error*, in whose place stands the loss, early in
        training. The residual networks' loss is higher at the larger depth too, but their intervals overlap: three
        seeds don't tell.

        Shortcuts without normalization have their own trouble, which is in the forward direction: what every block
        adds piles up, and the loss at the start is {start:.0f}.
        """,
    )


if __name__ == "__main__":
    main(measure)
