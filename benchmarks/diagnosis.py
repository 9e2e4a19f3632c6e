"""Faults planted into training runs, and what `optlab.diagnose` calls them: recall, precision, a confusion table.

    python benchmarks/diagnosis.py [--workloads mlp net vit resnet] [--seeds 2] [--out FILE]

Every kind of fault is planted into every workload, and each run is diagnosed twice: by its curves alone, and with a
probe. Healthy runs use six optimizers, at ordinary and at halved learning rates. A name counts as right if it is the
fault's, or one whose cure is the same; a fault that did no harm is named in a note. A run without a planted fault
counts as healthy if its held-out loss falls at least half as far as that of the workload's best one; else it says
nothing about false alarms.

The curves' thresholds were set on `mlp` and `net`; the rules of `vit` and `resnet` were mended by what they showed. The
hold-out that no rule was mended by is `benchmarks/diagnosis_unseen.py`.
"""

from __future__ import annotations

import argparse
import collections
import dataclasses
import functools
import pickle
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from sklearn.datasets import load_digits

import optlab
from optlab import models, schedules
from optlab.data import arrays
from optlab.diagnosis import Evidence, examine
from optlab.examination._patient import Patient
from optlab.runs._metrics import as_columns
from optlab.training import GuardError, Workload, accuracy, train

STEPS = 200
HIGH = {"learning rate too high", "diverged", "starts far off", "warm-up too short"}
LOW = {"learning rate too low", "nothing moves"}
# What no curve shows: the loss falls as that of a sound run does.
UNSEEN = ("first layer frozen", "examples in order", "copies in both splits", "one class", "head under Muon")
# What curves show as a loss that stays, and leave open: "learns nothing" asks for a probe.
OPEN = ("labels shuffled", "wrong end", "constant weights", "weights ÷1000", "dead units")
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


def classifier(model: Any, inputs: Any = X, labels: Any = Y, *, batch_size: int = 64, **how: Any) -> Workload:
    draw = {"draw": how.pop("draw")} if "draw" in how else {}
    return Workload.from_model(
        model, arrays(inputs, labels, **how), batch_size=batch_size, metrics={"accuracy": accuracy}, **draw
    )


def regression(inputs: Any = R, labels: Any = T, *, batch_size: int = 64, **how: Any) -> Workload:
    draw = {"draw": how.pop("draw")} if "draw" in how else {}
    return Workload.from_model(Net, arrays(inputs, labels, **how), loss=squared, batch_size=batch_size, **draw)


WORKLOADS: dict[str, tuple[Callable[..., Workload], Any, Any]] = {
    "mlp": (functools.partial(classifier, models.mlp(10, widths=(64, 64))), X, Y),
    "net": (regression, R, T),
    "vit": (
        functools.partial(classifier, models.vision_transformer(10, patch=2, width=24, depth=1, heads=2)),
        X,
        Y,
    ),
    "resnet": (functools.partial(classifier, models.ResNet(10, stages=(1, 1), width=8)), X, Y),
}


def cosine(peak: float, steps: int = STEPS, warmup: int = 15) -> Any:
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


def changed(workload: Workload, change: Callable[[str, jax.Array], jax.Array]) -> Workload:
    """The workload with other initial parameters."""

    def init(key: jax.Array) -> Any:
        params, model_state = workload.init(key)
        return jax.tree.map_with_path(lambda k, x: change(jax.tree_util.keystr(k), x), params), model_state

    return dataclasses.replace(workload, init=init)


def ended(workload: Workload, f: Callable[[jax.Array], jax.Array], loss: Callable[[Any, Any], jax.Array]) -> Workload:
    """The workload whose model ends in a function of its outputs."""

    def apply(params: Any, model_state: Any, inputs: Any, key: Any, train: bool) -> Any:
        outputs, model_state = workload.apply(params, model_state, inputs, key, train)
        return f(outputs), model_state

    def whole(params: Any, model_state: Any, batch: Any, key: Any, train: bool) -> Any:
        outputs, model_state = apply(params, model_state, batch["inputs"], key, train)
        values = loss(outputs, batch)
        return values.mean(), (model_state, {"loss": (values.sum(), jnp.float32(values.size))})

    return dataclasses.replace(workload, apply=apply, loss=whole)


def is_kernel(path: str, x: jax.Array) -> bool:
    return x.ndim >= 2


def first_kernel(params: Any) -> Any:
    """True for the first matrix in the tree's order."""
    leaves = jax.tree.leaves(params)
    at = next(i for i, x in enumerate(leaves) if x.ndim >= 2)
    return jax.tree.unflatten(jax.tree.structure(params), [i == at for i in range(len(leaves))])


def faults(make: Callable[..., Workload], A: Any, B: Any) -> Iterator[tuple[str, set[str], Workload, Any, Any]]:
    """(kind, the names that are right, workload, optimizer, the schedule that is logged)."""
    has_classes = B.dtype.kind in "iu"
    mixed, few = RNG.permutation(len(B)), slice(0, 400)
    noise = np.where((RNG.random(len(B)) < 0.5).reshape(-1, *[1] * (B.ndim - 1)), B[mixed], B)
    by_label = np.argsort(B.reshape(-1), kind="stable")
    wide = A.copy()
    wide[:, A.shape[1] // 2] *= 1e4
    half = len(A) // 2
    twice = np.concatenate([A[:half], A[:half]]), np.concatenate([B[:half], B[:half]])
    adamw, usual = optlab.adamw(cosine(3e-3)), cosine(3e-3)
    apart = {"labels apart from inputs", "memorizing"}
    scales = {"features not scaled"} | HIGH
    yield "sgd ×1000", HIGH, make(), sgd(cosine(20.0)), cosine(20.0)
    yield "adamw ×300", HIGH, make(), optlab.adamw(cosine(1.0)), cosine(1.0)
    uphill = optax.chain(sgd(cosine(0.02)), optax.scale(-1.0))
    yield "uphill", {"updates point uphill", "diverged"}, make(), uphill, None
    yield "no learning rate", {"no learning rate", "updates point uphill"} | HIGH, make(), optlab.scale_by_adam(), None
    yield "adamw ÷1000", LOW, make(), optlab.adamw(cosine(3e-6)), cosine(3e-6)
    yield "sgd ÷300", LOW, make(), sgd(cosine(7e-5)), cosine(7e-5)
    yield "rate 0", {"nothing moves"}, make(), optlab.adamw(0.0), None
    frozen = optax.chain(adamw, optax.masked(optax.set_to_zero(), first_kernel))
    yield "first layer frozen", {"a part frozen"}, make(), frozen, usual
    yield "labels shuffled", apart, make(A, B[mixed]), adamw, usual
    yield "few labels shuffled", apart, make(A[few], B[mixed][few]), adamw, usual
    yield "half the labels", {"overfitting", *apart}, make(A[few], noise[few]), optlab.adamw(3e-3), None
    yield "inputs ×1000", scales, make(1000 * A, B), sgd(cosine(0.02)), cosine(0.02)
    yield "one feature ×10⁴", scales, make(wide, B), sgd(cosine(0.02)), cosine(0.02)
    yield "examples in order", {"data in order"}, make(A[by_label], B[by_label], draw="ordered"), adamw, usual
    yield "copies in both splits", {"validation leaks"}, make(*twice), adamw, usual
    yield "one class", {"one class"}, make(A, 0 * B), adamw, usual
    yield "splits scaled apart", {"splits differ"}, make(A, B, validation=(50 * A[:200], B[:200])), adamw, usual
    decay = optlab.adamw(cosine(3e-3), weight_decay=100.0)
    yield "decay", {"weight decay too strong", "learning rate too high"}, make(), decay, usual
    clip = optax.chain(optax.clip_by_global_norm(1e-3), sgd(cosine(0.02)))
    yield "clipped", {"clipped nearly always", *LOW}, make(), clip, cosine(0.02)
    short, late = cosine(3e-3, 20, 4), cosine(3e-3, STEPS, 190)
    yield "schedule ended", {"schedule ended too early"}, make(), optlab.adamw(short), short
    yield "warm-up too long", {"warm-up too long"}, make(), optlab.adamw(late), late
    yield "no warm-up", {"noisy"} | HIGH, make(), optlab.adamw(0.1), None
    yield "batches of 2", {"noisy"} | HIGH, make(batch_size=2), sgd(0.02), None
    if has_classes:
        loss = lambda outputs, batch: optax.softmax_cross_entropy_with_integer_labels(outputs, batch["labels"])
        wrong = ended(make(), jax.nn.softmax, loss)
    else:
        wrong = ended(make(A, B - 3), jax.nn.sigmoid, squared)
    yield "wrong end", {"wrong loss for the output"}, wrong, adamw, usual
    alike = changed(make(), lambda path, x: jnp.full_like(x, 0.05) if is_kernel(path, x) else x)
    yield "constant weights", {"bad initialization"}, alike, adamw, usual
    large = changed(make(), lambda path, x: 30 * x if is_kernel(path, x) else x)
    off = {"bad initialization", "saturated softmax", "exploded gradients"} | HIGH
    yield "weights ×30", off, large, sgd(cosine(0.02)), cosine(0.02)
    tiny = changed(make(), lambda path, x: 1e-3 * x if is_kernel(path, x) else x)
    yield "weights ÷1000", {"vanished gradients", "bad initialization", *LOW}, tiny, sgd(cosine(0.002)), cosine(0.002)
    dark = changed(make(), lambda path, x: x - 10 if path.endswith("bias']") or path.endswith(".bias") else x)
    yield "dead units", {"dead units", "vanished gradients", "bad initialization"}, dark, adamw, usual
    yield "head under Muon", {"wrong routing"}, make(), optax.contrib.muon(cosine(0.01)), cosine(0.01)
    low = changed(make(), lambda path, x: x.astype(jnp.bfloat16))
    yield "bfloat16", {"updates round to nothing", *LOW}, low, optlab.adamw(cosine(2e-5)), cosine(2e-5)


def named(evidence: Evidence, severity: str) -> list[str]:
    return [finding.name for finding in examine(evidence) if finding.severity == severity]


def trained(workload: Workload, tx: Any, schedule: Any, seed: int) -> dict[str, Any]:
    """What a run leaves behind: its columns, its outcome, and its last step with its parameters and model state."""
    records: list[dict[str, Any]] = []
    outcome, state = "finished", None

    class Keep:
        def begin(self, start: int, steps: int) -> None: ...
        def end(self, outcome: str) -> None: ...
        def record(self, record: Any) -> None:
            records.append(dict(record))

    logged = {} if schedule is None else {"schedules": {"learning_rate": schedule}}
    try:
        kept = {"log_every": 5, "evaluate_every": 10, "observers": [Keep()], **logged}
        state = train(workload, tx, steps=STEPS, seed=seed, **kept).state
    except GuardError as error:
        outcome = type(error).__name__
    if not records:  # it ended before anything was logged
        records.append({"step": 1, "train/loss": float("inf")})
    leaves = None if state is None else [np.asarray(x) for x in jax.tree.leaves((state.params, state.model_state))]
    return {"metrics": as_columns(records), "outcome": outcome, "step": STEPS, "leaves": leaves}


def diagnosed(workload: Workload, tx: Any, schedule: Any = None, seed: int = 0, file: Path | None = None) -> Any:
    """A run's ills by its curves and with a probe, gravest first, the notes with a probe, the held-out loss's fall.

    It is trained, unless a file holds what it left behind.
    """
    if file is not None and file.exists():
        run = pickle.loads(file.read_bytes())
    else:
        run = trained(workload, tx, schedule, seed)
        if file is not None:
            file.write_bytes(pickle.dumps(run))
    patient, state = Patient(workload, tx, seed, None), None
    if run["leaves"] is not None:
        tree = jax.tree.structure((patient.first.params, patient.first.model_state))
        params, model_state = jax.tree.unflatten(tree, [jnp.asarray(x) for x in run["leaves"]])
        step = jnp.asarray(run["step"], patient.first.step.dtype)
        state = dataclasses.replace(patient.first, step=step, params=params, model_state=model_state)
    evidence = Evidence("run", run["metrics"], outcome=run["outcome"])
    probed = dataclasses.replace(evidence, **Patient(workload, tx, seed, state).probed(evidence))
    held_out = evidence.validation
    fall = float(held_out[0] - held_out.min()) if len(held_out) > 1 else 0.0
    found = {"curves": named(evidence, "ill"), "probe": named(probed, "ill"), "notes": named(probed, "note")}
    return {**found, "fall": fall}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--workloads", nargs="+", default=list(WORKLOADS), choices=list(WORKLOADS))
    parser.add_argument("--seeds", type=int, default=2, help="of a healthy optimizer and rate; ×12 runs a workload")
    parser.add_argument("--keep", type=Path, help="a folder of trained runs: those in it are diagnosed again")
    parser.add_argument("--out", type=Path, help="write the tables here")
    args = parser.parse_args()
    rows: list[dict[str, Any]] = []
    if args.keep:
        args.keep.mkdir(parents=True, exist_ok=True)

    def add(name: str, kind: str, right: set[str] | None, *run: Any) -> None:
        file = None if args.keep is None else args.keep / f"{name} {kind}.pickle"
        row = {"workload": name, "kind": kind, "right": None if right is None else sorted(right)}
        rows.append({**row, **diagnosed(*run, file=file)})
        print(f"{name:7} {kind:22} {said(rows[-1], 'curves')}  |  {said(rows[-1], 'probe')}", flush=True)

    began = time.monotonic()
    for name in args.workloads:
        make, A, B = WORKLOADS[name]
        for kind, right, *run in faults(make, A, B):
            add(name, kind, right, *run)
        for optimizer, (factory, rate) in HEALTHY.items():
            for factor in (1.0, 0.5):
                for seed in range(args.seeds):
                    schedule = cosine(rate * factor)
                    label = f"{optimizer} {rate * factor:g} seed {seed}"
                    add(name, label, None, make(), factory(schedule), schedule, seed)
    text = tables(rows, args.workloads)
    print(f"{text}\n{time.monotonic() - began:.0f} s")
    if args.out:
        args.out.write_text(f"# Diagnosis of planted faults\n\n{text}\n")


def said(row: dict[str, Any], how: str) -> str:
    return ", ".join(row[how]) or "healthy"


def is_right(row: dict[str, Any], how: str) -> bool:
    """True if the first name is the fault's; by curves, "learns nothing" is where they leave the cause open."""
    right = {*row["right"], *(["learns nothing"] if how == "curves" and row["kind"] in OPEN else [])}
    return bool(row[how]) and row[how][0] in right


def is_noted(row: dict[str, Any], best: float) -> bool:
    """True if a run that learned as a healthy one does is called healthy, with the fault's name in a note."""
    return not row["probe"] and row["fall"] >= best / 2 and bool(set(row["notes"]) & set(row["right"]))


def tables(rows: list[dict[str, Any]], workloads: list[str]) -> str:
    """The results as Markdown."""
    planted, others = ([r for r in rows if (r["right"] is not None) == is_planted] for is_planted in (True, False))
    best = {w: max((r["fall"] for r in others if r["workload"] == w), default=0.0) for w in workloads}
    healthy = [r for r in others if r["fall"] >= best[r["workload"]] / 2]
    visible = [r for r in planted if r["kind"] not in UNSEEN]
    noted = [r for r in planted if is_noted(r, best[r["workload"]])]
    lines = [
        f"{STEPS} steps a run, without a config. Of {len(others)} runs without a planted fault {len(healthy)} count as "
        "healthy: their held-out loss fell at least half as far as that of the workload's best. Of the other "
        f"{len(others) - len(healthy)}, {sum(bool(r['probe']) for r in others if r not in healthy)} are called ill.",
        "",
        "| | named right, of all | called ill, of those right | healthy runs called ill |",
        "|---|---|---|---|",
    ]
    for how, of in (("curves", planted), ("curves", visible), ("probe", planted)):
        right, any_ = [r for r in of if is_right(r, how)], [r for r in of if set(r[how]) & set(r["right"])]
        called, false = [r for r in of if r[how]], [r for r in healthy if r[how]]
        precision = len(right) / max(1, len(called) + len(false))
        also = f", and {len(noted)} in a note" if how == "probe" and noted else ""
        lines.append(
            f"| {how}{', of what curves can show' if of is visible else ''} | {len(right)} of {len(of)} "
            f"({len(right) / len(of):.0%}){also}; among all names {len(any_)} | {precision:.0%} of "
            f"{len(called) + len(false)} | {len(false)} of {len(healthy)} |"
        )
    for how in ("curves", "probe"):
        lines += ["", f"## By {'its curves' if how == 'curves' else 'its curves and a probe'}", ""]
        lines += ["The first name; wrong ones are bold.", "", f"| fault | {' | '.join(workloads)} |"]
        lines += [f"|---|{'---|' * len(workloads)}", *confusions(planted, noted, workloads, how)]
    lines += ["", "## Hit rate of each name", "", "| name | with a probe, said first | rightly | by curves | rightly |"]
    lines += ["|---|---|---|---|---|"]
    counts = []
    for how in ("probe", "curves"):
        counts.append(collections.Counter(r[how][0] for r in [*planted, *healthy] if r[how]))
        counts.append(collections.Counter(r[how][0] for r in planted if is_right(r, how)))
    names = sorted(counts[0] | counts[2], key=lambda name: (-counts[0][name], -counts[2][name]))
    lines += [f"| {name} | {' | '.join(str(count[name]) for count in counts)} |" for name in names]
    false = [f"{r['workload']} {r['kind']}: {', '.join(r['probe'])}" for r in healthy if r["probe"]]
    lines += ["", "## Healthy runs called ill, with a probe", "", *(f"- {x}" for x in false or ["none"])]
    return "\n".join(lines)


def confusions(planted: list[Any], noted: list[Any], workloads: list[str], how: str) -> Iterator[str]:
    """The lines of a table: what each fault was called in each workload."""
    table: dict[str, dict[str, str]] = collections.defaultdict(dict)
    for r in planted:
        found = "in a note" if how == "probe" and r in noted else r[how][0] if r[how] else "healthy"
        table[r["kind"]][r["workload"]] = found if is_right(r, how) or found == "in a note" else f"**{found}**"
    for kind, row in table.items():
        label = f"{kind} (no curve shows it)" if how == "curves" and kind in UNSEEN else kind
        yield f"| {label} | {' | '.join(row.get(w, '') for w in workloads)} |"


if __name__ == "__main__":
    main()
