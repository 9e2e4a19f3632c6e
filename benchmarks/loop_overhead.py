"""What the loop costs: `train(…)` against a bare jitted Flax/Optax step on the same model, batches and optimizer.

    python benchmarks/loop_overhead.py            # writes benchmarks/results/loop_overhead.md

The two take turns in one process. A turn's time is the median over blocks of 50 steps, at whose ends both wait for the
device; the first block, which holds the compilation, is left out. The figure is the median over the rounds of the ratio
of the two turns. The bare loop takes its batches from the same `Batches`, and measures nothing but the loss.
"""

from __future__ import annotations

import argparse
import dataclasses
import itertools
import platform
import statistics
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import optax

import optlab
from optlab.data import Batches, Source, digits, text
from optlab.models import mlp, transformer
from optlab.training import Workload, cross_entropy, train

BLOCK = 50


def workloads() -> dict[str, tuple[object, Source, int]]:
    return {
        "MLP 3×1024, batch 256": (mlp(10, widths=[1024] * 3), digits(), 256),
        "GPT 2×128, 16×128 bytes": (transformer(256, length=128, depth=2), text(length=128), 16),
    }


def bare(model: object, source: Source, batch_size: int, blocks: int) -> float:
    """Seconds a step of the plainest loop that one would write."""
    tx, batches = optlab.adamw(1e-3), Batches(source.train, batch_size)
    params = model.init(jax.random.key(0), batches.batch(0)["inputs"])["params"]
    opt_state = tx.init(params)

    def loss(params, batch):
        return jnp.mean(cross_entropy(model.apply({"params": params}, batch["inputs"], train=True), batch))

    def step(params, opt_state, batch):
        value, grads = jax.value_and_grad(loss)(params, batch)
        updates, opt_state = tx.update(grads, opt_state, params)
        return optax.apply_updates(params, updates), opt_state, value

    step = jax.jit(step, donate_argnums=(0, 1))
    times = []
    for block in range(blocks + 1):
        began = time.perf_counter()
        for t in range(BLOCK):
            params, opt_state, value = step(params, opt_state, jax.device_put(batches.batch(block * BLOCK + t)))
        value.block_until_ready()
        times.append((time.perf_counter() - began) / BLOCK)
    return statistics.median(times[1:])


class Clock:
    """An observer that notes when each block ended."""

    def begin(self, start: int, steps: int) -> None:
        self.times: list[float] = []

    def record(self, record: dict[str, float]) -> None:
        if record["step"] % BLOCK == 0:
            self.times.append(time.perf_counter())

    def end(self, outcome: str) -> None:
        pass


def looped(model: object, source: Source, batch_size: int, blocks: int) -> float:
    """Seconds a step of `train`, with its prefetch, metrics, guard and log line every ten steps."""
    clock, steps = Clock(), BLOCK * (blocks + 1)
    source = dataclasses.replace(source, validation=None, test=None)  # an evaluation is then a wait, and nothing else
    workload = Workload.from_model(model, source, batch_size=batch_size)
    train(workload, optlab.adamw(1e-3), steps=steps, evaluate_every=BLOCK, observers=[clock])
    return statistics.median((b - a) / BLOCK for a, b in itertools.pairwise(clock.times))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--blocks", type=int, default=4, help="blocks of 50 steps a turn")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "loop_overhead.md")
    arguments = parser.parse_args()
    device = jax.devices()[0].device_kind
    lines = [
        f"`python benchmarks/loop_overhead.py --rounds {arguments.rounds} --blocks {arguments.blocks}`, "
        f"jax {jax.__version__}, Python {platform.python_version()}, {device}",
        "",
        "| workload | bare step, ms | step of `train`, ms | ratio, median (min – max) |",
        "|---|---|---|---|",
    ]
    for name, workload in workloads().items():
        turns = [
            (bare(*workload, arguments.blocks), looped(*workload, arguments.blocks)) for _ in range(arguments.rounds)
        ]
        ratios = sorted(ours / plain for plain, ours in turns)
        plain, ours = (1e3 * statistics.median(side) for side in zip(*turns, strict=True))
        ratio = f"{statistics.median(ratios):.3f} ({ratios[0]:.3f} – {ratios[-1]:.3f})"
        lines.append(f"| {name} | {plain:.2f} | {ours:.2f} | {ratio} |")
        print(lines[-1], flush=True)
    arguments.out.write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
