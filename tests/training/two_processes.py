"""What `test_processes.py` runs in processes of its own: training of a small model, under several strategies.

two_processes.py WHERE OUT STRATEGY…: WHERE as `connect` takes it, or "alone"; a strategy as fsdp, as jit:2 with
mesh.model=2, or as fsdp@FOLDER, which keeps a run in the folder, or continues the one that is there.
"""

import dataclasses
import json
import pickle
import sys
from pathlib import Path

import numpy as np
import optax

from optlab._processes import connect
from optlab.data import DamagedRecordError

STEPS, BATCH = 6, 24


DAMAGED = 7


class Counted:
    """A split that counts the examples read to train on, not those for shapes and checks; one of them can't be read."""

    def __init__(self, split):
        self.split, self.read = split, 0

    def __len__(self):
        return len(self.split)

    def take(self, indices, *rest):
        if DAMAGED in indices:
            raise DamagedRecordError([DAMAGED], "torn")
        self.read += len(indices) if rest and len(indices) > 2 else 0
        return {**self.split.take(indices, *rest), "weight": np.ones(len(indices))}


class Told:
    """An observer that remembers the steps that it was told of."""

    def __init__(self):
        self.steps = []

    def begin(self, start, steps):
        pass

    def record(self, record):
        self.steps.append(record["step"])

    def end(self, outcome):
        pass


def main(where, out, *strategies):
    if where != "alone":
        connect(where)

    import jax
    from jax.experimental.multihost_utils import process_allgather

    from optlab.data import arrays
    from optlab.models import mlp
    from optlab.training import (
        Checkpoints,
        MetricsFile,
        StepLog,
        Workload,
        accuracy,
        make_mesh,
        train,
    )

    jax.config.update("jax_enable_x64", True)
    rng = np.random.default_rng(0)
    # 30 examples for validation: a batch of 24, and one of 6, which four devices can't divide
    parts = arrays(rng.normal(size=(100, 6)), rng.integers(0, 3, 100), validation=0.3, test=0.3)
    model = mlp(outputs=3, widths=[8], dtype="float64", param_dtype="float64")
    saved = {}
    for words in strategies:
        strategy, _, folder = words.partition("@")
        name, _, on_model = strategy.partition(":")
        split = Counted(parts.train)
        data = dataclasses.replace(parts, train=split)
        told, log = Told(), Path(f"{out}.{strategy}.skipped")
        history = train(
            Workload.from_model(model, data, metrics={"accuracy": accuracy}, batch_size=BATCH),
            optax.sgd(0.1, momentum=0.9),
            steps=STEPS,
            strategy=name,
            mesh=None if name == "single" else make_mesh(model=int(on_model or 1)),
            ema=0.9,
            evaluate_every=3,
            log_every=1,
            checkpoints=Checkpoints(f"{folder}/checkpoints", every=3) if folder else None,
            skip_log=StepLog(log),
            observers=[told, *([MetricsFile(f"{folder}/metrics.jsonl")] if folder else [])],
        )
        leaves = jax.tree.leaves((history.state.params, history.state.ema, history.state.opt_state))
        gather = (lambda x: process_allgather(x, tiled=True)) if jax.process_count() > 1 else np.asarray
        saved[strategy] = {
            "leaves": [np.asarray(gather(x)) for x in leaves],
            "records": history.records,
            "read": split.read,
            "told": told.steps,
            "skipped": [json.loads(x) for x in log.read_text().splitlines()] if log.exists() else [],
        }
    Path(f"{out}.{jax.process_index()}").write_bytes(pickle.dumps(saved))


if __name__ == "__main__":
    main(*sys.argv[1:])
