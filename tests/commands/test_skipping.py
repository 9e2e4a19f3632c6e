"""`optlab train … guard=skip`: the run goes on, and says what it left out."""

import json

import numpy as np

from optlab.commands import main
from optlab.data import Batches, digits

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
