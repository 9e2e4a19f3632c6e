"""Every strategy against one device: 20 steps of small models on eight simulated devices, from the same state.

    python benchmarks/equality.py                       # writes benchmarks/results/equality.md
    python benchmarks/equality.py --only ResNet muon    # prints the cells whose name holds all these words

In float64 the parameters, running statistics and moving averages must be one device's to 1e-9, which proves the logic.
In float32 the sums over devices are rounded in another order, and sgd must stay within 2e-6; how far rules that divide
by a norm carry this on is printed. A difference is max|a − b| / max|a| of a leaf, the largest over the leaves. The norm
of the first gradient, over one device's, shows a sum that should be a mean: it would be 8.

The programs are compiled with few optimizations (XLA_FLAGS below), most of the time being compilation.
"""

from __future__ import annotations

import argparse
import contextlib
import functools
import itertools
import os
import platform
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

os.environ["XLA_FLAGS"] = (
    os.environ.get("XLA_FLAGS", "") + " --xla_force_host_platform_device_count=8"
    " --xla_backend_optimization_level=0 --xla_llvm_disable_expensive_passes=true"
)  # before JAX is imported
os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

import jax
import numpy as np
import optax

import optlab
from optlab.models import mlp, transformer
from optlab.models.resnet import ResNet
from optlab.training import Workload, init_state, make_mesh, make_step, parallelize

RESULTS = Path(__file__).parent / "results"
STEPS, EXAMPLES = 20, 16
LIMIT = {"float64": 1e-9, "float32": 2e-6}  # in float32 for sgd
MESHES = {"pmap": (8, 1), "jit": (8, 1), "zero1": (8, 1), "fsdp": (8, 1), "jit × model": (4, 2)}


class Images:
    """Random images with labels and unequal weights, another batch every step."""

    def batch(self, step: int) -> dict[str, np.ndarray]:
        rng = np.random.default_rng(step)
        inputs = rng.normal(size=(EXAMPLES, 8, 8, 3)).astype(np.float32)
        weight = rng.uniform(0.5, 1.5, EXAMPLES).astype(np.float32)
        return {"inputs": inputs, "labels": rng.integers(0, 10, EXAMPLES), "weight": weight}


class Text:
    """Random tokens, of which the last ones of some examples don't count."""

    def batch(self, step: int) -> dict[str, np.ndarray]:
        rng = np.random.default_rng(step)
        tokens = rng.integers(0, 32, (EXAMPLES, 9))
        weight = (np.arange(8) < rng.integers(4, 9, (EXAMPLES, 1))).astype(np.float32)
        return {"inputs": tokens[:, :-1], "labels": tokens[:, 1:], "weight": weight}


# Key biases get no gradient but rounding's where nothing but the softmax follows: qk_norm gives them one to compare.
GPT = {"length": 8, "width": 16, "depth": 1, "heads": 2, "qk_norm": True}
# By name: a function of the dtypes and, for BatchNorm, the mapped axis; the data; what it is tried under.
MODELS: dict[str, tuple[Callable[..., Any], Any, tuple[str, ...]]] = {
    "MLP": (lambda axis, **types: mlp(10, widths=(16, 24), **types), Images(), tuple(MESHES)),
    "ResNet, BatchNorm": (
        lambda axis, **types: ResNet(10, stages=(1, 1), width=8, axis_name=axis, **types),
        Images(),
        tuple(MESHES),
    ),
    "Transformer": (lambda axis, **types: transformer(32, **GPT, **types), Text(), tuple(MESHES)),
    "Transformer, dropout": (
        lambda axis, **types: transformer(32, **GPT, dropout=0.2, **types),
        Text(),
        tuple(s for s in MESHES if s != "pmap"),  # whose masks are each device's own
    ),
}
OPTIMIZERS: dict[str, Callable[[str | None], optax.GradientTransformation]] = {
    "sgd": lambda axis: optlab.sgd(0.01, momentum=0.9),
    "adamw": lambda axis: optlab.adamw(1e-3),
    "muon": lambda axis: optlab.muon(1e-3, orthogonalizer=optlab.orthogonalize(axis_name=axis or ())),
}
OPTIONS: dict[str, dict[str, Any]] = {
    "plain": {},
    "accumulation 2": {"accumulate": 2},
    "clipping": {"clip": 0.1},
    "EMA": {"ema": 0.9},
}


@dataclass(frozen=True)
class Cell:
    """One comparison, and what came out."""

    dtype: str
    model: str
    optimizer: str
    option: str
    strategy: str
    difference: float
    leaf: str
    ratio: float

    def __str__(self) -> str:
        where = f"{self.dtype} | {self.strategy} | {self.model} | {self.optimizer} | {self.option}"
        return f"{where}: {self.difference:.1e} in {self.leaf}, gradient's ratio {self.ratio:.6f}"

    @property
    def is_right(self) -> bool:
        is_bound = self.dtype == "float64" or self.optimizer == "sgd"
        return abs(self.ratio - 1) < 5e-4 and (not is_bound or self.difference <= LIMIT[self.dtype])


def workload_of(model: str, dtype: str, axis: str | None) -> Workload:
    build, data, _ = MODELS[model]
    source: Any = SimpleNamespace(train=data, validation=None, test=None)
    return Workload.from_model(build(axis, dtype=dtype, param_dtype=dtype), source)


@functools.cache
def initial(model: str, dtype: str) -> Any:
    """(parameters, running statistics) that every strategy begins with."""
    return jax.jit(workload_of(model, dtype, None).init)(jax.random.key(0))


def trained(model: str, optimizer: str, option: dict[str, Any], dtype: str, strategy: str) -> tuple[Any, float]:
    """(what training made: parameters, running statistics and average; the first gradient's norm)."""
    axis = "data" if strategy == "pmap" else None
    settings = dict(option)
    tx = OPTIMIZERS[optimizer](axis)
    if clip := settings.pop("clip", None):
        tx = optax.chain(optax.clip_by_global_norm(clip), tx)
    step = make_step(workload_of(model, dtype, axis).loss, tx, axis_name=axis, **settings)
    mesh = make_mesh(*MESHES[strategy]) if strategy in MESHES else None
    place_state, place_batch, step = parallelize(step, strategy.split()[0], mesh)

    state = place_state(init_state(*initial(model, dtype), tx, key=jax.random.key(1), ema="ema" in settings))
    batches, norm = MODELS[model][1], 0.0
    for t in range(STEPS):
        state, metrics = step(state, place_batch(batches.batch(t)))
        norm = norm or float(metrics["gradient_norm"][0])
    return jax.device_get((state.params, state.model_state, state.ema)), norm


def largest_difference(one: Any, other: Any) -> tuple[float, str]:
    """Of two trees: (max|a − b| / max|a| of the leaf where it is largest, that leaf's path)."""
    found = []
    for (path, a), b in zip(jax.tree_util.tree_leaves_with_path(one), jax.tree.leaves(other), strict=True):
        difference = float(np.max(np.abs(a - b)) / np.max(np.abs(a)))
        difference = difference if np.isfinite(difference) else np.inf  # max() passes over NaN
        found.append((difference, jax.tree_util.keystr(path[1:], simple=True, separator="/")))
    return max(found)


def settings_of(words: list[str]) -> dict[tuple[str, ...], list[str]]:
    """{(dtype, model, optimizer, option): the strategies to try}, of the cells that hold all words."""
    found = {}
    for dtype, option, model, optimizer in itertools.product(LIMIT, OPTIONS, MODELS, OPTIMIZERS):
        names = (dtype, model, optimizer, option)
        if strategies := [s for s in MODELS[model][2] if set(words) <= _words(*names, s)]:
            found[names] = strategies
    return found


def cells(words: list[str]) -> Iterator[Cell]:
    for (dtype, model, optimizer, option), strategies in settings_of(words).items():
        with jax.enable_x64(dtype == "float64"):
            setting = model, optimizer, OPTIONS[option], dtype
            expected, norm = trained(*setting, "single")
            for strategy in strategies:
                result, own = trained(*setting, strategy)
                differs = largest_difference(expected, result)
                yield Cell(dtype, model, optimizer, option, strategy, *differs, own / norm)


def _words(*names: str) -> set[str]:
    return {word for name in names for word in (name, *name.replace(",", "").split())}


def table(done: list[Cell]) -> list[str]:
    """Strategy × model × optimizer, the worst over the options, for each dtype."""
    lines = []
    for dtype in LIMIT:
        lines += ["", f"Largest difference in {dtype}, the worst of {', '.join(OPTIONS)}:", ""]
        lines += [f"| model | optimizer | {' | '.join(MESHES)} |", f"|---|---|{'---|' * len(MESHES)}"]
        for model, optimizer in itertools.product(MODELS, OPTIMIZERS):
            row = []
            for strategy in MESHES:
                here = (dtype, model, optimizer, strategy)
                found = [c.difference for c in done if (c.dtype, c.model, c.optimizer, c.strategy) == here]
                row.append(f"{max(found):.1e}" if found else "–")
            lines.append(f"| {model} | {optimizer} | {' | '.join(row)} |")
    return lines


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="*", default=[], metavar="WORD", help="cells with all these words; no file")
    words = parser.parse_args().only
    jax.config.update("jax_compilation_cache_dir", str(Path(__file__).parent.parent / ".jax_cache"))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.2)
    began, done = time.perf_counter(), []
    with contextlib.suppress(KeyboardInterrupt):  # what was done until then is written
        for cell in cells(words):
            done.append(cell)
            print(f"{'ok  ' if cell.is_right else 'FAIL'} {time.perf_counter() - began:5.0f} s  {cell}", flush=True)
    wrong, asked = sum(not c.is_right for c in done), sum(map(len, settings_of(words).values()))
    summary = (
        f"{len(done)} of {asked} cells, {wrong} of them not as they should be (float64 within {LIMIT['float64']:g}, "
        f"float32 under sgd within {LIMIT['float32']:g}). The first gradient's norm over one device's is 1 within "
        f"{max((abs(c.ratio - 1) for c in done), default=0):.1e}."
    )
    print(summary)
    if not words:
        head = (
            f"`python benchmarks/equality.py`, jax {jax.__version__}, optax {optax.__version__}, "
            f"Python {platform.python_version()}, eight simulated devices (cpu)"
        )
        failed = ["", *(f"- {c}" for c in done if not c.is_right)] if wrong else []
        (RESULTS / "equality.md").write_text("\n".join([head, "", summary, *failed, *table(done)]) + "\n")
    raise SystemExit(bool(wrong))


if __name__ == "__main__":
    main()
