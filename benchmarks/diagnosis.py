"""Faults planted into training runs, and what `optlab.diagnose` calls them: recall, precision, a confusion table.

    python benchmarks/diagnosis.py [--workloads mlp net vit resnet] [--healthy 3] [--out FILE]

Every kind of fault is planted into every workload; healthy runs use six optimizers at ordinary and at halved learning
rates, each with several seeds. A name counts as right if it is the fault's, or one whose cure is the same. The rules'
thresholds were set on `mlp` and `net`; `vit` and `resnet` were not looked at before.
"""

from __future__ import annotations

import argparse
import collections
import functools
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np
import optax
from flax import nnx
from sklearn.datasets import load_digits

import optlab
from optlab import models, schedules
from optlab.data import arrays
from optlab.runs._metrics import as_columns
from optlab.training import GuardError, Workload, accuracy, train

STEPS = 300
HIGH = {"learning rate too high", "diverged", "starts far off"}
DIGITS = load_digits()
RNG = np.random.default_rng(0)
X, Y = (DIGITS.images.astype(np.float32)[..., None] - 4.88) / 6.02, DIGITS.target
R = RNG.standard_normal((2000, 8)).astype(np.float32)
T = (np.sin(R[:, :1]) + R[:, 1:2] * R[:, 2:3]).astype(np.float32)


class Net(nnx.Module):
    """A user's own model, for regression."""

    def __init__(self, rngs: nnx.Rngs):
        self.a, self.b, self.c = (nnx.Linear(m, n, rngs=rngs) for m, n in ((8, 64), (64, 64), (64, 1)))

    def __call__(self, x: jax.Array) -> jax.Array:
        return self.c(nnx.relu(self.b(nnx.relu(self.a(x)))))


def squared(outputs: jax.Array, batch: Any) -> jax.Array:
    return ((outputs - batch["labels"]) ** 2).sum(-1)


def classifier(model: Any, inputs: Any = X, labels: Any = Y, batch_size: int = 64) -> Workload:
    return Workload.from_model(model, arrays(inputs, labels), batch_size=batch_size, metrics={"accuracy": accuracy})


def regression(inputs: Any = R, labels: Any = T, batch_size: int = 64) -> Workload:
    return Workload.from_model(Net, arrays(inputs, labels), loss=squared, batch_size=batch_size)


WORKLOADS: dict[str, tuple[Callable[..., Workload], Any, Any]] = {
    "mlp": (functools.partial(classifier, models.mlp(10, widths=(64, 64))), X, Y),
    "net": (regression, R, T),
    "vit": (
        functools.partial(classifier, models.vision_transformer(10, patch=2, width=32, depth=2, heads=2)),
        X,
        Y,
    ),
    "resnet": (functools.partial(classifier, models.resnet20(10)), X, Y),
}


def cosine(peak: float, steps: int = STEPS, warmup: int = 20) -> Any:
    return schedules.warmup_cosine(peak, steps, warmup=warmup)


def sgd(rate: Any) -> Any:
    return optlab.sgd(rate, momentum=0.9)


HEALTHY: dict[str, tuple[Callable[[Any], Any], float]] = {
    "sgd": (sgd, 0.02),
    "adam": (optlab.adam, 3e-3),
    "adamw": (optlab.adamw, 3e-3),
    "lion": (optlab.lion, 3e-4),
    "muon": (optlab.muon, 0.01),
    "soap": (optlab.soap, 3e-3),
}


def faults(make: Callable[..., Workload], A: Any, B: Any) -> Iterator[tuple[str, set[str], Workload, Any, Any]]:
    """(kind, the names that are right, workload, optimizer, the schedule that is logged)."""
    mixed = RNG.permutation(len(B))
    yield "sgd ×1000", HIGH, make(), sgd(cosine(20.0)), None
    yield "adamw ×300", HIGH, make(), optlab.adamw(cosine(1.0)), None
    yield "muon ×200", HIGH, make(), optlab.muon(cosine(2.0)), None
    yield "uphill", {"diverged"}, make(), optax.chain(sgd(cosine(0.02)), optax.scale(-1.0)), None
    yield "no learning rate", HIGH, make(), optlab.scale_by_adam(), None
    yield "adamw ÷100", {"learning rate too low"}, make(), optlab.adamw(cosine(3e-5)), None
    yield "adamw ÷1000", {"learning rate too low", "nothing moves"}, make(), optlab.adamw(cosine(3e-6)), None
    yield "sgd ÷300", {"learning rate too low"}, make(), sgd(cosine(7e-5)), None
    yield "rate 0", {"nothing moves"}, make(), optlab.adamw(0.0), None
    yield "frozen", {"nothing moves"}, make(), optax.chain(optlab.adamw(3e-3), optax.set_to_zero()), None
    yield "labels shuffled", {"memorizing"}, make(A, B[mixed]), optlab.adamw(cosine(3e-3)), None
    few = slice(0, 400)
    yield "few labels shuffled", {"memorizing"}, make(A[few], B[mixed][few]), optlab.adamw(cosine(3e-3)), None
    noise = np.where((RNG.random(len(B)) < 0.5).reshape(-1, *[1] * (B.ndim - 1)), B[mixed], B)
    yield "half the labels", {"overfitting", "memorizing"}, make(A[few], noise[few]), optlab.adamw(3e-3), None
    yield "inputs ×1000", HIGH, make(1000 * A, B), sgd(cosine(0.02)), None
    yield (
        "decay",
        {"weight decay too strong", "learning rate too high"},
        make(),
        optlab.adamw(cosine(3e-3), weight_decay=100.0),
        None,
    )
    clip = optax.chain(optax.clip_by_global_norm(1e-3), sgd(cosine(0.02)))
    yield "clipped", {"clipped nearly always", "learning rate too low"}, make(), clip, None
    short, late = cosine(3e-3, 30, 5), cosine(3e-3, STEPS, 280)
    yield "schedule ended", {"schedule ended too early"}, make(), optlab.adamw(short), short
    yield "warm-up too long", {"warm-up too long"}, make(), optlab.adamw(late), late
    yield "batches of 2", {"noisy"} | HIGH, make(batch_size=2), sgd(0.02), None


def diagnosed(workload: Workload, tx: Any, schedule: Any = None, seed: int = 0) -> list[str]:
    """The names of the ills of a run, the gravest first."""
    records: list[dict[str, Any]] = []
    outcome = "finished"

    class Keep:
        def begin(self, start: int, steps: int) -> None: ...
        def end(self, outcome: str) -> None: ...
        def record(self, record: Any) -> None:
            records.append(dict(record))

    logged = {} if schedule is None else {"schedules": {"learning_rate": schedule}}
    try:
        train(workload, tx, steps=STEPS, log_every=5, evaluate_every=15, seed=seed, observers=[Keep()], **logged)
    except GuardError as error:
        outcome = type(error).__name__
    if not records:  # it ended before anything was logged: the error said it
        return ["diverged"]
    evidence = optlab.diagnosis.Evidence("run", as_columns(records), outcome=outcome)
    return [finding.name for finding in optlab.diagnosis.examine(evidence) if finding.severity == "ill"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--workloads", nargs="+", default=list(WORKLOADS), choices=list(WORKLOADS))
    parser.add_argument("--healthy", type=int, default=2, help="seeds of every healthy optimizer and rate")
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    table: dict[str, dict[str, str]] = collections.defaultdict(dict)
    right, planted, called, healthy = 0, 0, 0, 0
    for name in args.workloads:
        make, A, B = WORKLOADS[name]
        for kind, names, workload, tx, schedule in faults(make, A, B):
            found = diagnosed(workload, tx, schedule)
            is_right = bool(found) and found[0] in names
            table[kind][name] = (
                (found[0] if found else "healthy") if is_right else f"**{found[0] if found else 'healthy'}**"
            )
            right, planted = right + is_right, planted + 1
            print(f"{name:7} {kind:20} {', '.join(found) or 'healthy'}{'' if is_right else '   <- wrong'}", flush=True)
        for optimizer, (factory, rate) in HEALTHY.items():
            for factor in (1.0, 0.5):
                for seed in range(args.healthy):
                    found = diagnosed(make(), factory(cosine(rate * factor)), cosine(rate * factor), seed)
                    called, healthy = called + bool(found), healthy + 1
                    if found:
                        print(
                            f"{name:7} healthy {optimizer} {rate * factor:g}: {', '.join(found)}   <- wrong", flush=True
                        )
    words = [
        f"{right} of {planted} faults are named right ({right / planted:.0%}); {called} of {healthy} healthy runs are "
        f"called ill. {STEPS} steps each, curves alone, without a config. Wrong names are bold.",
        "",
        f"| fault | {' | '.join(args.workloads)} |",
        f"|---|{'---|' * len(args.workloads)}",
        *(f"| {kind} | {' | '.join(row.get(w, '') for w in args.workloads)} |" for kind, row in table.items()),
    ]
    print("\n".join(words))
    if args.out:
        args.out.write_text("# Diagnosis of planted faults\n\n" + "\n".join(words) + "\n")


if __name__ == "__main__":
    main()
