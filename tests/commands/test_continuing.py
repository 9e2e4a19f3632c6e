"""A run that goes on under a changed config: refused or noted, and config.json tells the truth."""

import json
import shutil
from pathlib import Path

import pytest

from optlab.commands import main
from optlab.training import Checkpoints, read_metrics


@pytest.fixture
def train(here, capsys):
    """optlab train in the folder "run": (exit code, what it said, its config.json)."""

    def run(*words):
        code = main(["train", "small.py", "--run", "run", *words])
        said = capsys.readouterr()
        return code, said.out + said.err, json.loads((here / "run" / "config.json").read_text())

    return run


def test_a_changed_learning_rate_and_more_steps_go_on_and_are_noted(train, capsys):
    _, _, first = train()
    code, said, about = train("steps=6", "optimizer.learning_rate=0.02", "log.every=1")
    assert code == 0
    assert "after step 4 optimizer.learning_rate is 0.02, no longer 0.05" in said
    assert about == {
        **first,
        "config": about["config"],
        "changes": [
            {"step": 4, "key": "optimizer.learning_rate", "from": 0.05, "to": 0.02},
            {"step": 4, "key": "steps", "from": 4, "to": 6},
        ],
    }
    assert about["config"]["optimizer"]["arguments"]["learning_rate"] == 0.02
    assert (about["config"]["steps"], about["config"]["log"]["every"]) == (6, 1)
    assert [r["learning_rate"] for r in read_metrics("run")] == [0.05, 0.05, 0.02, 0.02]

    main(["train", "run/config.json", "--run", "again", "steps=1", "log.every=1"])
    assert (
        "run/config.json changed on its way (optimizer.learning_rate after step 4, steps after step 4)"
        in capsys.readouterr().out
    )

    assert train("optimizer.learning_rate=0.1", "steps=6")[2] == about  # no step is left to be taken
    code, said, unchanged = train("steps=5")
    assert (code, unchanged) == (2, about)
    assert "steps must be at least 6, which the run has behind it, got 5" in said


def test_another_seed_is_refused_and_goes_on_where_it_is_allowed(train):
    _, _, first = train()
    code, said, about = train("steps=6", "seed=3")
    assert (code, about) == (2, first)
    assert "run holds a run of another config: seed (0 there, 3 here)" in said
    code, said, about = train("steps=6", "seed=3", "--allow-change", "seed")
    assert code == 0
    assert {"step": 4, "key": "seed", "from": 0, "to": 3} in about["changes"]
    assert Checkpoints("run/checkpoints").notes(6)["run"]["seed"] == 3
    code, said, _ = train("steps=6", "seed=3", "--allow-change", "seed")  # the same command
    assert code == 0
    assert "--allow-change seed has nothing to allow" in said


def test_what_the_checkpoint_does_not_bear_changes_nothing(train):
    _, _, first = train()
    code, said, about = train("steps=6", "model.widths=[9]", "--allow-change", "model.widths")
    assert (code, about) == (1, first)
    assert "is of another model or optimizer: opt_state" in said or "params/" in said
    code, said, about = train("steps=6", "--allow-change", "modl")
    assert (code, about) == (2, first)
    assert "unknown key 'modl' in --allow-change; did you mean 'model'?" in said
    assert main(["train", "small.py", "--run", "new", "--allow-change", "modl"]) == 2
    assert not Path("new").exists()


@pytest.mark.slow
def test_after_an_older_checkpoint_a_change_holds_from_there(train, capsys):
    train("checkpoint.keep=9", "checkpoint.every=2")
    train("optimizer.learning_rate=0.02", "steps=6", "checkpoint.every=2", "checkpoint.keep=9")
    for step in ("4", "6"):
        shutil.rmtree(f"run/checkpoints/{step}/state")
    code, said, about = train("optimizer.learning_rate=0.02", "steps=6")
    assert (code, [c["step"] for c in about["changes"]]) == (0, [2, 2])
    assert "after step 2 optimizer.learning_rate is 0.02, which was so after step 4 before" in said
    assert [r["learning_rate"] for r in read_metrics("run")] == [0.05, 0.02, 0.02]


def test_a_run_without_checkpoints_says_that_it_starts_from_0(train):
    train()
    shutil.rmtree("run/checkpoints")
    Path("run/metrics.jsonl").unlink()
    code, said, _ = train()
    assert code == 0
    assert "run holds no checkpoint to continue from: it starts from step 0" in said


def test_a_config_json_that_is_none_is_refused_with_the_way_out(train, capsys):
    train()
    file = Path("run/config.json")
    for content in ("{", "\x00\xff", '{"places": 3}', None):
        file.unlink() if content is None else file.write_bytes(content.encode("latin-1"))
        assert main(["train", "small.py", "--run", "run"]) == 2, content
        said = capsys.readouterr().err
        assert "start the same command with --run OTHER, stop it and copy OTHER/config.json here" in said, content
        assert main(["show", "run/config.json"]) == 2, content
