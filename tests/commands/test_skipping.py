"""What `optlab train` says of what went wrong: what it left out, didn't save, or couldn't draw."""

import json
import os
import resource
import signal
from pathlib import Path

import numpy as np
import pytest

from optlab.commands import main
from optlab.data import Batches, digits
from optlab.training import Progress

CONFIG = """
import jax.numpy as jnp
import optax
from optlab.config import Config, Log, component

def loss(outputs, batch):
    values = optax.softmax_cross_entropy_with_integer_labels(outputs, batch["labels"])
    return jnp.where(jnp.sum(batch["labels"]) % 16 == 0, jnp.nan, values)

def get_config():
    return Config(
        data=component("digits"),
        model=component("mlp", widths=[16]),
        loss=component("small:loss"),
        optimizer=component("adamw", learning_rate=0.01),
        steps=60,
        batch_size=32,
        guard="skip",
        log=Log(tensorboard=False),
    )
"""


def test_what_a_run_left_out_is_in_its_folder_and_its_last_words(here, capsys):
    train = digits().train
    batches = Batches(train, 32)
    bad = [t for t in range(1, 61) if train.take(batches.indices(t - 1)[0])["labels"].sum() % 16 == 0]
    assert len(bad) > 2
    assert main(["train", "small.py", "spike=40", "--run", "skips"]) == 0
    said = capsys.readouterr()
    assert f"skipped     {len(bad)} steps, each with its reason in skips/skipped.jsonl" in said.out
    assert f"optlab: step {bad[0]} is skipped, 1 of at most 10: the loss is nan" in said.err
    entries = [json.loads(line) for line in (here / "skips" / "skipped.jsonl").read_text().splitlines()]
    assert [(e["step"], e["loss"]) for e in entries] == [(t, "nan") for t in bad]
    assert all(np.array_equal(e["examples"], batches.indices(e["step"] - 1)[0]) for e in entries)

    assert main(["train", "small.py", "skip_limit=1", "--run", "bound"]) == 1
    assert f"optlab: more than skip_limit=1 steps were skipped, {bad[0]}, {bad[1]}; at" in capsys.readouterr().err


def test_a_run_that_could_not_be_saved_does_not_say_that_it_was(here, capsys, monkeypatch):
    monkeypatch.setattr(Progress, "record", lambda self, record: os.kill(os.getpid(), signal.SIGTERM))
    always = CONFIG.replace("% 16 == 0, jnp.nan", "% 1 == 0, jnp.nan * values").replace("small:", "always:")
    (here / "always.py").write_text(always)
    words = ["train", "always.py", "guard=none", "evaluate_every=1", "--run", "run"]
    assert main(words) == 75
    said = capsys.readouterr().out
    assert "not saved: the parameters aren't finite; the same command continues after step 0" in said
    assert "saved in" not in said


@pytest.mark.drawn
def test_curves_that_can_not_be_drawn_are_a_line_and_an_exit_code(here, uncached, capsys):
    words = ["train", "small.py", "guard=skip", "skip_limit=60", "steps=4", "--run", "run"]
    assert main(words) == 0
    Path("run/curves.png").unlink()
    capsys.readouterr()
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, hard))
    try:
        assert main(words) == 1
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    said = capsys.readouterr()
    assert "run/curves.png can't be drawn ([Errno 27] File too large" in said.err
    assert "run is finished already, at step 4" in said.out
    assert main(words) == 0
    assert Path("run/curves.png").exists()


def test_a_run_that_stopped_early_and_lost_its_metrics_is_a_line_and_an_exit_code(here, capsys):
    words = [
        "train",
        "small.py",
        "guard=skip",
        "evaluate_every=1",
        "stop.patience=1",
        "stop.min_gain=99",
        "--run",
        "run",
    ]
    assert main(words) == 0
    Path("run/metrics.jsonl").unlink()
    assert main(words) == 1
    assert "can't be drawn ([Errno 2] No such file or directory: 'run/metrics.jsonl')" in capsys.readouterr().err
