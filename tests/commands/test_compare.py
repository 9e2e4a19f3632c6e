"""`optlab compare`: from a config to a verdict, and bad input in one line."""

import html
import json
from pathlib import Path

import pytest

from optlab.commands import main
from optlab.commands.compare import _study
from optlab.compare import Comparison, choice, plan
from optlab.compare.settings import overridden
from optlab.config import load
from optlab.data import _readers

CONFIG = """
from optlab.compare import Comparison, log_uniform
from optlab.config import Config, Target, component

def get_config():
    return Comparison(
        baseline=Config(
            data=component("digits"),
            model=component("mlp", widths=[4]),
            optimizer=component("sgd"),
            schedule=component("cosine"),
            steps=4,
            batch_size=16,
            clip_norm=1.0,
        ),
        contenders={"lion": component("lion", b1=0.8)},
        spaces={"lion": {"learning_rate": log_uniform(1e-4, 1e-2)}},
        trials=2,
        studies=2,
    )
"""


def test_a_study_leaves_a_verdict(here, capsys):
    assert main(["compare", "small.py", "--folder", "studies/small one", "--executor=series"]) == 0
    out = capsys.readouterr().out
    assert "2 contenders on MLP, 2 studies of 2 trials each, 4 steps; test/loss of the winners" in out
    folder = here / "studies" / "small one"
    lines = (folder / "trials.jsonl").read_text().splitlines()
    assert len(lines) == 2 * 2 * 3
    assert json.loads((folder / "study.json").read_text())["steps"] == 4
    assert "2 studies of 2 trials" in (folder / "verdict.md").read_text()
    assert f"report      {folder.relative_to(here)}/report.html" in out
    command = "optlab compare small.py '--folder=studies/small one' --executor=series"
    assert f"<pre>{html.escape(command)}</pre>" in (folder / "report.html").read_text()
    assert (folder / "figures" / "best-of.png").exists()


def test_a_plan_says_what_it_costs_and_trains_nothing(here, capsys, monkeypatch):
    monkeypatch.setattr(plan, "_laps", lambda lap: (0.0, 0.0))
    monkeypatch.setattr(plan, "_of_program", lambda *arguments: 60.0)
    assert main(["compare", "small.py", "--plan", "studies=5", "steps=100"]) == 0
    out = capsys.readouterr().out
    assert "5 studies, 100 steps a run: 30 runs, 3,000 steps, about 2 min" in out
    assert "lion: 5 × 2 trials and 5 winners afresh, 15 runs" in out
    assert "learning_rate log_uniform(0.0001, 0.01); one program" in out
    assert "(measured: " in out
    assert "a difference of 2.1 standard deviations" in out
    assert not (here / "studies").exists()


ASSIGNMENT = Path(__file__).parents[2] / "configs" / "assignment_resnet20.py"


def test_the_assignments_grid_is_the_courses():
    """SGD with momentum, Adam, AdamW × three rates, each for 30 epochs of 45,000 images."""
    comparison = load(ASSIGNMENT, Comparison)
    baseline, everyone = comparison.baseline, comparison.everyone
    assert {name: part.name for name, part in everyone.items()} == {"sgd": "sgd", "adam": "adam", "adamw": "adamw"}
    assert baseline.optimizer.arguments == {"momentum": 0.9}
    assert comparison.design == "grid"
    assert comparison.spaces == {name: {"learning_rate": choice(0.001, 0.01, 0.1)} for name in everyone}
    assert baseline.steps == round(30 * 45_000 / baseline.batch_size)


@pytest.mark.slow
def test_the_assignment_is_a_study(monkeypatch, tmp_path):
    """Of 120 images in files like CIFAR-10's."""
    monkeypatch.setattr(_readers, "RECORDS", 20)
    for name in [*(f"data_batch_{i}.bin" for i in range(1, 6)), "test_batch.bin"]:
        (tmp_path / name).write_bytes((b"\1" + bytes(3_072)) * 20)
    words = [f"data.path={tmp_path}", "data.validation=10", "batch_size=10", "steps=200"]
    study = _study(overridden(load(ASSIGNMENT, Comparison), words), None)
    assert {name: len(study.points(name, 0)) for name in study.contenders} == {"sgd": 3, "adam": 3, "adamw": 3}


@pytest.mark.parametrize(
    ("old", "new", "words", "message"),
    [
        ("trials=2", "trials=6", [], "trials must be a power of two"),
        (
            '"lion": {"learning',
            '"loin": {"learning',
            [],
            "spaces has 'loin', which is no contender; did you mean 'lion'",
        ),
        ("1e-4, 1e-2", "1e-2, 1e-4", [], "log_uniform must have the lower bound first, got 0.01 and 0.0001"),
        ("b1=0.8", "beta=0.8", [], "contender 'lion' has beta, which lion doesn't take"),
        ("clip_norm=1.0", "ema=0.9", [], "a comparison doesn't use ema, got 0.9"),
        ('"lion": component', '"sgd": component', [], "sgd is the baseline already"),
        ("b1=0.8", "mu_dtype=component('x')", [], "has a component as its mu_dtype"),
        ("cosine", "optax.cosine_decay_schedule", [], "has no peak and steps: take one of optlab.schedules"),
        ("studies=2", "widen='no'", [], "widen must be true or false, got 'no'"),
        ('component("lion", b1=0.8)', "'lion'", [], """contender 'lion' must be component("adam", …), got 'lion'"""),
        ("", "", ["studis=3"], "unknown key 'studis'; did you mean 'studies'"),
        ("", "", ["studies=many"], "studies must be an integer, got 'many'"),
        ("", "", ["spaces.lion=1"], "spaces.lion can be said in the config's file alone"),
    ],
)
def test_bad_input_is_one_line_and_two(here, capsys, old, new, words, message):
    (here / "bad.py").write_text(CONFIG.replace(old, new, 1) if old else CONFIG)
    assert main(["compare", "bad.py", *words]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert len(error.strip().splitlines()) == 1
    assert not (here / "studies").exists()


def test_a_runs_config_is_no_comparison(here, capsys):
    from pathlib import Path

    digits = Path(__file__).parents[2] / "configs" / "digits.py"
    assert main(["compare", str(digits)]) == 2
    assert (
        "get_config() must return an optlab.compare.Comparison, got optlab.config.Config: say optlab train"
        in capsys.readouterr().err
    )


def test_a_scheduler_that_is_not_there_is_said_in_a_line(here, capsys, monkeypatch):
    import distributed

    def refused(address, timeout):
        raise OSError("Timed out")

    monkeypatch.setattr(distributed, "Client", refused)
    assert main(["compare", "small.py", "--scheduler", "tcp://127.0.0.1:9"]) == 2
    assert "no Dask scheduler answers at tcp://127.0.0.1:9 (Timed out): start one" in capsys.readouterr().err
    assert main(["compare", "small.py", "--scheduler", "tcp://127.0.0.1:9", "--workers", "2"]) == 2
    assert "say one of them" in capsys.readouterr().err


def test_a_study_that_is_interrupted_says_what_is_kept(here, capsys, monkeypatch):
    from optlab.compare.population import Population

    def interrupted(self, trials):
        raise KeyboardInterrupt

    monkeypatch.setattr(Population, "__call__", interrupted)
    assert main(["compare", "small.py"]) == 130
    assert "interrupted; what is finished is in studies/small, the same command goes on" in capsys.readouterr().err
