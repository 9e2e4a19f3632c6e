"""What theory costs along training, as shares of a step's time on the digits' MLP.

    python benchmarks/theory.py            # writes benchmarks/results/theory.md

A measurement every 50 steps costs its own time beside that of 50 steps (a training step with AdamW and the guard).
Each is jitted alone and timed in turns with a block of steps, so that neighbours see the same machine: on the wall, and
in processor time, which other processes lengthen least. A turn is eight calls against a block of 50 steps; the figure
is the median of the ratios, its range the middle half. Per-example gradients are timed beside the batch's gradient.
"""

from __future__ import annotations

import argparse
import functools
import platform
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np

import optlab
from optlab.data import Batches
from optlab.theory import measures, noise
from optlab.training import Workload, init_state, make_step

EVERY, CALLS = 50, 8


def seconds(function: Callable[[], Any]) -> np.ndarray:
    """On the wall, and of the processor."""
    began = time.perf_counter(), time.process_time()
    jax.block_until_ready(function())
    return np.array([time.perf_counter() - began[0], time.process_time() - began[1]])


def ratios(one: Callable[[], Any], other: Callable[[], Any], turns: int) -> np.ndarray:
    """Time of one over the time of the other, turn by turn, after a warm-up."""
    one(), other()
    return np.array([seconds(one) / seconds(other) for _ in range(turns)])


def told(values: np.ndarray) -> str:
    """Both, as table cells."""
    quartiles = np.percentile(values, (25, 50, 75), axis=0).T
    return " | ".join(f"{middle:.3f} ({low:.3f} to {high:.3f})" for low, middle, high in quartiles)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--turns", type=int, default=30)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "theory.md")
    args = parser.parse_args()
    workload, tx = Workload.digits(), optlab.adamw(1e-3)
    state = init_state(*workload.init(jax.random.key(0)), tx, key=jax.random.key(0))
    batch = jax.tree.map(jax.numpy.asarray, Batches(workload.data.train, 128).batch(0))
    step = jax.jit(make_step(workload.loss, tx))
    for _ in range(100):
        state, _ = step(state, batch)

    def block() -> Any:
        s = state
        for _ in range(EVERY):
            s, _ = step(s, batch)
        return s

    rows = []
    for name, measure, bound in (
        ("sharpness every 50 steps, 5 products of 32 examples", measures.sharpness(EVERY), 0.10),
        ("sharpness every 50 steps, 4 products of all 128", measures.sharpness(EVERY, examples=None, matvecs=4), None),
        ("noise scale every 50 steps", measures.noise_scale(EVERY), 0.05),
    ):
        measured = jax.jit(functools.partial(measure.function, loss=workload.loss))
        rows.append(
            (
                name,
                told(ratios(lambda m=measured: [m(state, batch) for _ in range(CALLS)], block, args.turns) / CALLS),
                bound,
            )
        )
    key = jax.random.key(0)
    plain = jax.jit(jax.grad(lambda p: workload.loss(p, state.model_state, batch, key, True)[0]))
    each = jax.jit(lambda p: noise.per_example_gradients(workload.loss, p, state.model_state, batch, key))
    repeated = lambda f: lambda: [f(state.params) for _ in range(20)]
    rows.append(
        ("128 gradients by example, beside the batch's", told(ratios(repeated(each), repeated(plain), args.turns)), 3.0)
    )
    lines = [
        "# What theory costs along training\n",
        f"{args.turns} turns, {platform.machine()}, Python {platform.python_version()}, jax {jax.__version__}, "
        f"{jax.default_backend()}; digits, MLP 64-128-128-10, batch 128. `python benchmarks/theory.py`\n",
        "| what | share of training's time, or ratio (middle half), on the wall | of the processor | bound |",
        "|---|---|---|---|",
        *(f"| {name} | {value} | {'' if bound is None else bound} |" for name, value, bound in rows),
    ]
    print("\n".join(lines))
    args.out.write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
