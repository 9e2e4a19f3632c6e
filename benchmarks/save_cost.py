"""What a save costs: how long `Checkpoints.save` blocks, and how much slower a run is that saves every 100 steps.

    python benchmarks/save_cost.py            # writes benchmarks/results/save_cost.md

Blocking: a state of so many MiB (parameters, and two moments of Adam's), in eight arrays each. One save of ours, one of
Orbax's own `save_async` of the same arrays, in turns, each after the one before is on the disk; nothing else runs. Ours
takes the fingerprints and asks Orbax; after it a thread writes, reads everything back and compares.

Slow-down: a model under Adam. Runs of 100 steps of one jitted step take turns: one without a save, one that starts a
save of ours after its first step, one that starts Orbax's alone. Each ends when its last step is done and, so that none
pays for another, when the save is on the disk (ours: and verified). `while training` stops the clock at the last step,
`to the end` after that wait as well. A run's ratio is its time over the mean of the runs without a save before and
after it; the figures are medians. What a save takes from a run depends little on the step: 2 % of 100 steps are kept
from steps of half of `lost` on.
"""

from __future__ import annotations

import argparse
import dataclasses
import os
import platform
import shutil
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from orbax.checkpoint import v1 as ocp

from optlab.data import Batches, digits, text
from optlab.models import mlp, transformer
from optlab.training import Checkpoints, TrainState, Workload, init_state, make_step

SIZES = (1, 128, 512)
EVERY = 100
ARMS = ("none", "ours", "Orbax's")


def state_of(mib: int) -> TrainState:
    size = mib * 2**20 // 4 // 3 // 8
    keys = jax.random.split(jax.random.key(0), 8)
    params = {f"layer_{i}": jax.random.normal(key, (size,)) for i, key in enumerate(keys)}
    return jax.block_until_ready(init_state(params, {}, optax.adam(1e-3), key=jax.random.key(1)))


def timed(call: Callable[[], Any], finish: Callable[[Any], None]) -> tuple[float, float]:
    """Seconds until the call returns, and until what it began is finished."""
    began = time.perf_counter()
    begun = call()
    returned = time.perf_counter()
    finish(begun)
    return returned - began, time.perf_counter() - began


def blocking(mib: int, tries: int) -> dict[str, np.ndarray]:
    """Seconds of every try: (until the call returns, until all is done) of ours, and of Orbax's."""
    state = state_of(mib)
    arrays = {str(i): x for i, x in enumerate(jax.tree.leaves((state.params, state.opt_state)))}
    found: dict[str, list[tuple[float, float]]] = {"ours": [], "Orbax's": []}
    with tempfile.TemporaryDirectory() as folder:
        checkpoints = Checkpoints(Path(folder) / "ours", keep=1)
        for i in range(tries + 1):  # the first compiles
            at = dataclasses.replace(state, step=jnp.int32(i))
            found["ours"].append(timed(partial(checkpoints.save, at, {}), lambda _: checkpoints.wait()))
            path = f"{folder}/orbax-{i}"
            found["Orbax's"].append(timed(partial(ocp.save_async, path, arrays), lambda response: response.result()))
            shutil.rmtree(path)
    return {name: np.asarray(times[1:]) for name, times in found.items()}


def slow_down(workload: Workload, rounds: int, every: int = EVERY) -> tuple[float, dict[str, np.ndarray]]:
    """MiB of the state, and seconds of every run of so many steps by arm: (while training, to the end)."""
    tx, batches = optax.adam(1e-3), Batches(workload.data.train, workload.batch_size)
    step = jax.jit(make_step(workload.loss, tx), donate_argnums=0)
    state = init_state(*jax.jit(workload.init)(jax.random.key(0)), tx, key=jax.random.key(1))
    mib = sum(x.nbytes for x in jax.tree.leaves((state.params, state.opt_state))) / 2**20
    batch = jax.device_put(batches.batch(0))
    times: dict[str, list[tuple[float, float]]] = {arm: [] for arm in ARMS}
    with tempfile.TemporaryDirectory() as folder:
        checkpoints = Checkpoints(Path(folder) / "ours", keep=1)
        for run in range(3 * (rounds + 1) + 1):
            arm, response = ARMS[run % 3], None
            began = time.perf_counter()
            for i in range(every):
                state, metrics = step(state, batch)
                if i % 10 == 0:
                    jax.block_until_ready(metrics)
                if i == 0 and arm == "ours":
                    checkpoints.save(state, {})
                elif i == 0 and arm == "Orbax's":
                    arrays = jax.tree.leaves((state.params, state.opt_state))
                    response = ocp.save_async(f"{folder}/{run}", {str(i): x for i, x in enumerate(arrays)})
            jax.block_until_ready(state.step)
            trained = time.perf_counter() - began
            checkpoints.wait()
            if response is not None:
                response.result()
                shutil.rmtree(f"{folder}/{run}")
            times[arm].append((trained, time.perf_counter() - began))
    return mib, {arm: np.asarray(found[1:]) for arm, found in times.items()}  # the first round compiles


def workloads() -> dict[str, Workload]:
    mlps = {width: mlp(10, widths=[width] * 3) for width in (256, 1024)}
    return {
        "MLP 3×256, batch 128": Workload.from_model(mlps[256], digits(), batch_size=128),
        "MLP 3×1024, batch 256": Workload.from_model(mlps[1024], digits(), batch_size=256),
        "GPT 4×128, batch 8×256": Workload.from_model(transformer(256), text(), batch_size=8),
    }


def spread(values: np.ndarray, scale: float = 1.0, digits: int = 0) -> str:
    low, middle, high = np.quantile(values, [0.25, 0.5, 0.75]) * scale
    return f"{middle:.{digits}f} ({low:.{digits}f} – {high:.{digits}f})"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tries", type=int, default=7, help="saves of each size")
    parser.add_argument("--pairs", type=int, default=7, help="runs of 100 steps with a save, of each model")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "save_cost.md")
    arguments = parser.parse_args()
    lines = [
        f"`python benchmarks/save_cost.py --tries {arguments.tries} --pairs {arguments.pairs}`, jax {jax.__version__}, "
        f"Python {platform.python_version()}, {jax.devices()[0].device_kind}, {os.cpu_count()} cores, load "
        f"{os.getloadavg()[0]:.1f} at the start. Medians, and the middle half.",
        "",
        "| state, MiB | ours blocks, ms | Orbax's blocks, ms | ours verified after, ms | Orbax's written after, ms |",
        "|---|---|---|---|---|",
    ]
    print("\n".join(lines))
    for mib in SIZES:
        found = blocking(mib, arguments.tries)
        cells = [spread(found[name][:, i], 1e3) for i in (0, 1) for name in ("ours", "Orbax's")]
        lines.append(f"| {mib} | {' | '.join(cells)} |")
        print(lines[-1], flush=True)
    lines += [
        "",
        "| model | state, MiB | step, ms | saves | time / no save's, while training | to the end | lost, ms a save |",
        "|---|---|---|---|---|---|---|",
    ]
    for name, workload in workloads().items():
        mib, times = slow_down(workload, arguments.pairs)
        without = times["none"]
        between = 0.5 * (without[:-1, :1] + without[1:, :1])
        for arm in ARMS[1:]:
            ratios, lost = times[arm] / between, 1e3 * (times[arm][:, 0] - between[:, 0])
            cells = [f"{mib:.0f}", f"{1e3 * np.median(without[:, 0]) / EVERY:.1f}", arm]
            cells += [spread(ratios[:, 0], 1, 3), spread(ratios[:, 1], 1, 3), spread(lost)]
            lines.append(f"| {name} | {' | '.join(cells)} |")
            print(lines[-1], flush=True)
    arguments.out.write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
