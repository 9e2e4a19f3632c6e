"""A run that an earlier optlab saved (commit 25ec54a, jax 0.10.2) is read, and goes on."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest

import optlab
from optlab.commands import main
from optlab.runs import Checkpoints, Run
from optlab.runs._fingerprints import fingerprints
from optlab.training import accuracy

SAVED = Path(__file__).with_name("saved")


@pytest.mark.parametrize("collection", ["params", "ema"])
def test_an_earlier_checkpoint_is_read_bit_for_bit(collection):
    checkpoints = Checkpoints.of(SAVED)
    assert checkpoints.steps() == [2, 4]
    assert checkpoints.notes(4)["best"] == [2, 0.09]
    found = Run(SAVED).params(collection=collection)
    named = {f"{collection}/{layer}/{name}": x for layer, part in found.items() for name, x in part.items()}
    prints = {leaf["name"]: leaf["fingerprint"] for leaf in checkpoints.contents(4)}
    assert len(named) == 4
    assert fingerprints(named) == {name: prints[name] for name in named}


@pytest.mark.parametrize(("step", "row"), [(None, 3), ("best", 1), (2, 1)])
def test_an_earlier_run_predicts_as_it_was_evaluated(step, row):
    run = optlab.load_run(SAVED, step=step)
    assert int(run.state.step) == row + 1
    validation = run.workload.data.validation
    batch = validation.take(np.arange(len(validation)))
    found = np.mean(accuracy(run.predict(batch["inputs"]), batch))
    assert found == pytest.approx(Run(SAVED).metrics()["validation/accuracy"][row])


def test_an_earlier_run_goes_on(tmp_path, capsys, monkeypatch):
    run = shutil.copytree(SAVED, tmp_path / "run")
    assert main(["train", str(run / "config.json"), "--run", str(run), "steps=6"]) == 0, capsys.readouterr().err
    assert [record["step"] for record in optlab.runs.read_metrics(run)] == [1, 2, 3, 4, 5, 6]
    summary = json.loads((run / "summary.json").read_text())
    assert (summary["outcome"], summary["start"], summary["best"]["value"] >= 0.09) == ("finished", 4, True)
