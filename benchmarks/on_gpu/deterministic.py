"""A child of section 6, python -m on_gpu.deterministic SMOKE: compiles, waits for a line, trains, prints its bits."""

from __future__ import annotations

import hashlib
import json
import sys
import time

import jax
import numpy as np

import optlab
from on_gpu.bench import Bench
from on_gpu.costs import workload_of
from on_gpu.floors import H100
from optlab.data import Batches
from optlab.training import init_state, make_step


def main() -> None:
    bench = Bench(sys.argv[1] == "1", time.time() + 600, H100, sys.stderr)
    workload, tx = workload_of(bench), optlab.adamw(1e-3)
    batch = jax.device_put(Batches(workload.data.train, workload.batch_size).batch(0))
    first = jax.jit(lambda key: init_state(*workload.init(key), tx, key=key))
    state = first(jax.random.key(0))
    step = jax.jit(make_step(workload.loss, tx), donate_argnums=0).lower(state, batch).compile()
    sys.stdin.readline()
    times = []
    for _ in range(bench.size(30, 3)):
        began = time.perf_counter()
        state, _ = step(state, batch)
        jax.block_until_ready(state.params)
        times.append(time.perf_counter() - began)
    digest = hashlib.sha256()
    for x in jax.tree.leaves((state.params, state.opt_state)):
        digest.update(np.asarray(x).tobytes())
    print(json.dumps({"bits": digest.hexdigest(), "ms": 1e3 * sorted(times)[len(times) // 2]}))


if __name__ == "__main__":
    main()
