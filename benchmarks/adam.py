"""What our Adam-type chains cost: a jitted step of optlab.adamw beside one of optax.adamw.

    python benchmarks/adam.py            # writes benchmarks/results/adam.md

Both step the same parameters with the same gradients in one process, in blocks that take turns. A pair's ratio is one
of our blocks over the mean of theirs before and after it; the figure is the median over the pairs, its interval the
middle half of medians of resampled pairs. Peak memory is what the compiled program asks for: arguments, results and
scratch, less what results share with donated arguments. FLOPs and bytes are the compiler's count.
"""

from __future__ import annotations

import argparse
import platform
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

import optlab

RATE = 1e-3


def masked(tree: Any) -> Any:
    return jax.tree.map(lambda x: x.ndim > 1, tree)


CHAINS = {
    "adamw": (lambda: optlab.adamw(RATE), lambda: optax.adamw(RATE)),
    "adamw, warm-up and cosine": (
        lambda: optlab.adamw(optlab.schedules.warmup_cosine(RATE, 1000, warmup=100)),
        lambda: optax.adamw(optax.warmup_cosine_decay_schedule(0.0, RATE, 100, 1000)),
    ),
    "adamw, matrices alone decay": (
        lambda: optlab.adamw(RATE, decay_roles=["matrix"]),
        lambda: optax.adamw(RATE, mask=masked),
    ),
    "nadam": (lambda: optlab.optimizers.nadam(RATE), lambda: optax.nadam(RATE)),
    "lion": (lambda: optlab.lion(RATE), lambda: optax.lion(RATE)),
}


def parameters(width: int, depth: int) -> Any:
    """The matrices and vectors of a Transformer's blocks, in float32."""
    shapes = {"qkv": (width, 3 * width), "out": (width, width), "up": (width, 4 * width), "down": (4 * width, width)}
    keys = iter(jax.random.split(jax.random.key(0), depth * len(shapes)))
    layer = lambda shape: {"kernel": 0.02 * jax.random.normal(next(keys), shape), "bias": jnp.zeros(shape[1])}
    return {f"block_{i}": {name: layer(shape) for name, shape in shapes.items()} for i in range(depth)}


class Stepper:
    """One compiled step that gives its parameters and state away, and what it holds between blocks."""

    def __init__(self, tx: optax.GradientTransformation, params: Any):
        def step(params: Any, state: Any, grads: Any) -> tuple[Any, Any]:
            updates, state = tx.update(grads, state, params)
            return optax.apply_updates(params, updates), state

        self.params, self.state, self.grads = jax.tree.map(jnp.copy, params), tx.init(params), params
        self.step: Callable[..., Any] = jax.jit(step, donate_argnums=(0, 1)).lower(params, self.state, params).compile()

    def peak(self) -> int:
        """Bytes."""
        m = self.step.memory_analysis()
        sizes = m.argument_size_in_bytes + m.output_size_in_bytes + m.temp_size_in_bytes
        return sizes - m.alias_size_in_bytes

    def counted(self, what: str) -> float:
        """What the compiler counts of a step: "flops", "bytes accessed"."""
        return self.step.cost_analysis()[what]

    def block(self, steps: int) -> float:
        """Seconds a step."""
        began = time.perf_counter()
        for _ in range(steps):
            self.params, self.state = self.step(self.params, self.state, self.grads)
        jax.block_until_ready((self.params, self.state))
        return (time.perf_counter() - began) / steps


def measure(ours: Stepper, theirs: Stepper, pairs: int, steps: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Seconds a step of our blocks and of theirs, and the pairs' ratios."""
    ours.block(steps), theirs.block(steps)  # warm
    a, b = [], [theirs.block(steps)]
    for _ in range(pairs):
        a.append(ours.block(steps))
        b.append(theirs.block(steps))
    mine, other = np.asarray(a), np.asarray(b)
    return mine, other, mine / (0.5 * (other[:-1] + other[1:]))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pairs", type=int, default=60, help="blocks of each")
    parser.add_argument("--steps", type=int, default=10, help="steps in a block")
    parser.add_argument("--width", type=int, default=512, help="width of the Transformer whose parameters are moved")
    parser.add_argument("--depth", type=int, default=4, help="its blocks")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "adam.md")
    arguments = parser.parse_args()
    params = parameters(arguments.width, arguments.depth)
    count = sum(x.size for x in jax.tree.leaves(params))
    lines = [
        f"`python benchmarks/adam.py --pairs {arguments.pairs} --steps {arguments.steps} --width {arguments.width} "
        f"--depth {arguments.depth}`, {count:,} parameters in float32, jax {jax.__version__}, "
        f"optax {optax.__version__}, Python {platform.python_version()}, {jax.devices()[0].device_kind}",
        "",
        "| chain | optax, ms | optlab, ms | ratio, median | middle half of resampled medians | peak memory, ratio "
        "| FLOPs, ratio | bytes, ratio |",
        "|---|---|---|---|---|---|---|---|",
    ]
    print("\n".join(lines))
    for name, (make_ours, make_theirs) in CHAINS.items():
        ours, theirs = Stepper(make_ours(), params), Stepper(make_theirs(), params)
        mine, other, ratios = measure(ours, theirs, arguments.pairs, arguments.steps)
        resampled = np.median(np.random.default_rng(0).choice(ratios, (1000, len(ratios))), axis=1)
        low, high = np.quantile(resampled, [0.25, 0.75])
        counts = [ours.counted(what) / theirs.counted(what) for what in ("flops", "bytes accessed")]
        lines.append(
            f"| {name} | {1e3 * np.median(other):.3f} | {1e3 * np.median(mine):.3f} | {np.median(ratios):.3f} "
            f"| {low:.3f} – {high:.3f} | {ours.peak() / theirs.peak():.4f} | {counts[0]:.4f} | {counts[1]:.4f} |"
        )
        print(lines[-1], flush=True)
    arguments.out.write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
