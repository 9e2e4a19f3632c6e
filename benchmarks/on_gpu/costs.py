"""6. What the guard, the probes, a save and deterministic=true cost; whether the bits are the same twice."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from functools import partial
from pathlib import Path
from typing import Any

from on_gpu import floors
from on_gpu.bench import Advance, Bench, Make, Wait, milliseconds

CONFIG = """
from optlab.config import Checkpoint, Config, Log, component

def get_config():
    return Config(
        data=component("digits"),
        model=component("mlp", widths=[256, 256], dropout=0.1),
        optimizer=component("adamw", learning_rate=0.003),
        steps={steps},
        checkpoint=Checkpoint(every={steps}),
        log=Log(tensorboard=False),
        deterministic=True,
    )
"""
TRAIN = "import sys; from optlab.commands import main; sys.exit(main(sys.argv[1:]))"


def sizes(bench: Bench) -> tuple[floors.GPT, int]:
    """A model whose step takes some milliseconds, and a batch."""
    toy = floors.GPT(layers=1, width=16, heads=2, vocabulary=32, length=8)
    return bench.size((floors.GPT(layers=4, width=512, heads=8, vocabulary=8192, length=256), 16), (toy, 2))


def workload_of(bench: Bench) -> Any:
    """The model with a dropout: a step has random numbers too."""
    import numpy as np

    from optlab.data import arrays
    from optlab.models import transformer
    from optlab.training import Workload

    gpt, batch = sizes(bench)
    sizes_ = {"length": gpt.length, "width": gpt.width, "depth": gpt.layers, "heads": gpt.heads}
    model = transformer(gpt.vocabulary, **sizes_, dropout=0.1, dtype="bfloat16")
    tokens = np.random.default_rng(0).integers(0, gpt.vocabulary, (2 * batch, gpt.length), np.int32)
    return Workload.from_model(model, arrays(tokens, tokens, validation=0, test=0), batch_size=batch)


def ours(bench: Bench) -> None:
    """Guard and probes beside a step without, then determinism, then saves."""
    workload = workload_of(bench)
    _guard_and_probes(bench, workload)
    _determinism(bench)
    _command(bench)
    _saves(bench, workload)


def _guard_and_probes(bench: Bench, workload: Any) -> None:
    import jax
    import optax

    import optlab
    from on_gpu.jax_parts import copy
    from optlab.data import Batches
    from optlab.training import init_state, make_step

    adamw = optlab.adamw(1e-3)
    kinds: dict[str, tuple[Any, dict[str, Any]]] = {
        "no guard, no probe": (adamw, {"guard": None}),
        "guard=stop": (adamw, {"guard": "stop"}),
        "guard=skip": (adamw, {"guard": "skip"}),
        "a probe's norms": (optax.chain(optlab.probe("update", every=None), adamw), {"guard": None}),
        "a probe's spectrum, each step": (optax.chain(optlab.probe("update", every=1), adamw), {"guard": None}),
    }
    if bench.smoke:  # one of those that differ in a setting alone
        kinds = {name: kind for name, kind in kinds.items() if name not in ("guard=stop", "a probe's norms")}
    batch = jax.device_put(Batches(workload.data.train, workload.batch_size).batch(0))
    params, model_state = jax.jit(workload.init)(jax.random.key(0))
    states = {name: init_state(params, model_state, tx, key=jax.random.key(1)) for name, (tx, _) in kinds.items()}
    step = lambda tx, settings: jax.jit(make_step(workload.loss, tx, **settings), donate_argnums=0)
    lowered = {name: partial(step(*kind).lower, states[name], batch) for name, kind in kinds.items()}
    programs = bench.compiled(lowered)

    def make(name: str) -> tuple[Advance, Wait]:
        box = [copy(states[name])]

        def advance() -> None:
            box[0], _ = programs[name](box[0], batch)

        return advance, lambda: jax.block_until_ready(box[0].step)

    arms: dict[str, Make] = {name: partial(make, name) for name in programs}
    found = bench.measure(arms)
    gpt, size = sizes(bench)
    plain = size * gpt.length * floors.gpt_seconds(bench.chip, gpt, flash=False, fused_loss=False)
    plain += floors.adamw_seconds(bench.chip, gpt.parameters, 16 * gpt.layers + 4)
    held = 4 * gpt.parameters / (floors.COPY * bench.chip.bandwidth)
    more = {"guard=stop": held, "guard=skip": 7 * held, "a probe's norms": 3 * held}  # passes over the parameters
    goals = {"guard=stop": 1.03, "guard=skip": 1.25, "a probe's norms": 1.05}
    for name, times in found.items():
        predicted = None if "spectrum" in name else 1e3 * (plain + more.get(name, 0.0))
        goal = {"no guard, no probe": goals[name]} if name in goals else {}
        bench.row("a step", name, milliseconds(times), "ms", predicted=predicted, goals=goal)


def _determinism(bench: Bench) -> None:
    """Two processes with XLA's flag and two without: their bits, and what a step takes."""
    from optlab.commands._deterministic import FLAG

    kinds = bench.size(["deterministic", "deterministic", "as usual", "as usual"], ["deterministic"])
    children = []
    for kind in kinds:
        flags = f"{os.environ.get('XLA_FLAGS', '')} {FLAG if kind == 'deterministic' else ''}".strip()
        command = [sys.executable, "-m", "on_gpu.deterministic", str(int(bench.smoke))]
        pipes: dict[str, Any] = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
        children.append(subprocess.Popen(command, env=os.environ | {"XLA_FLAGS": flags}, **pipes))
    found: dict[str, list[dict[str, Any]]] = {kind: [] for kind in kinds}
    limit = time.time() + max(5.0, bench.left * 0.6)
    for kind, child in zip(kinds, children, strict=True):  # they compile all at once, and have their steps in turn
        try:
            told, _ = child.communicate("go\n", timeout=max(1.0, limit - time.time()))
            found[kind].append(json.loads(told))
        except subprocess.TimeoutExpired:
            child.kill()
            bench.failed(f"{kind}: the bits twice", "the process had not ended in time")
        except ValueError:
            bench.failed(f"{kind}: the bits twice", f"exit code {child.returncode}, see the log")
    for kind, runs in found.items():
        if runs:
            goals = {"a step, as usual": 1.2} if len(found) > 1 and kind == "deterministic" else {}
            same = len({run["bits"] for run in runs}) == 1
            note = f"{len(runs)} times, the same bits: {'yes' if same else 'NO'}"
            bench.row("determinism", f"a step, {kind}", [run["ms"] for run in runs], "ms", goals=goals, note=note)


def _command(bench: Bench) -> None:
    """`optlab train` with deterministic=true, twice: whether it exits in time, and its checkpoints' bits."""
    from optlab.training import Checkpoints

    steps = bench.size(200, 3)
    with tempfile.TemporaryDirectory() as folder:
        config = Path(folder) / "small.py"
        config.write_text(CONFIG.format(steps=steps))
        contents, seconds = [], []
        for name in bench.size(("one", "two"), ("one",)):
            began = time.time()
            command = [sys.executable, "-c", TRAIN, "train", str(config), "--run", f"{folder}/{name}"]
            try:
                done = subprocess.run(command, cwd=folder, stdout=sys.stderr, timeout=max(5.0, bench.left / 2 - 2))
            except subprocess.TimeoutExpired:
                bench.failed("optlab train deterministic=true", f"not ended after {time.time() - began:.0f} s")
                return
            if done.returncode:
                bench.failed("optlab train deterministic=true", f"exit code {done.returncode}, see the log")
                return
            seconds.append(time.time() - began)
            contents.append(Checkpoints.of(Path(folder) / name).contents(steps))
        note = f"exit code 0; the same bits twice: {'yes' if contents[0] == contents[-1] else 'NO'}"
        bench.row("determinism", "optlab train, start to exit", seconds, "s", goals={"": 60.0}, note=note)


def _saves(bench: Bench, workload: Any) -> None:
    """A save every 100 steps beside none: `benchmarks/save_cost.py`'s runs, which take turns."""
    import numpy as np
    from save_cost import ARMS, EVERY, slow_down

    mib, times = slow_down(workload, bench.size(2, 1), every=bench.size(EVERY, 5))
    without = times["none"]
    between = 0.5 * (without[:-1, 0] + without[1:, 0])
    lost = floors.save_seconds(sizes(bench)[0].parameters, 16 * sizes(bench)[0].layers + 4)
    for arm in ARMS[1:]:
        ratios = times[arm][:, 0] / between
        predicted = 1 + lost / float(np.median(between))
        goals = {"": 1.05} if arm == "ours" else {}
        case = f"100 steps with a save of {mib:.0f} MiB beside none"
        bench.row(
            case,
            "optlab" if arm == "ours" else "Orbax alone",
            ratios.tolist(),
            "ratio",
            predicted=predicted,
            goals=goals,
        )
