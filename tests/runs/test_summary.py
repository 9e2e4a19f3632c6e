"""summary.json: how a run ended, whichever way it did."""

import json
import os
import signal

import numpy as np
import optax
import pytest

from optlab.config import Stop, Target
from optlab.data import Source
from optlab.models import mlp
from optlab.training import Checkpoints, NonFiniteError, Workload, squared_error, train

TARGET = Target(metric="validation/loss", value=1e6)


class Rows:
    def __len__(self):
        return 32

    def take(self, indices, epoch=None, seed=0):
        inputs = np.sin(np.outer(indices + 1, [1, 2, 3])).astype(np.float32)
        return {"inputs": inputs, "labels": inputs[:, :1]}


def run(folder, steps=4, *, lr=0.01, observers=(), **settings):
    source = Source("rows", Rows(), Rows(), None, {})
    workload = Workload.from_model(mlp(1, widths=[2]), source, loss=squared_error, batch_size=8, target=TARGET)
    return train(
        workload,
        optax.sgd(lr),
        steps=steps,
        checkpoints=Checkpoints(folder, every=2),
        evaluate_every=2,
        log_every=1,
        observers=observers,
        **settings,
    )


def summary(folder):
    return json.loads((folder / "summary.json").read_text())


class Killer:
    """Sends a signal after the first evaluation."""

    def begin(self, start, steps): ...

    def record(self, record):
        if record["step"] == 2:
            os.kill(os.getpid(), signal.SIGTERM)

    def end(self, outcome): ...


def test_a_run_says_how_it_ended(tmp_path):
    history = run(tmp_path)
    found = summary(tmp_path)
    assert found.pop("seconds") > 0
    assert found == {
        "outcome": "finished",
        "start": 0,
        "steps": 4,
        "best": {"step": history.best[0], "value": history.best[1]},
        "target": {"metric": "validation/loss", "mode": "min", "value": 1e6, "reached": 2},
        "skipped": [],
        "damaged": [],
        "last": history.records[-1],
    }


def test_an_interrupted_run_has_no_summary_while_it_goes_on(tmp_path):
    assert run(tmp_path, observers=[Killer()]).outcome == "interrupted by SIGTERM"
    assert summary(tmp_path)["outcome"] == "interrupted by SIGTERM"
    there = []

    class Look(Killer):
        def record(self, record):
            there.append((tmp_path / "summary.json").exists())

    assert run(tmp_path, observers=[Look()]).outcome == "finished"
    assert there
    assert not any(there)
    assert (summary(tmp_path)["outcome"], summary(tmp_path)["start"]) == ("finished", 2)


def test_an_error_is_the_outcome(tmp_path):
    with pytest.raises(NonFiniteError):
        run(tmp_path, lr=1e30)
    assert summary(tmp_path)["outcome"] == "NonFiniteError"
    assert summary(tmp_path)["error"].startswith(f"step {summary(tmp_path)['last']['step']}: ")


@pytest.mark.parametrize("stop", [Stop(), Stop(patience=1, min_gain=1e9)])
def test_a_run_that_is_over_keeps_its_summary_and_writes_one_that_is_missing(tmp_path, stop):
    run(tmp_path, steps=6, stop=stop)
    before = summary(tmp_path)
    run(tmp_path, steps=6, stop=stop)
    assert summary(tmp_path) == before
    (tmp_path / "summary.json").unlink()
    run(tmp_path, steps=6, stop=stop)
    again = summary(tmp_path)
    assert {k: v for k, v in again.items() if k not in ("start", "seconds")} == {
        k: v for k, v in before.items() if k not in ("start", "seconds")
    }


def test_a_disk_that_is_full_at_the_end_changes_no_outcome(tmp_path, monkeypatch, capsys):
    class Full(Killer):
        def end(self, outcome):
            monkeypatch.setattr("optlab.runs._summary.os.replace", refuse)

    def refuse(*_):
        raise OSError(28, "No space left on device")

    assert run(tmp_path, steps=2, observers=[Full()]).outcome == "finished"
    assert "summary.json can't be written ([Errno 28] No space left on device)" in capsys.readouterr().err
