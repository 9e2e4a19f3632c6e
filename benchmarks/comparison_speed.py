"""Trials a minute of a comparison's executors, side by side, and whether the one that is chosen is the fastest.

    python benchmarks/comparison_speed.py            # writes benchmarks/results/comparison_speed.md

A population trains many trials in one program, series the same program's trials in turn, runs are ordinary ones, each
compiled for itself. Models and runs are small. "Whole" counts compilation, as a study of that many trials does;
"pace" leaves it out.
"""

from __future__ import annotations

import argparse
import os
import platform
import statistics
import tempfile
import time
from pathlib import Path

import jax
import numpy as np

import optlab
from optlab.compare.choosing import OPEN, open_to, race
from optlab.compare.contenders import contend
from optlab.compare.study import EXECUTORS
from optlab.compare.trials import Trial
from optlab.data import arrays, text
from optlab.models import resnet20, transformer
from optlab.training import Workload

WORDS = "the quick brown fox jumps over a lazy dog and then it sleeps\n"


def workloads() -> dict[str, tuple[Workload, int]]:
    """By name a workload, and the steps of its runs."""
    random = np.random.default_rng(0)
    images = random.normal(size=(512, 32, 32, 3)).astype(np.float32)
    labels = random.integers(0, 10, 512).astype(np.int32)
    pictures = arrays(images, labels, validation=0.125, test=0.125)
    with tempfile.NamedTemporaryFile("w", suffix=".txt") as file:
        file.write(WORDS * 2000)
        file.flush()
        prose = text(file.name, length=64)
    return {
        "MLP, digits, batch 128": (Workload.digits(), 300),
        "Transformer 64 × 2, 64 bytes, batch 16": (
            Workload.from_model(transformer(256, width=64, depth=2, heads=2), prose, batch_size=16), 40,
        ),
        "ResNet-20, 32 × 32, batch 32": (Workload.from_model(resnet20(10), pictures, batch_size=32), 6),
    }  # fmt: skip


def measured(workload: Workload, executor: str, steps: int, trials: int) -> tuple[float, float]:
    """(seconds of all trials, seconds a step of one trial after compilation)."""
    contender = contend("adamw", "adamw", space=None, schedule=optlab.schedules.warmup_cosine, steps=steps)
    train = EXECUTORS[executor](workload, contender, max(1, steps // 3), trials)
    points = [Trial("adamw", 0, i, 0, False, {"learning_rate": 1e-3 * 1.3**i}, i) for i in range(trials)]
    began = time.monotonic()
    results = [r for part in train(points) for r in part]
    return time.monotonic() - began, statistics.median(r.pace for r in results)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--trials", type=int, default=4)
    parser.add_argument("--only", default="", help="workloads whose name has this in it")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "comparison_speed.md")
    arguments = parser.parse_args()
    lines = [
        f"`python benchmarks/comparison_speed.py --trials {arguments.trials}`, jax {jax.__version__}, "
        f"{jax.devices()[0].device_kind}, {os.cpu_count()} cores, Python {platform.python_version()}.",
        "",
        "| workload | executor | chosen | ms a step and trial | trials a minute, whole | without compilation |",
        "|---|---|---|---|---|---|",
    ]
    print("\n".join(lines))
    for name, (workload, steps) in workloads().items():
        if arguments.only not in name:
            continue
        contender = contend("adamw", "adamw", space=None, schedule=optlab.schedules.warmup_cosine, steps=steps)
        chosen, _ = open_to(workload, contender)
        if chosen == OPEN:
            paces, _ = race(workload, contender, max(1, steps // 20), arguments.trials)
            chosen = min(paces, key=paces.__getitem__)
        for executor in EXECUTORS:
            if "ResNet" in name and executor == "population" and jax.default_backend() == "cpu":
                lines.append(f"| {name} | {executor} | | 13,000 ms a step in another run: left out | | |")
                continue
            whole, pace = measured(workload, executor, steps, arguments.trials)
            lines.append(
                f"| {name}, {steps} steps | {executor} | {'yes' if executor == chosen else ''} | {1000 * pace:.3g} | "
                f"{60 * arguments.trials / whole:.3g} | {60 / (pace * steps):.3g} |"
            )
            print(lines[-1], flush=True)
    if not arguments.only:
        arguments.out.write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
