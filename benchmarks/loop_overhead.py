"""What the loop costs: `train(…)` against a bare jitted Flax/Optax step on the same model, batches and optimizer.

    python benchmarks/loop_overhead.py            # writes benchmarks/results/loop_overhead.md

The two take turns within one call of `train`: an observer, told of every 25th step when the device has nothing left to
do, runs 25 steps of the bare loop and gives the turn back. So neighbouring blocks see the same machine. A pair's ratio
is a block of `train` over the mean of the bare blocks before and after it; the figure is the median over the pairs,
its interval the middle half of medians of resampled pairs. The bare loop takes its batches from the same `Batches`,
one after another, and measures nothing but the loss. (The prefetch thread fills its two places while the bare loop
runs: two batches of 25 are made on the other's time.)
"""

from __future__ import annotations

import argparse
import dataclasses
import platform
import time
from collections.abc import Callable
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax

import optlab
from optlab.data import Batches, Source, digits, text
from optlab.models import mlp, transformer
from optlab.training import Workload, cross_entropy, train

BLOCK = 25


def workloads() -> dict[str, tuple[object, Source, int]]:
    return {
        "MLP 3×1024, batch 256": (mlp(10, widths=[1024] * 3), digits(), 256),
        "GPT 2×128, 16×128 bytes": (transformer(256, length=128, depth=2), text(length=128), 16),
    }


def bare(model: object, source: Source, batch_size: int) -> Callable[[], float]:
    """The plainest loop that one would write: a function that runs a block and gives the seconds a step."""
    tx, batches = optlab.adamw(1e-3), Batches(source.train, batch_size)
    params = model.init(jax.random.key(0), batches.batch(0)["inputs"])["params"]
    opt_state, t = tx.init(params), 0

    def loss(params, batch):
        return jnp.mean(cross_entropy(model.apply({"params": params}, batch["inputs"], train=True), batch))

    def step(params, opt_state, batch):
        value, grads = jax.value_and_grad(loss)(params, batch)
        updates, opt_state = tx.update(grads, opt_state, params)
        return optax.apply_updates(params, updates), opt_state, value

    step = jax.jit(step, donate_argnums=(0, 1))

    def block() -> float:
        nonlocal params, opt_state, t
        began = time.perf_counter()
        for _ in range(BLOCK):
            params, opt_state, value = step(params, opt_state, jax.device_put(batches.batch(t)))
            t += 1
        value.block_until_ready()
        return (time.perf_counter() - began) / BLOCK

    return block


class Turns:
    """An observer that gives the other loop its turn, and notes how long each took."""

    def __init__(self, other: Callable[[], float]):
        self.other = other
        self.ours: list[float] = []
        self.theirs: list[float] = []

    def begin(self, start: int, steps: int) -> None:
        self.began = time.perf_counter()

    def record(self, record: dict[str, float]) -> None:
        if record["step"] % BLOCK == 0:
            self.ours.append((time.perf_counter() - self.began) / BLOCK)
            self.theirs.append(self.other())
            self.began = time.perf_counter()

    def end(self, outcome: str) -> None:
        pass


def measure(model: object, source: Source, batch_size: int, pairs: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Seconds a step of the bare blocks and of `train`'s, and the pairs' ratios, without the blocks that compile."""
    turns = Turns(bare(model, source, batch_size))
    source = dataclasses.replace(source, validation=None, test=None)  # an evaluation is then a wait, and nothing else
    workload = Workload.from_model(model, source, batch_size=batch_size)
    train(workload, optlab.adamw(1e-3), steps=BLOCK * (pairs + 2), evaluate_every=BLOCK, observers=[turns])
    theirs, ours = np.asarray(turns.theirs[1:]), np.asarray(turns.ours[2:])
    return theirs, ours, ours / (0.5 * (theirs[:-1] + theirs[1:]))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pairs", type=int, default=60, help="blocks of 25 steps of each")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "loop_overhead.md")
    arguments = parser.parse_args()
    lines = [
        f"`python benchmarks/loop_overhead.py --pairs {arguments.pairs}`, jax {jax.__version__}, "
        f"Python {platform.python_version()}, {jax.devices()[0].device_kind}",
        "",
        "| workload | bare step, ms | step of `train`, ms | ratio, median | middle half of resampled medians |",
        "|---|---|---|---|---|",
    ]
    for name, workload in workloads().items():
        theirs, ours, ratios = measure(*workload, arguments.pairs)
        resampled = np.median(np.random.default_rng(0).choice(ratios, (1000, len(ratios))), axis=1)
        low, high = np.quantile(resampled, [0.25, 0.75])
        plain, full = 1e3 * np.median(theirs), 1e3 * np.median(ours)
        lines.append(f"| {name} | {plain:.2f} | {full:.2f} | {np.median(ratios):.3f} | {low:.3f} – {high:.3f} |")
        print(lines[-1], flush=True)
    arguments.out.write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
