"""What many devices hold, exchange and cost: counted in compiled programs, timed on simulated devices, and on paper.

    python benchmarks/scale.py                    # writes benchmarks/results/scale.md
    python benchmarks/scale.py --steps 2000       # so many steps under each strategy; its row of …/scale_steps.md

The eight devices are simulated, and share this machine's cores: what a device holds and exchanges is what eight real
ones would, but a step's time shows what dividing it costs, never what it gains.
"""

from __future__ import annotations

import argparse
import functools
import os
import platform
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

os.environ["XLA_FLAGS"] = os.environ.get("XLA_FLAGS", "") + " --xla_force_host_platform_device_count=8"
os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")  # before JAX is imported

import jax
import numpy as np
import optax
from collectives import collectives

import optlab
from optlab.models import mlp, transformer
from optlab.training import Parallel, Workload, init_state, make_mesh, make_step, parallelize

RESULTS = Path(__file__).parent / "results"
STRATEGIES = ("pmap", "jit", "zero1", "fsdp")
EXAMPLES, LENGTH = 16, 64
MIB = 2**20


class Text:
    """Random tokens, the same every step."""

    def batch(self, step: int) -> dict[str, np.ndarray]:
        tokens = np.random.default_rng(0).integers(0, 256, (EXAMPLES, LENGTH + 1))
        return {"inputs": tokens[:, :-1], "labels": tokens[:, 1:]}


class Images:
    """Random images, another batch every step."""

    def batch(self, step: int) -> dict[str, np.ndarray]:
        rng = np.random.default_rng(step)
        return {"inputs": np.float32(rng.normal(size=(EXAMPLES, 16))), "labels": rng.integers(0, 10, EXAMPLES)}


def prepared(model: Any, data: Any, strategy: str, mesh: Any) -> tuple[Parallel, Any]:
    """(the parallel step with AdamW and a moving average, its state)"""
    axis = "data" if strategy == "pmap" else None
    workload = Workload.from_model(model, SimpleNamespace(train=data, validation=None, test=None))
    tx = optlab.adamw(1e-3)
    parallel = parallelize(make_step(workload.loss, tx, axis_name=axis, ema=0.999), strategy, mesh)
    initial = lambda key: init_state(*workload.init(key), tx, key=key, ema=True)
    return parallel, parallel.place_state(initial, jax.random.key(0))


gpt = functools.partial(transformer, 256, length=LENGTH, width=128, depth=2, heads=4)


def bytes_of(tree: Any, device: jax.Device | None = None) -> int:
    """Bytes of all leaves, or of what one device holds of them, counted from its shards."""
    leaves = jax.tree.leaves(tree)
    if device is None:
        return sum(x.nbytes for x in leaves)
    return sum(s.data.nbytes for x in leaves for s in x.addressable_shards if s.device == device)


def compiled(strategy: str, mesh: Any) -> tuple[Parallel, Any, Any, dict[str, tuple[int, float]]]:
    """(the parallel step, its state, a batch, what the program exchanges)"""
    data = Text()
    parallel, state = prepared(gpt(), data, strategy, mesh)
    batch = parallel.place_batch(data.batch(0))
    program: Any = parallel.step
    return parallel, state, batch, collectives(program.compile(state, batch).as_text(), mesh.size)


WHY = {
    "pmap": "The gradients of all parameters, with the metrics, in one sum over the devices.",
    "jit": "The same sum, put there by the compiler; the tied embedding's two gradients (as table, as head) are summed "
    "over the devices one by one.",
    "zero1": "The sum of the gradients, of which a device uses an eighth (compilers for GPUs and TPUs make a "
    "reduce-scatter of it, half the bytes; this one doesn't), and after the update every parameter's eighths gathered; "
    "two small sums are the gradient's norm and the guard's question whether every eighth is finite.",
    "fsdp": "Every parameter's eighths gathered before they are used (the embedding twice), and the sum of the "
    "gradients as under zero1; the updated eighths stay where they are.",
    "jit × model": "On four devices by two: activations are summed over the pairs behind each matrix that reads what "
    "the one before divided, and gathered before the next; the embedding is gathered for the lookup; gradients are "
    "summed over the four.",
}


def what_is_held_and_exchanged() -> list[str]:
    columns = ["strategy", "state a device, MiB", "of all", "exchanges a step", "MiB to a device", "by formula"]
    lines, why = [f"| {' | '.join(columns)} |", "|---|---|---|---|---|---|"], []
    for name in WHY:
        parallel, state, _, found = compiled(name.split()[0], make_mesh(4, 2) if "model" in name else make_mesh(8))
        total, here = bytes_of(state), max(bytes_of(state, d) for d in parallel.mesh.devices.flat)
        kinds = ", ".join(f"{n} {kind} ({size / MIB:.2f} MiB)" for kind, (n, size) in found.items())
        moved = sum(size for _, size in found.values())
        formula = "–" if "model" in name else f"{exchanged(name, bytes_of(state.params), 8) / MIB:.2f}"
        row = [name, f"{here / MIB:.3f}", f"{here / total:.4f}", kinds, f"{moved / MIB:.2f}", formula]
        lines.append(f"| {' | '.join(row)} |")
        why.append(f"- **{name}**: {WHY[name]}")
        print(lines[-1], flush=True)
    head = [
        "## What a device holds, and what it is sent",
        "",
        f"A Transformer of {bytes_of(state.params) // 4:,} parameters (float32) with AdamW and a moving average: "
        f"{total / MIB:.3f} MiB of state, an eighth of which is {total / 8 / MIB:.3f}. Under zero1 the parameters stay "
        "whole; leaves that eight doesn't divide (here the counters and the key) are on every device. Exchanges are "
        "counted in the compiled program; the bytes are those that come to a device from the others.",
        "",
    ]
    return [*head, *lines, "", *why, ""]


def exchanged(strategy: str, size: float, count: int) -> float:
    """Bytes that come to each of `count` devices in a step, for parameters of so many bytes."""
    others = (count - 1) / count
    times = {"pmap": 2, "jit": 2, "zero1": 2, "fsdp": 3}  # of the parameters' bytes
    return times[strategy] * others * size


def time_by_devices(steps: int = 30) -> list[str]:
    """Milliseconds a step and MiB exchanged, of one batch divided among more and more devices."""
    counts = (1, 2, 4, 8)
    lines = [f"| strategy | {' | '.join(f'{n} of 8 devices' for n in counts)} |", f"|---|{'---|' * len(counts)}"]
    for strategy in STRATEGIES:
        row = []
        for n in counts:
            parallel, state, batch, found = compiled(strategy, make_mesh(n))
            seconds = []
            for _ in range(steps):
                began = time.perf_counter()
                state, _ = jax.block_until_ready(parallel.step(state, batch))
                seconds.append(time.perf_counter() - began)
            moved = sum(size for _, size in found.values())
            row.append(f"{1e3 * min(seconds):.0f} ms, {moved / MIB:.2f} MiB")
        lines.append(f"| {strategy} | {' | '.join(row)} |")
        print(lines[-1], flush=True)
    head = [
        "## Time a step, and bytes exchanged, by devices",
        "",
        f"The same model and the same {EXAMPLES} sequences, divided among 1, 2, 4 and 8 simulated devices, which share "
        f"{os.cpu_count()} cores: beyond that many devices division can't gain time here, and what a step takes more "
        f"is the cost of dividing it (the fastest of {steps} steps, on a machine with other work: rough figures). "
        "Bytes are those that come to a device.",
        "",
    ]
    return [*head, *lines, ""]


def on_paper(parameters: float = 1.3e9, count: int = 256, bandwidth: float = 50e9) -> list[str]:
    """The same for many devices and a large model, by formula."""
    size = 4 * parameters
    states = {"jit": 3 * size, "zero1": size + 2 * size / count, "fsdp": 3 * size / count}
    formulas = {
        "jit": ("all-reduce of gradients: 2·(D−1)/D·P", "P + 2P"),
        "zero1": ("reduce-scatter of gradients and all-gather of parameters: 2·(D−1)/D·P", "P + 2P/D"),
        "fsdp": ("all-gather of parameters, forward and backward, reduce-scatter of gradients: 3·(D−1)/D·P", "3P/D"),
    }
    lines = [
        "| strategy | exchanged | GB to a device a step | seconds | state | GB of state a device |",
        "|---|---|---|---|---|---|",
    ]
    for strategy, (how, held) in formulas.items():
        moved = exchanged(strategy, size, count)
        row = [strategy, how, f"{moved / 1e9:.2f}", f"{moved / bandwidth:.3f}", held, f"{states[strategy] / 1e9:.2f}"]
        lines.append(f"| {' | '.join(row)} |")
    head = [
        f"## On paper: {count} devices, {parameters / 1e9:g}B parameters",
        "",
        f"P = 4 bytes · {parameters / 1e9:g}e9 = {size / 1e9:g} GB (float32), D = {count}, AdamW with two moments (2P) "
        f"and no moving average (P more, divided like the moments). Seconds at {bandwidth / 1e9:g} GB/s into each "
        "device (a 400 Gb/s link), nothing overlapped with computation: a bound, not a forecast. Where the compiler "
        "keeps the all-reduce, zero1 and fsdp receive (D−1)/D·P more; where it keeps gathered parameters for the "
        "backward pass, fsdp receives (D−1)/D·P less. Gradients (P, or P/D where they are scattered) and "
        "activations come on top.",
        "",
    ]
    return [*head, *lines]


def many_steps(steps: int) -> None:
    """Trains under every strategy, never waiting but where the step itself does, and writes this stack's row."""
    row = []
    for strategy in STRATEGIES:
        data = Images()
        parallel, state = prepared(mlp(10, widths=(16,)), data, strategy, make_mesh(8))
        batches = [parallel.place_batch(data.batch(t)) for t in range(8)]
        began = time.perf_counter()
        for t in range(steps):
            state, _ = parallel.step(state, batches[t % 8])
        row.append(f"{int(state.step)} steps in {time.perf_counter() - began:.0f} s")
        print(strategy, row[-1], flush=True)
    file, stack = RESULTS / "scale_steps.md", f"| jax {jax.__version__}, Python {platform.python_version()} |"
    title = f"`python benchmarks/scale.py --steps {steps}`, an MLP on eight simulated devices: none came to a halt"
    rows = [r for r in file.read_text().splitlines()[4:] if not r.startswith(stack)] if file.exists() else []
    table = [f"| stack | {' | '.join(STRATEGIES)} |", f"|---|{'---|' * len(STRATEGIES)}"]
    file.write_text("\n".join([title, "", *table, *sorted([*rows, f"{stack} {' | '.join(row)} |"])]) + "\n")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, help="train a tiny MLP for so many steps under each strategy")
    jax.config.update("jax_compilation_cache_dir", str(Path(__file__).parent.parent / ".jax_cache"))
    if steps := parser.parse_args().steps:
        many_steps(steps)
        return
    head = (
        f"`python benchmarks/scale.py`, jax {jax.__version__}, optax {optax.__version__}, "
        f"Python {platform.python_version()}, eight simulated devices (cpu)"
    )
    sections = [*what_is_held_and_exchanged(), *time_by_devices(), *on_paper()]
    (RESULTS / "scale.md").write_text("\n".join([head, "", *sections]) + "\n")


if __name__ == "__main__":
    main()
