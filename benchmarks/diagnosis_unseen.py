"""A hold-out of `benchmarks/diagnosis.py`: faults and workloads that no rule was made or changed by.

    python benchmarks/diagnosis_unseen.py [--out FILE]

It was written before the rules were last and looked at once, after that: eight kinds of faults, planted into a
character GPT and a recurrent network of Linen's, with healthy runs beside them. Its tables are read as those of
`benchmarks/diagnosis.py`.
"""

from __future__ import annotations

import argparse
import dataclasses
import functools
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np
import optax
from diagnosis import HEALTHY, HIGH, LOW, RNG, cosine, diagnosed, ended, first_kernel, said, sgd, tables
from flax import linen as nn

import optlab
from optlab.data import arrays
from optlab.models import transformer
from optlab.training import Workload, accuracy

LENGTH, LETTERS, TONES = 16, 12, 4


def letters(windows: int = 1500) -> tuple[np.ndarray, np.ndarray]:
    """Windows of a Markov chain of second order, and the next letters."""
    ladder = RNG.dirichlet(np.full(LETTERS, 0.15), size=(LETTERS, LETTERS)).cumsum(axis=-1)
    found = np.zeros(windows * (LENGTH + 1), np.int32)
    for t, u in enumerate(RNG.random(len(found) - 2), start=2):
        found[t] = min(LETTERS - 1, int(np.searchsorted(ladder[found[t - 2], found[t - 1]], u)))
    rows = found.reshape(windows, LENGTH + 1)
    return rows[:, :-1].copy(), rows[:, 1:].copy()


def tones(count: int = 2000) -> tuple[np.ndarray, np.ndarray]:
    """Noisy tones of four pitches at any phase, (N, 24, 1), and their pitches."""
    pitch, phase = RNG.integers(0, TONES, count), RNG.uniform(0, 2 * np.pi, count)
    at = np.arange(24) * (0.4 + 0.3 * pitch[:, None]) + phase[:, None]
    return (1.4 * np.sin(at) + RNG.normal(0, 0.3, at.shape)).astype(np.float32)[..., None], pitch


class Recurrent(nn.Module):
    """A GRU, and a head on its last state."""

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        x = nn.RNN(nn.GRUCell(features=32))(x)
        return nn.Dense(TONES)(x[:, -1])


def made(model: Any, x: np.ndarray, y: np.ndarray, X: Any = None, Y: Any = None, *, size: int = 32, **how: Any) -> Any:
    source = arrays(x if X is None else X, y if Y is None else Y, **how)
    return Workload.from_model(model, source, batch_size=size, metrics={"accuracy": accuracy})


CHARACTERS, SOUNDS = letters(), tones()
GPT = transformer(LETTERS, width=32, depth=2, heads=2, length=LENGTH)
WORKLOADS: dict[str, tuple[Callable[..., Workload], Any, Any]] = {
    "gpt": (functools.partial(made, GPT, *CHARACTERS), *CHARACTERS),
    "gru": (functools.partial(made, Recurrent(), *SOUNDS), *SOUNDS),
}


def is_last(params: Any) -> Any:
    """True for the last matrix in the tree's order."""
    leaves = jax.tree.leaves(params)
    at = max(i for i, x in enumerate(leaves) if x.ndim >= 2)
    return jax.tree.unflatten(jax.tree.structure(params), [i == at for i in range(len(leaves))])


def stopped(workload: Workload) -> Workload:
    """The workload whose first matrix gets no gradient."""

    def loss(params: Any, model_state: Any, batch: Any, key: Any, train: bool) -> Any:
        held = jax.tree.map(
            lambda x, is_first: jax.lax.stop_gradient(x) if is_first else x, params, first_kernel(params)
        )
        return workload.loss(held, model_state, batch, key, train)

    return dataclasses.replace(workload, loss=loss)


def cross_entropy(outputs: Any, batch: Any) -> jax.Array:
    return optax.softmax_cross_entropy_with_integer_labels(outputs, batch["labels"])


def faults(make: Callable[..., Workload], A: Any, B: Any) -> Iterator[tuple[str, set[str], Workload, Any, Any]]:
    """(kind, the names that are right, workload, optimizer, the schedule that is logged)."""
    adamw, usual = optlab.adamw(cosine(3e-3)), cosine(3e-3)
    held, few = len(A) // 10, slice(0, 40)
    apart = (A[:held], B[RNG.permutation(len(B))[:held]])
    frozen = optax.chain(adamw, optax.masked(optax.set_to_zero(), is_last))
    yield "last matrix frozen", {"a part frozen"}, make(), frozen, usual
    yield "gradient stopped", {"a part frozen"}, stopped(make()), adamw, usual
    yield "inputs all 0", {"inputs all alike"}, make(0 * A, B), adamw, usual
    shuffled = {"labels apart from inputs", "memorizing", "splits differ", "overfitting"}
    yield "held-out labels shuffled", shuffled, make(A, B, validation=apart), adamw, usual
    rest = {"validation": (A[len(A) // 2 :], B[len(A) // 2 :]), "test": 0.0}
    yield "40 examples", {"overfitting", "memorizing"}, make(A[few], B[few], **rest), optlab.adamw(3e-3), None
    sharp = ended(make(), lambda x: 100 * x, cross_entropy)
    off = {"saturated softmax", "bad initialization"} | HIGH
    yield "logits ×100", off, sharp, sgd(cosine(0.02)), cosine(0.02)
    small = ended(make(), lambda x: x, lambda outputs, batch: 1e-3 * cross_entropy(outputs, batch))
    yield "loss ÷1000", {"vanished gradients"} | LOW, small, sgd(cosine(0.02)), cosine(0.02)
    heavy = optlab.sgd(cosine(1.0), momentum=0.999)
    yield "momentum 0.999", HIGH | {"noisy"}, make(), heavy, cosine(1.0)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--workloads", nargs="+", default=list(WORKLOADS), choices=list(WORKLOADS))
    parser.add_argument("--healthy", action="store_true", help="the healthy runs alone")
    parser.add_argument("--out", type=Path, help="write the tables here")
    args = parser.parse_args()
    rows, began = [], time.monotonic()

    def add(name: str, kind: str, right: set[str] | None, *run: Any) -> None:
        row = {"workload": name, "kind": kind, "right": None if right is None else sorted(right), **diagnosed(*run)}
        rows.append(row)
        print(f"{name:7} {kind:24} {said(row, 'curves')}  |  {said(row, 'probe')}", flush=True)

    for name in args.workloads:
        make, A, B = WORKLOADS[name]
        for kind, right, *run in () if args.healthy else faults(make, A, B):
            add(name, kind, right, *run)
        for optimizer in ("adam", "adamw", "lion", "muon"):
            factory, rate = HEALTHY[optimizer]
            for seed in range(2):
                add(name, f"{optimizer} seed {seed}", None, make(), factory(cosine(rate)), cosine(rate), seed)
    text = tables(rows, args.workloads)
    print(f"{text}\n{time.monotonic() - began:.0f} s")
    if args.out:
        args.out.write_text(f"# Diagnosis of faults that no rule was made by\n\n{text}\n")


if __name__ == "__main__":
    main()
