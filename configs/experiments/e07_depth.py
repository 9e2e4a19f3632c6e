"""E7. Plain and residual networks: what reaches the first layers, and the training error, as depth grows.

ResNets for 32×32 images and their plain twins (the same layers without shortcuts), on the 8×8 digits. Courses show that
the plain network's *training* error rises with depth, and explain it by vanishing gradients. At the start two norms are
measured block by block, with and without BatchNorm: the signal's, as the root mean square of a block's output, and the
gradient's, over the norm of the weights that it moves. Then all are trained with BatchNorm by SGD with momentum 0.9,
η = 0.05, on batches of 32.
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
from optlab.training import Workload, accuracy, train

DEPTHS = (20, 44)
NORMS = {"none": "no norm", "batch": "BatchNorm"}


def network(depth, residual, norm="batch"):
    return models.ResNet(10, stages=3 * ((depth - 2) // 6,), residual=residual, norm=norm)


def on_digits(model):
    return Workload.from_model(model, data.digits(), metrics={"accuracy": accuracy}, batch_size=32)


def at_the_start(model, seeds):
    """By block the root mean square of its output and ‖∇‖/‖θ‖ of its first convolution, and the loss of every seed.

    Returns:
        signals and gradients, (seeds, blocks), and losses, (seeds,).
    """
    work = on_digits(model)
    batch = jax.tree.map(jnp.asarray, Batches(work.data.train, 32).batch(0))

    @jax.jit
    def one(key):
        params, state = work.init(key)
        loss, gradient = jax.value_and_grad(lambda p: work.loss(p, state, batch, key, True)[0])(params)
        is_block = lambda module, _: re.fullmatch(r"block_\d+", module.name or "") is not None
        kept = model.apply(
            {"params": params, **state}, batch["inputs"], train=True, capture_intermediates=is_block, mutable=True
        )[1]["intermediates"]
        blocks = sorted(kept, key=lambda b: int(b[6:]))
        signals = [jnp.sqrt(jnp.mean(kept[b]["__call__"][0] ** 2)) for b in blocks]
        norms = [optax.tree.norm(gradient[b]["conv_0"]) / optax.tree.norm(params[b]["conv_0"]) for b in blocks]
        return jnp.stack(signals), jnp.stack(norms), loss

    found = [one(jax.random.key(seed)) for seed in seeds]
    return [np.stack(x) for x in zip(*found, strict=True)]


def trained(model, seeds, steps):
    """Loss, and error in percent, of every step's batch before its update: (2, seeds, steps)."""
    work, tx = on_digits(model), optlab.sgd(0.05, momentum=0.9)
    runs = [train(work, tx, steps=steps, seed=s, evaluate_every=steps, log_every=1) for s in seeds]
    losses, accuracies = (np.array([run[f"train/{name}"][1] for run in runs]) for name in ("loss", "accuracy"))
    return np.stack([losses, 100 * (1 - accuracies)])


def measure(smoke: bool) -> Page:
    seeds, steps, depths = (range(2), 3, (8,)) if smoke else (range(4), 120, DEPTHS)
    last = max(steps // 3, 1)  # an epoch
    networks = {
        f"{'residual' if residual else 'plain'}, {depth} layers": (depth, residual)
        for depth in depths
        for residual in (False, True)
    }
    start = {
        (name, norm): at_the_start(network(*what, norm), seeds) for name, what in networks.items() for norm in NORMS
    }
    curves = {name: trained(network(*what), seeds, steps) for name, what in networks.items()}
    ends = {name: curve[..., -last:].mean(-1) for name, curve in curves.items()}
    of_training = Table(
        ["network, BatchNorm", f"training error, steps {steps - last + 1} to {steps}, %", "training loss"],
        [[name, estimate(error, 1), estimate(loss, 3)] for name, (loss, error) in ends.items()],
    )
    return Page(
        f"{len(seeds)} seeds, {steps} steps.",
        [of_training, *(by_block(start, networks, norm) for norm in NORMS)],
        drawn(start, curves),
        said(ends, start, [list(networks)[i] for i in (0, 1, -2, -1)], f"{steps - last + 1} to {steps}"),
    )


def by_block(start, networks, norm):
    """The norms of the first and of the last block with their ratio, over the seeds."""
    rows = []
    for name in networks:
        signals, gradients, loss = start[name, norm]
        rows.append(
            [
                name,
                *(spread(x) for x in (signals[:, 0], signals[:, -1])),
                *(spread(x) for x in (gradients[:, 0], gradients[:, -1], gradients[:, 0] / gradients[:, -1])),
                spread(loss),
            ]
        )
    columns = [
        f"at the start, {NORMS[norm]}; median (lowest to highest seed)",
        "signal after the first block",
        "after the last",
        "gradient over weights in the first block",
        "in the last",
        "first over last",
        "loss",
    ]
    return Table(columns, rows)


def spread(sample):
    return f"{short(np.median(sample))} ({short(sample.min())} to {short(sample.max())})"


def short(x):
    return f"{x:.0f}" if x >= 100 else f"{x:.2g}"


def drawn(start, curves):
    figure, axes = plt.subplots(2, 3, figsize=(12, 5.6))
    for j, (name, curve) in enumerate(curves.items()):
        for column, norm in enumerate(NORMS):
            for ax, values in zip(axes[:, column], start[name, norm], strict=False):
                at = np.arange(1, values.shape[1] + 1)
                ax.plot(at, np.median(values, 0), ".-", color=f"C{j}")
                ax.fill_between(at, values.min(0), values.max(0), color=f"C{j}", alpha=0.15, linewidth=0)
        for ax, values in zip(axes[:, 2], curve[::-1], strict=True):
            width = min(16, values.shape[1])
            smooth = np.lib.stride_tricks.sliding_window_view(values, width, axis=1).mean(-1)
            at = np.arange(width, values.shape[1] + 1)
            ax.plot(at, smooth.mean(0), color=f"C{j}", label=name)
            ax.fill_between(at, smooth.min(0), smooth.max(0), color=f"C{j}", alpha=0.15, linewidth=0)
    for column, norm in enumerate(NORMS.values()):
        axes[0, column].set(title=f"at the start, {norm}", yscale="log")
        axes[1, column].set(xlabel="block", yscale="log")
    axes[0, 0].set_ylabel("signal: RMS of the output")
    axes[1, 0].set_ylabel("‖gradient‖ / ‖weights‖")
    axes[0, 2].set(title="trained, BatchNorm", ylabel="training error, %", ylim=(0, 100))
    axes[1, 2].set(xlabel="step", ylabel="training loss", yscale="log")
    axes[0, 2].legend(fontsize=7)
    figure.tight_layout()
    return figure


def said(ends, start, names, steps):
    plain, shallow, deep, long = names
    error = {name: estimate(found[1], 1) for name, found in ends.items()}
    loss = {name: estimate(found[0], 3) for name, found in ends.items()}
    ratio = {at: short(np.median(gradients[:, 0] / gradients[:, -1])) for at, (_, gradients, _) in start.items()}
    signal = {at: [short(np.median(x[:, i])) for i in (0, -1)] for at, (x, _, _) in start.items()}
    return f"""
    The plain network's training error does rise with depth: over steps {steps} it is {error[plain]} % ({plain}) and
    {error[deep]} % ({deep}), where guessing gives 90 %. With shortcuts it rises too in so few steps, but far less:
    {error[shallow]} % ({shallow}) and {error[long]} % ({long}). The losses say the same: {loss[plain]} and {loss[deep]}
    plain, {loss[shallow]} and {loss[long]} with shortcuts. All four have one rate, η = 0.05, which was tuned for none,
    so that the size of these errors is partly the rate's. What hundreds of epochs make of it isn't measured.

    Vanishing gradients are the explanation only where there is no normalization. There the signal of the deep plain
    network shrinks from {signal[deep, "none"][0]} after the first block to {signal[deep, "none"][1]} after the last,
    and the first block gets {ratio[deep, "none"]} of the last one's relative gradient. With BatchNorm, which those
    networks have, the signal is as large after the last block as after the first, which is what normalization is for
    ({signal[deep, "batch"][0]} and {signal[deep, "batch"][1]}), and the gradient goes the other way: the first block
    gets {ratio[deep, "batch"]} times *as much* as the last ({ratio[plain, "batch"]} times: {plain}). Gradients explode
    backwards, and one learning rate hardly suits the first and the last layer; whether that is why the deep plain
    network fails wasn't tested. Shortcuts keep the factor at {ratio[long, "batch"]}. That plain networks fail for
    another reason than vanishing gradients is what He et al. wrote themselves.

    Shortcuts without normalization have their own trouble, which is in the forward direction: what every block adds
    piles up. The signal grows from {signal[long, "none"][0]} to {signal[long, "none"][1]}, and the loss at the start
    is {np.median(start[long, "none"][2]):.0f}.
    """


if __name__ == "__main__":
    main(measure)
