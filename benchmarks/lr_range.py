"""How far `optlab.lr_range`'s suggestion is from the best learning rate of a sweep, beside fastai's four rules.

    python benchmarks/lr_range.py                    # writes benchmarks/results/lr_range.md; some ten minutes
    python benchmarks/lr_range.py --only "MLP, sgd"  # one pair; writes nothing

Twelve pairs of a workload and an optimizer. The sweep trains at full length at rates an octave apart, with two seeds,
and goes on until its best isn't at its edge; the best has the lowest mean validation loss. The range test sees none of
it. The ramp for fastai's rules is fastai's: from 1e-7 to 10 in 100 steps, at no other schedule.
"""

from __future__ import annotations

import argparse
import functools
import math
import os
import platform
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np
from flax import nnx
from jax import numpy as jnp
from sklearn.datasets import load_digits

import optlab
from optlab import schedules
from optlab.data import arrays
from optlab.models import mlp, transformer
from optlab.training import Workload
from optlab.tuning import _ramp, lr_range
from optlab.tuning._trainings import Trainings

SEEDS, SEED = (4, 5), 3  # of the sweep and of the range test; 0 to 2 were seen while it was made
GOAL = 3
NOTE = """
The lengths of the two looks, the 97 % and the 3 % were chosen on these pairs with other seeds, where a second look of a
third of the run had been within the factor on 8 of 12 pairs; these seeds were not seen before. A factor says nothing
about the cost: on the residual convolutions with momentum, whose loss falls late and suddenly, a factor of 1.2 is the
difference of the two losses.
"""
OPTIMIZERS: dict[str, tuple[Any, float]] = {  # with the middle of the sweep, as a power of two
    "sgd": (optlab.sgd, -2),
    "momentum": (functools.partial(optlab.sgd, momentum=0.9), -5),
    "adamw": (optlab.adamw, -8),
    "lion": (optlab.lion, -10),
    "muon": (optlab.muon, -6),
}


class Tanh(nnx.Module):
    """A user's own model: tanh, LayerNorm and a skip connection."""

    def __init__(self, rngs: nnx.Rngs):
        self.first, self.norm = nnx.Linear(64, 96, rngs=rngs), nnx.LayerNorm(96, rngs=rngs)
        self.second, self.last = nnx.Linear(96, 96, rngs=rngs), nnx.Linear(96, 10, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        h = jnp.tanh(self.norm(self.first(x)))
        return self.last(h + jnp.tanh(self.second(h)))


class Residual(nnx.Module):
    """A small residual net of convolutions."""

    def __init__(self, rngs: nnx.Rngs):
        conv = functools.partial(nnx.Conv, kernel_size=(3, 3), rngs=rngs)
        self.stem, self.first, self.second = conv(1, 16), conv(16, 16), conv(16, 16)
        self.last = nnx.Linear(16, 10, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        x = nnx.relu(self.stem(x))
        return self.last(jnp.mean(x + self.second(nnx.relu(self.first(x))), axis=(1, 2)))


def images(*shape: int) -> Any:
    pixels, labels = load_digits(return_X_y=True)
    return arrays((pixels / 16).astype(np.float32).reshape(-1, *shape), labels.astype(np.int32), test=0.0)


def chain(windows: int = 1500, length: int = 16, letters: int = 12) -> Any:
    """Windows of a Markov chain of second order."""
    random = np.random.default_rng(0)
    ladder = random.dirichlet(np.full(letters, 0.15), size=(letters, letters)).cumsum(axis=-1)
    found = np.zeros(windows * (length + 1), np.int32)
    for t, u in enumerate(random.random(len(found) - 2), start=2):
        found[t] = min(letters - 1, int(np.searchsorted(ladder[found[t - 2], found[t - 1]], u)))
    rows = found.reshape(windows, length + 1)
    return arrays(rows[:, :-1].copy(), rows[:, 1:].copy(), test=0.0)


WORKLOADS: dict[str, tuple[Callable[[], Workload], int, tuple[str, ...]]] = {
    "MLP": (
        lambda: Workload.from_model(mlp(10, widths=[128, 128]), images(64), batch_size=64),
        300,
        ("sgd", "momentum", "adamw", "lion", "muon"),
    ),
    "Transformer": (
        lambda: Workload.from_model(transformer(12, width=32, depth=2, heads=2, length=16), chain(), batch_size=16),
        160,
        ("adamw", "lion", "muon"),
    ),
    "residual convolutions": (
        lambda: Workload.from_model(lambda rngs: Residual(rngs), images(8, 8, 1), batch_size=64),
        200,
        ("momentum", "adamw"),
    ),
    "own NNX": (
        lambda: Workload.from_model(lambda rngs: Tanh(rngs), images(64), batch_size=64),
        300,
        ("momentum", "muon"),
    ),
}


def swept(trainings: Trainings, middle: float, steps: int, others: tuple[float, ...]) -> dict[float, float]:
    """By learning rate the mean validation loss at full length; infinite where a seed diverged."""

    def ends(rates: list[float]) -> dict[float, float]:
        both = []
        for trainings.seed in SEEDS:
            both.append([t.end("validation/loss") for t in trainings.train(rates, steps)])
        means = np.mean(both, axis=0)
        return {r: float(m) if math.isfinite(m) else math.inf for r, m in zip(rates, means, strict=True)}

    found = ends([2.0 ** (middle + k) for k in range(-3, 4)])
    while (best := min(found, key=found.__getitem__)) in (min(found), max(found)):
        found |= ends([best / 2 if best == min(found) else best * 2])
    return found | ends([r for r in others if r not in found])


def measured(name: str, optimizer: str) -> dict[str, Any]:
    make, steps, _ = WORKLOADS[name]
    factory, middle = OPTIMIZERS[optimizer]
    workload, schedule = make(), None if optimizer == "sgd" else schedules.warmup_cosine
    began = time.monotonic()
    found = lr_range(workload, factory, steps=steps, schedule=schedule, seed=SEED)
    seconds = time.monotonic() - began
    spent = sum(t.steps for t in (*found.first, *found.second))
    trainings = Trainings(workload, factory, schedule=schedule, steps=steps, seed=SEED)
    ramp = _ramp.ramp_of(1e-7, 10.0, trainings.ramp(1e-7, 10.0, _ramp.STEPS).losses)
    suggestion = found.suggestion or math.nan
    sweep = swept(trainings, middle, steps, (suggestion,))
    octaves = {r: loss for r, loss in sweep.items() if r != suggestion}
    best = min(octaves, key=octaves.__getitem__)
    rules = {"lr-range": suggestion, **ramp.suggestions()}
    factors = {rule: max(rate / best, best / rate) for rule, rate in rules.items()}
    return {
        "workload": name, "optimizer": optimizer, "best": best, "loss": octaves[best], "suggestion": suggestion,
        "suggested loss": sweep[suggestion], "factors": factors, "runs": spent / steps, "seconds": seconds,
    }  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default="", help="pairs whose name has this in it; writes nothing")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "lr_range.md")
    arguments = parser.parse_args()
    names = ("lr-range", *_ramp.RULES)
    lines = [
        f"`python benchmarks/lr_range.py`, jax {jax.__version__}, {jax.devices()[0].device_kind}, {os.cpu_count()} "
        f"cores, Python {platform.python_version()}. Factors are from the sweep's best rate, at least 1.",
        "",
        "| workload, optimizer | best rate | its loss | lr-range | its loss | full runs spent | factor: "
        + " | ".join(names)
        + " |",
        "|---" * (6 + len(names)) + "|",
    ]
    print("\n".join(lines), flush=True)
    rows = []
    for name, (_, _, optimizers) in WORKLOADS.items():
        for optimizer in optimizers:
            if arguments.only not in f"{name}, {optimizer}":
                continue
            row = measured(name, optimizer)
            rows.append(row)
            cells = [f"{row['factors'][n]:.2g}" for n in names]
            lines.append(
                f"| {name}, {optimizer} | {row['best']:.2g} | {row['loss']:.3g} | {row['suggestion']:.2g} | "
                f"{row['suggested loss']:.3g} | {row['runs']:.1f} | {' | '.join(cells)} |"
            )
            print(lines[-1], f"{row['seconds']:.0f} s", flush=True)
    within = [sum(row["factors"][n] <= GOAL for row in rows) for n in names]
    lines.append(
        f"| **within a factor of {GOAL}** | | | | | | {' | '.join(f'**{w} of {len(rows)}**' for w in within)} |"
    )
    print(lines[-1])
    if not arguments.only:
        arguments.out.write_text("\n".join(lines) + "\n" + NOTE)


if __name__ == "__main__":
    main()
