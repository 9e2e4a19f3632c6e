"""`optlab lr-range`: a suggestion with its reason, a picture, the next command; bad input in one line."""

import shlex

import pytest

from optlab.commands import main, parsed

CONFIG = """
from optlab.config import Config, component

def get_config():
    return Config(
        data=component("digits"),
        model=component("mlp", widths=[8]),
        optimizer=component("sgd", learning_rate=0.05),
        schedule=component("warmup_cosine", warmup=5),
        steps=30,
        clip_norm=1.0,
    )
"""
RANGE = ["--low", "0.01", "--high", "1"]


def test_a_range_test_leaves_a_picture_and_the_next_command(here, capsys):
    words = ["small.py", "batch_size=32", "optimizer.learning_rate=7.0", "ema=0.9"]
    assert main(["lr-range", *words, *RANGE]) == 0
    out = capsys.readouterr().out
    line = next(line for line in out.splitlines() if line.startswith("next"))
    command = shlex.split(line)[1:]
    assert command[:4] == ["optlab", "train", "small.py", "batch_size=32"]
    assert command[-1].startswith("optimizer.learning_rate=")
    assert command[-1] != "optimizer.learning_rate=7.0"
    assert parsed(command[1:]).command == "train"
    assert "MLP, sgd: validation/loss after short trainings of a run of 30 steps" in out
    assert "note        ema=0.9 is left out" in out
    (folder,) = (here / "ranges").iterdir()
    assert (folder / "range.png").read_bytes()[:4] == b"\x89PNG"
    assert line in (folder / "range.txt").read_text()
    assert main(["lr-range", *words, *RANGE]) == 2
    assert "is there already: say --out DIR for another one, or delete it" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("old", "new", "words", "message"),
    [
        ('"sgd", learning_rate=0.05', '"optax.lbfgs"', [], "optimizer=optax.lbfgs has no learning rate as a number"),
        ('"warmup_cosine", warmup=5', '"optax.cosine_decay_schedule"', [], "has no peak and steps: take one of"),
        ("steps=30", "steps=12, evaluate_every=3", [], "steps must be a whole number of at least 20, got 12"),
        ("", "", ["--low", "1", "--high", "0.1"], "low must be below high"),
        ("", "", ["batch_size=5000"], "batch_size must be at most the"),
        ("", "", ["init_from=runs/x"], "lr-range trains from the model's own initialization: say init_from=none"),
    ],
)
def test_bad_input_is_one_line_and_two(here, capsys, old, new, words, message):
    (here / "bad.py").write_text(CONFIG.replace(old, new, 1) if old else CONFIG)
    assert main(["lr-range", "bad.py", *words]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert len(error.strip().splitlines()) == 1
    assert not (here / "ranges").exists()
