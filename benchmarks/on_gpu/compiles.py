"""7. Compile times, memory beside what was predicted, and what of tests/transforms passes on the device."""

from __future__ import annotations

import importlib.util
import os
import re
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from on_gpu import floors
from on_gpu.bench import Bench
from on_gpu.muon import FORMS, cases, optax_chains, optlab_chain

ROOT = Path(__file__).parent.parent.parent
TEMPORARIES = 2.5  # times the matrices' size: the goal for what Muon's update holds beside its arguments
TESTS = ["sign", "momentum", "moments", "decay", "scaling", "cautious", "newton_schulz", "orthogonalize", "norms"]
TESTS_SECONDS = 180.0
PASSED = re.compile(r"(PASSED|FAILED|ERROR)")


def ours(bench: Bench) -> None:
    _muon(bench)
    _model(bench)
    _tests(bench)


def _muon(bench: Bench) -> None:
    """Seconds to trace, lower and compile the update, and the bytes that it needs beside its arguments."""
    import jax
    import jax.numpy as jnp

    from on_gpu.jax_parts import lower_update

    goals = {"optlab": {"optax.contrib.muon": 0.3}}
    for case, shapes in cases(bench).items():
        if "1.3" in case:
            continue  # as for GPT-2 small, and longer
        leaves = [jax.ShapeDtypeStruct(shape, jnp.float32) for shape in shapes]
        chains = {
            "optlab": optlab_chain(**FORMS["optlab"][0]),
            "optax.contrib.muon": optax_chains()["optax.contrib.muon"],
        }
        for name, tx in chains.items():
            began = time.perf_counter()
            compiled = lower_update(tx, leaves).compile()
            seconds = time.perf_counter() - began
            bench.row(f"{case}: compiling Muon", name, seconds, "s", goals=goals.get(name))
            analysis = compiled.memory_analysis()
            if analysis is not None:
                size = analysis.temp_size_in_bytes / (4 * floors.count(shapes))
                goal = {"": TEMPORARIES} if name == "optlab" else {}
                bench.row(f"{case}: Muon's temporaries / matrices", name, size, "ratio", goals=goal)


def _model(bench: Bench) -> None:
    """A training step of a GPT, unrolled and as a scan: seconds to compile, and its peak beside `check_memory`'s."""
    import jax
    import numpy as np

    import optlab
    from optlab.data import Batches, arrays
    from optlab.models import transformer
    from optlab.training import Workload, check_memory, init_state, make_step, parallelize

    toy = floors.GPT(layers=2, width=16, heads=2, vocabulary=32, length=8)
    gpt, size = bench.size(floors.GPT(vocabulary=8192), toy), bench.size(8, 2)
    settings: dict[str, Any] = {"width": gpt.width, "depth": gpt.layers, "heads": gpt.heads, "length": gpt.length}
    tokens = np.zeros((size, gpt.length), np.int32)
    data = arrays(tokens, tokens + gpt.vocabulary - 1, validation=0, test=0)
    for name, scan in bench.size({"as a scan": True, "unrolled": False}, {"as a scan": True}).items():
        model = transformer(gpt.vocabulary, **settings, scan=scan, dtype="bfloat16")
        workload, tx = Workload.from_model(model, data, batch_size=size), optlab.adamw(1e-3)
        parallel = parallelize(make_step(workload.loss, tx), "single")
        first = lambda key, workload=workload, tx=tx: init_state(*workload.init(key), tx, key=key)
        batch = jax.device_put(Batches(data.train, size).batch(0))
        began = time.perf_counter()
        needed = check_memory(parallel, parallel.shapes(jax.eval_shape(first, jax.random.key(0))), batch)
        case = f"compiling a step of {gpt.layers} layers of width {gpt.width}"
        bench.row(case, name, time.perf_counter() - began, "s", goals={"unrolled": 0.5} if scan else {})
        if scan:  # one alone, since the allocator's peak is the process'
            state = parallel.place_state(first, jax.random.key(0))
            for _ in range(2):
                state, _ = parallel.step(state, batch)
            jax.block_until_ready(state)
            peak = (jax.local_devices()[0].memory_stats() or {}).get("peak_bytes_in_use")
            if peak:
                note = f"{peak / 2**30:.2f} GiB, predicted {needed / 2**30:.2f}"
                case = "peak memory beside check_memory's prediction"
                bench.row(case, f"{gpt.layers} layers, {name}", peak / needed, "ratio", goals={"": 1.1}, note=note)
            del state


def _tests(bench: Bench) -> None:
    """Counts what passes, from the log, which is there however it ends."""
    if importlib.util.find_spec("pytest") is None or importlib.util.find_spec("hypothesis") is None:
        bench.failed("tests/transforms", "pytest or hypothesis isn't here")
        return
    found = {file.stem.removeprefix("test_"): str(file) for file in (ROOT / "tests" / "transforms").rglob("test_*.py")}
    files = [found[name] for name in bench.size(TESTS, ["sign"]) if name in found]
    workers = ["-n", "4"] if not bench.smoke and importlib.util.find_spec("xdist") is not None else []
    words = ["-m", "pytest", *files, *workers, "-o", "addopts=", "-p", "no:cacheprovider", "-v", "--tb=line"]
    words += bench.size([], ["-k", "sign and not hypothesis", "--maxfail=1"])
    limit = min(TESTS_SECONDS, bench.left - 5)
    with tempfile.TemporaryFile("w+") as log:
        environment = os.environ | {"JAX_PLATFORMS": bench.size("cuda,cpu", "cpu"), "PYTHONUNBUFFERED": "1"}
        child = subprocess.Popen([sys.executable, *words], cwd=ROOT, env=environment, stdout=log, stderr=log)
        try:
            child.wait(limit)
            note = ""
        except subprocess.TimeoutExpired:
            child.kill()
            child.wait()
            note = f"stopped after {limit:.0f} s; "
        log.seek(0)
        lines = log.read().splitlines()
    results = [
        line for line in lines if "::" in line and PASSED.search(line) and not line.startswith(("FAILED", "ERROR"))
    ]
    passed = sum("PASSED" in line for line in results)
    failed = sorted({line.split("::", 1)[1].split(" ")[0] for line in results if "PASSED" not in line})
    print("\n".join(lines[-200:]), file=sys.stderr)
    if not results:
        bench.failed("tests/transforms", (lines or ["no output"])[-1][:200])
        return
    note += f"{len(results)} ran" + (f"; failed: {', '.join(failed[:5])}" if failed else "")
    bench.row("tests/transforms on the device", "share that passes", passed / len(results), "share", note=note)
