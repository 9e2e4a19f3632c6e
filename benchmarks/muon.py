"""Muon's update beside `optax.contrib.muon`: time of a step, time to compile, and the work on each of eight devices.

    python benchmarks/muon.py step                # writes benchmarks/results/muon_step_<device>.md
    python benchmarks/muon.py compile             # … muon_compile.md
    python benchmarks/muon.py devices             # … muon_devices.md, on eight simulated CPU devices

Both get the same hidden matrices, all of them moved by Muon, in the same dtype, with five steps of Keller Jordan's
coefficients, β = 0.95 and Nesterov. The two take turns in one process; the figure is the median over the turns of the
ratio of a turn of ours to the mean of optax's turns before and after it.
"""

from __future__ import annotations

import argparse
import os
import platform
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path

if "devices" in sys.argv:  # before JAX is imported
    os.environ["XLA_FLAGS"] = os.environ.get("XLA_FLAGS", "") + " --xla_force_host_platform_device_count=8"

import jax
import jax.numpy as jnp
import numpy as np
import optax
from collectives import collectives
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

import optlab

RESULTS = Path(__file__).parent / "results"
Shapes = list[tuple[int, ...]]


def gpt(layers: int, width: int, *, fused: bool = False) -> Shapes:
    """Hidden matrices of a GPT: query, key, value, output, up, down."""
    attention = [(width, 3 * width), (width, width)] if fused else [(width, width)] * 4
    return layers * [*attention, (width, 4 * width), (4 * width, width)]


def resnet50() -> Shapes:
    """Convolutions of ResNet-50 but the first, as optax takes them: (height · width · in, out)."""
    shapes, inputs = [], 64
    for width, blocks in ((64, 3), (128, 4), (256, 6), (512, 3)):
        for block in range(blocks):
            shapes += [(inputs, width), (9 * width, width), (width, 4 * width)]
            shapes += [(inputs, 4 * width)] if block == 0 else []
            inputs = 4 * width
    return shapes


STEP = {
    "GPT-2 small: 48 of 768×768, 24 of 768×3072": gpt(12, 768),
    "square: 16 of 768×768": [(768, 768)] * 16,
    "square: 48 of 256×256": [(256, 256)] * 48,
    "1:8: 12 of 256×2048": [(256, 2048)] * 12,
    "ResNet-50's convolutions": resnet50(),
    "many small: 200 of 64×64": [(64, 64)] * 200,
    "many small: 200 of 32×128": [(32, 128)] * 200,
}
LARGE = {"1.3B: 24 layers of width 2048": gpt(24, 2048)}
COMPILE = {"576 matrices of 64×64": [(64, 64)] * 576, "48 layers of GPT shapes, width 1024": gpt(48, 1024)}


def ours(**settings: object) -> optax.GradientTransformation:
    return optax.chain(
        optlab.momentum(0.95, nesterov=True),
        optlab.orthogonalize(**settings),
        optlab.scale_by_matrix_shape("spectral"),
        optax.scale_by_learning_rate(0.02),
    )


def theirs() -> optax.GradientTransformation:
    return optax.contrib.muon(0.02, beta=0.95, nesterov=True)


def matrices(shapes: Shapes, dtype: str = "float32") -> list[jax.Array]:
    """Gradients with the spectrum of random matrices."""
    rng = np.random.default_rng(0)
    return [jnp.asarray(rng.standard_normal(s, np.float32) / np.sqrt(max(s)), dtype) for s in shapes]


def turn_of(tx: optax.GradientTransformation, params: list[jax.Array], seconds: float) -> Callable[[], float]:
    """A function that updates for about so long, and gives the seconds an update."""
    state = tx.init(params)

    def step(grads: list[jax.Array], state: optax.OptState, params: list[jax.Array]) -> tuple:
        updates, state = tx.update(grads, state, params)
        return optax.apply_updates(params, updates), state

    step = jax.jit(step, donate_argnums=(1, 2))
    grads, params = params, jax.tree.map(jnp.copy, params)
    count = 1

    def turn() -> float:
        nonlocal state, params
        began = time.perf_counter()
        for _ in range(count):
            params, state = step(grads, state, params)
        jax.block_until_ready(params)
        return (time.perf_counter() - began) / count

    turn()
    count = max(1, round(seconds / turn()))
    return turn


def paired(one: Callable[[], float], other: Callable[[], float], turns: int) -> tuple[float, float, list[float]]:
    """Median seconds of both, and the ratios of `one` to the mean of its neighbours."""
    b, a, ratios = [other()], [], []
    for _ in range(turns):
        a.append(one())
        b.append(other())
        ratios.append(2 * a[-1] / (b[-2] + b[-1]))
    return statistics.median(a), statistics.median(b), sorted(ratios)


def step(turns: int, seconds: float) -> None:
    device = jax.devices()[0]
    on_gpu = device.platform != "cpu"
    table = [
        "| matrices | dtype | optax.contrib.muon, ms | optlab, ms | ratio, median (min – max) |",
        "|---|---|---|---|---|",
    ]
    for name, shapes in (STEP | LARGE if on_gpu else STEP).items():
        for dtype in ("float32", "bfloat16") if on_gpu else ("float32",):
            params = matrices(shapes, dtype)
            settings = {"dtype": "bfloat16", "precision": "default"} if dtype == "bfloat16" else {}
            a, b, ratios = paired(turn_of(ours(**settings), params, seconds), turn_of(theirs(), params, seconds), turns)
            spread = f"{statistics.median(ratios):.3f} ({ratios[0]:.3f} – {ratios[-1]:.3f})"
            table.append(f"| {name} | {dtype} | {1e3 * b:.2f} | {1e3 * a:.2f} | {spread} |")
            print(table[-1], flush=True)
    write(f"muon_step_{device.device_kind.replace(' ', '_')}", f"step --turns {turns}", table)


def compile_times(tx: optax.GradientTransformation, shapes: Shapes) -> tuple[float, float]:
    """(trace and lower, compile) in seconds, from nothing."""
    jax.clear_caches()
    params = [jax.ShapeDtypeStruct(s, jnp.float32) for s in shapes]
    state = jax.eval_shape(tx.init, params)
    began = time.perf_counter()
    lowered = jax.jit(tx.update).lower(params, state, params)
    lowered_at = time.perf_counter()
    lowered.compile()
    return lowered_at - began, time.perf_counter() - lowered_at


def compilation(turns: int, seconds: float) -> None:
    del seconds
    table = ["| matrices | | optax.contrib.muon, s | optlab, s | ratio, median |", "|---|---|---|---|---|"]
    for name, shapes in COMPILE.items():
        pairs = [(compile_times(ours(), shapes), compile_times(theirs(), shapes)) for _ in range(turns)]
        for what, pick in (("trace + lower", lambda t: t[0]), ("trace + lower + compile", sum)):
            a, b = [pick(one) for one, _ in pairs], [pick(other) for _, other in pairs]
            ratio = statistics.median(x / y for x, y in zip(a, b, strict=True))
            table.append(f"| {name} | {what} | {statistics.median(b):.2f} | {statistics.median(a):.2f} | {ratio:.3f} |")
            print(table[-1], flush=True)
    write("muon_compile", f"compile --turns {turns}", table)


def devices(turns: int, seconds: float) -> None:
    """From the compiled program of one device: FLOPs, and what the exchanges bring to it."""
    del turns, seconds
    mesh = jax.make_mesh((8,), ("x",), axis_types=(AxisType.Auto,))
    shapes = 48 * [(32, 32)] + 24 * [(32, 128)]  # so small that no loop hides its FLOPs from the compiler's count
    size = 4 * sum(m * n for m, n in shapes)
    # Replicated: what a device doesn't make itself has to come to it, 7/8 of everything. Sharded: it needs its share of
    # the matrices, of which it has 1/8, and then its shards of the others' results.
    least = {"replicated": size * 7 / 8, "P('x', None)": 2 * size / 8 * 7 / 8, "P(None, 'x')": 2 * size / 8 * 7 / 8}
    specs = {"replicated": P(), "P('x', None)": P("x"), "P(None, 'x')": P(None, "x")}
    columns = ["sharding", "optimizer", "FLOPs / an eighth of one device's", "exchanges", "bytes / least possible"]
    table = [f"| {' | '.join(columns)} |", "|---|---|---|---|---|"]
    for who, tx in (("optlab", optlab.orthogonalize()), ("optax.contrib.muon", theirs())):
        params = matrices(shapes)
        program = lambda p, tx=tx: jax.jit(lambda g: tx.update(g, tx.init(g), g)[0]).lower(p).compile()
        one = program(params).cost_analysis()["flops"]
        for name, spec in specs.items():
            many = program(jax.device_put(params, NamedSharding(mesh, spec)))
            kinds, moved = exchanges(many.as_text(), 8)
            share = f"{many.cost_analysis()['flops'] / (one / 8):.3f}"
            table.append(f"| {name} | {who} | {share} | {kinds} | {moved / least[name]:.2f} |")
            print(table[-1], flush=True)
    write("muon_devices", "devices", table)


def exchanges(program: str, count: int) -> tuple[str, float]:
    """What a compiled program exchanges: (kinds, bytes that come to a device from the others)."""
    found = collectives(program, count)
    kinds = ", ".join(f"{n} {kind}" for kind, (n, _) in found.items())
    return kinds or "none", sum(size for _, size in found.values())


def write(name: str, command: str, table: list[str]) -> None:
    head = (
        f"`python benchmarks/muon.py {command}`, jax {jax.__version__}, optax {optax.__version__}, "
        f"Python {platform.python_version()}, {jax.devices()[0].device_kind}"
    )
    (RESULTS / f"{name}.md").write_text("\n".join([head, "", *table]) + "\n")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["step", "compile", "devices"])
    parser.add_argument("--turns", type=int, default=7)
    parser.add_argument("--seconds", type=float, default=1.0, help="about how long a turn takes")
    arguments = parser.parse_args()
    {"step": step, "compile": compilation, "devices": devices}[arguments.what](arguments.turns, arguments.seconds)


if __name__ == "__main__":
    main()
