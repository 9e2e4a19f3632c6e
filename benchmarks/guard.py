"""What the guard costs: a jitted step of AdamW with each policy beside the same step without a guard.

    python benchmarks/guard.py                    # writes benchmarks/results/guard.md

The four take turns, step by step or in small blocks, and a ratio is of neighbours. Times are the process' CPU time,
which other programs on the machine disturb less than they do the clock's.
"""

from __future__ import annotations

import argparse
import platform
import time
from pathlib import Path
from typing import Any

import jax
import numpy as np

import optlab
from optlab.data import Batches, Source, digits, text
from optlab.models import mlp, transformer
from optlab.training import Workload, init_state, make_step

POLICIES: dict[str, dict[str, Any]] = {
    "none": {"guard": None},
    "stop": {"guard": "stop"},
    "stop, spike=6": {"guard": "stop", "spike": 6.0},
    "skip": {"guard": "skip"},
}
MIB = 2**20


def workloads() -> dict[str, tuple[Any, Source, int, int]]:
    """(model, data, batch size, steps a turn)"""
    return {
        "MLP 3×1024, batch 256": (mlp(10, widths=[1024] * 3), digits(), 256, 5),
        "GPT 4×768, 2×128 bytes": (transformer(256, length=128, depth=4, width=768), text(length=128), 2, 1),
    }


def measure(model: Any, source: Source, batch_size: int, block: int, turns: int) -> tuple[np.ndarray, list[int], int]:
    """(CPU seconds a step by turn and policy, bytes beside the state by policy, parameters)."""
    workload, tx = Workload.from_model(model, source, batch_size=batch_size), optlab.adamw(1e-3)
    batch = jax.device_put(Batches(source.train, batch_size).batch(0))
    steps, states, scratch = [], [], []
    for policy in POLICIES.values():
        first = lambda key, spike="spike" in policy: init_state(*workload.init(key), tx, key=key, spike=spike)
        states.append(jax.jit(first)(jax.random.key(0)))
        jitted = jax.jit(make_step(workload.loss, tx, **policy), donate_argnums=0)
        steps.append(jitted.lower(states[-1], batch).compile())
        scratch.append(steps[-1].memory_analysis().temp_size_in_bytes)
    seconds = np.zeros((turns + 1, len(steps)))
    for turn in range(turns + 1):
        for i, step in enumerate(steps):
            began = time.process_time()
            for _ in range(block):
                states[i], _ = step(states[i], batch)
            jax.block_until_ready(states[i].params)
            seconds[turn, i] = (time.process_time() - began) / block
    return seconds[1:], scratch, sum(x.size for x in jax.tree.leaves(states[0].params))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--turns", type=int, default=25, help="how often each policy has its turn")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "guard.md")
    arguments = parser.parse_args()
    lines = [
        f"`python benchmarks/guard.py --turns {arguments.turns}`, jax {jax.__version__}, "
        f"Python {platform.python_version()}, {jax.devices()[0].device_kind}",
        "",
        "| workload | parameters | guard | CPU time a step, ms | beside none | memory beside the state, MiB |",
        "|---|---|---|---|---|---|",
    ]
    for name, workload in workloads().items():
        seconds, scratch, count = measure(*workload, arguments.turns)
        for i, policy in enumerate(POLICIES):
            ratio = np.median(seconds[:, i] / seconds[:, 0])
            cells = (name, f"{count / 1e6:.1f} M", policy, f"{1e3 * np.median(seconds[:, i]):.1f}", f"{ratio:.3f}")
            lines.append(f"| {' | '.join(cells)} | {scratch[i] / MIB:.0f} |")
            print(lines[-1], flush=True)
    arguments.out.write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
