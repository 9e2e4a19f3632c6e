"""The command line as a person meets it: exit codes, messages, the run folder."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import jax
import pytest

from optlab.commands import main
from optlab.runs._metrics import without_seconds
from optlab.training import Checkpoints, load_params, read_metrics

DIGITS = Path(__file__).parents[2] / "configs" / "digits.py"
CONFIG = """
from optlab.config import Config, Target, component

def get_config():
    return Config(
        data=component("digits"),
        model=component("mlp", widths=[16]),
        metrics=("accuracy",),
        optimizer=component("adamw", learning_rate=1e-2),
        schedule=component("warmup_cosine", warmup=5),
        steps=40,
        target=Target(metric="validation/accuracy", mode="max", value=0.5),
    )
"""


def optlab(*words, **kwargs):
    program = "import sys; from optlab.commands import main; sys.exit(main())"
    return subprocess.run([sys.executable, "-c", program, *words], capture_output=True, text=True, **kwargs)


def logged(folder):
    return without_seconds(read_metrics(folder))


@pytest.mark.drawn
def test_a_run_leaves_a_folder_that_says_everything(here, capsys):
    assert main(["train", "small.py", "steps=30"]) == 0
    out = capsys.readouterr().out
    folder = here / "runs" / "small-steps=30"
    for word in (
        "step 30/30",
        "finished after step 30",
        "test  ",
        "best  ",
        "reached at step",
        str(folder.relative_to(here)),
    ):
        assert word in out
    about = json.loads((folder / "config.json").read_text())
    assert about["config"]["steps"] == 30
    assert about["config"]["optimizer"]["arguments"]["b2"] == 0.999
    assert about["versions"]["jax"] == jax.__version__
    records = read_metrics(folder)
    assert [r["step"] for r in records] == sorted({*range(10, 31, 10), *range(3, 31, 3)})
    assert records[-1].keys() >= {"train/loss", "validation/accuracy", "test/accuracy", "learning_rate"}
    assert (folder / "curves.png").stat().st_size > 1000
    assert Checkpoints(folder / "checkpoints").steps()[-1] == 30


@pytest.mark.slow
def test_the_main_job_reaches_what_the_readme_says(here):
    assert main(["train", str(DIGITS)]) == 0
    last = read_metrics(here / "runs" / "digits")[-1]
    assert last["test/accuracy"] >= 0.97
    assert last["validation/accuracy"] >= 0.97


def test_the_same_command_continues_and_another_config_is_refused(here, capsys):
    assert main(["train", "small.py", "--run", "mine", "checkpoint.every=10"]) == 0
    before = (here / "mine" / "metrics.jsonl").read_text()
    assert main(["train", "small.py", "--run", "mine", "checkpoint.every=10"]) == 0
    assert "mine is finished already, at step 40" in capsys.readouterr().out
    assert (here / "mine" / "metrics.jsonl").read_text() == before
    assert main(["train", "small.py", "--run", "mine", "seed=3", "optimizer.b1=0.8", "checkpoint.every=10"]) == 2
    error = capsys.readouterr().err
    assert re.search(r"holds a run of another config: .*optimizer.b1 \(0.9 there, 0.8 here\)", error)
    assert "seed (0 there, 3 here)" in error


def test_a_folder_that_is_not_a_run_is_left_alone(here, capsys):
    (here / "thesis").mkdir()
    (here / "thesis" / "chapter1.tex").write_text("years of work")
    assert main(["train", "small.py", "--run", "thesis"]) == 2
    assert "thesis isn't empty and isn't a run" in capsys.readouterr().err
    assert [p.name for p in (here / "thesis").iterdir()] == ["chapter1.tex"]


@pytest.mark.slow
def test_a_runs_config_runs_again_elsewhere_with_the_same_numbers(here):
    assert main(["train", "small.py", "steps=10"]) == 0
    first = here / "runs" / "small-steps=10"
    assert main(["train", str(first / "config.json")]) == 0
    assert logged(here / "runs" / "small-steps=10-again") == logged(first)


def test_a_folder_that_cant_be_read_from_again_is_refused(here, capsys):
    assert main(["train", "small.py", "--run", "lr[1]"]) == 2
    assert "Orbax can't read from a folder with [, ], *, ? or \\ in its path" in capsys.readouterr().err
    assert not (here / "lr[1]").exists()


NNX = """
from flax import nnx

def net():
    class Net(nnx.Module):
        def __init__(self, rngs):
            self.layers = nnx.List([nnx.Linear(64, 10, rngs=rngs)])
            self.norm = nnx.BatchNorm(64, rngs=rngs)

        def __call__(self, x):
            return self.layers[0](self.norm(x.reshape(len(x), -1)))

    return Net
"""


@pytest.mark.slow
def test_a_run_of_nnx_may_start_from_another(here):
    (here / "own.py").write_text(NNX)
    assert main(["train", "small.py", "model=own:net", "--run", "first"]) == 0
    words = ["model=own:net", "optimizer.learning_rate=0", "init_from=first", "--run", "next"]
    assert main(["train", "small.py", *words]) == 0
    for collection in ("params", "model_state"):
        first, last = (load_params(run, collection=collection) for run in ("first", "next"))
        assert jax.tree.structure(first) == jax.tree.structure(last)
    first, last = (jax.tree.leaves(load_params(run)) for run in ("first", "next"))
    assert all((a == b).all() for a, b in zip(first, last, strict=True))


def test_another_runs_parameters_are_a_start(here, capsys):
    assert main(["train", "small.py"]) == 0
    assert main(["train", "small.py", "steps=6", "optimizer.learning_rate=0", "init_from=runs/small"]) == 0
    first = read_metrics(here / "runs" / "small")[-1]
    again = read_metrics(here / "runs" / "small-optimizer.learning_rate=0-init_from=runs_small-steps=6")[-1]
    assert again["test/loss"] == pytest.approx(first["test/loss"], rel=1e-6)
    assert main(["train", "small.py", "model.widths=[8]", "init_from=runs/small", "--run", "other"]) == 2
    assert re.search(r"init_from=runs/small is another model: head/.* is float32", capsys.readouterr().err)
    assert main(["train", "small.py", "init_from=runs/small", "model.param_dtype=bfloat16", "--run", "other"]) == 2
    assert "head/bias is float32[10] there, bfloat16[10] here" in capsys.readouterr().err
    assert main(["train", "small.py", "init_from=runs/nothing", "--run", "other"]) == 2
    assert "init_from=runs/nothing: no checkpoint" in capsys.readouterr().err
    assert not (here / "other").exists()


def test_a_run_that_explodes_says_why_and_exits_with_1(here, capsys):
    words = ["train", "small.py", "optimizer=sgd", "optimizer.learning_rate=1e9", "schedule=constant"]
    assert main(words) == 1
    assert re.search(r"optlab: step \d+: the loss is .*Lower the learning rate", capsys.readouterr().err)


def test_users_own_functions_are_found_beside_the_config(here):
    (here / "mine.py").write_text(
        "import optax\n"
        "def rule(learning_rate, *, decay: float = 0.9):\n    return optax.sgd(learning_rate, momentum=decay)\n"
        "def soft(outputs, batch, *, scale: float = 1.0):\n"
        "    return scale * optax.softmax_cross_entropy_with_integer_labels(outputs, batch['labels'])\n"
    )
    words = [
        "optimizer=mine:rule",
        "optimizer.learning_rate=0.1",
        "loss=mine:soft",
        "loss.scale=2",
        "--run",
        "mine_run",
    ]
    assert main(["train", "small.py", *words]) == 0
    assert (
        json.loads((here / "mine_run" / "config.json").read_text())["config"]["optimizer"]["arguments"]["decay"] == 0.9
    )


@pytest.mark.slow
def test_a_runs_config_finds_the_users_functions_from_anywhere(here):
    (here / "cfg").mkdir()
    (here / "cfg" / "own_rule.py").write_text(
        "import optax\ndef rule(learning_rate):\n    return optax.sgd(learning_rate)"
    )
    text = CONFIG.replace('"adamw"', '"own_rule:rule"')
    (here / "cfg" / "own.py").write_text(text)
    assert optlab("train", "cfg/own.py", "steps=6", "--run", "first").returncode == 0
    (here / "else").mkdir()
    found = optlab("train", "../first/config.json", cwd=here / "else")
    assert found.returncode == 0, found.stderr
    assert logged(here / "else" / "runs" / "first-again") == logged(here / "first")


@pytest.mark.slow
def test_a_start_that_is_gone_is_not_needed_to_continue(here):
    assert main(["train", "small.py", "--run", "start"]) == 0
    words = ["train", "small.py", "init_from=start", "--run", "next"]
    assert main(words) == 0
    (here / "start").rename(here / "moved")
    assert main(words) == 0


@pytest.mark.slow
def test_a_runs_relative_paths_are_those_of_the_folder_it_was_run_in(here, monkeypatch):
    assert main(["train", "small.py", "--run", "start"]) == 0
    assert main(["train", "small.py", "init_from=start", "--run", "next"]) == 0
    (here / "else").mkdir()
    monkeypatch.chdir(here / "else")
    assert main(["train", "../next/config.json"]) == 0
    assert logged(here / "else" / "runs" / "next-again") == logged(here / "next")


def test_show_is_whole_when_it_is_piped(here):
    assert "optimizer.learning_rate " in optlab("show", "small.py").stdout


@pytest.mark.parametrize("command", ["train", "show"])
@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["small.py", "steps=-1"], "optlab: steps must be at least 1, got -1"),
        (["small.py", "stepz=1"], "optlab: unknown key 'stepz'; did you mean 'steps'?"),
        (["smal.py"], "optlab: no config file 'smal.py'; did you mean 'small.py'?"),
        (["small.py", "optimizer.learning_rte=1"], "did you mean 'optimizer.learning_rate'?"),
        (["small.py", "data=digts"], "unknown data 'digts'; did you mean 'digits'?"),
    ],
)
def test_bad_input_is_two_lines_at_most_and_exit_2(here, capsys, command, words, message):
    assert main([command, *words]) == 2
    out, error = capsys.readouterr()
    assert message in error
    assert out == ""
    assert error.count("\n") <= 2
    assert not (here / "runs").exists()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["small.py", "batch_size=99999"], "batch_size must be at most the 1297 training examples"),
        (["small.py", "schedule.warmup=99"], "warmup must be shorter than steps (40), got 99"),
        (["small.py", "model=vision_transformer", "model.heads=7"], "got 7"),
        (["small.py", "loss=squared_error"], "don't fit together"),
        (["small.py", "data=cifar10", "data.path=/no/such"], "/no/such"),
    ],
)
def test_what_needs_the_data_or_jax_is_refused_before_anything_compiles(here, capsys, monkeypatch, words, message):
    monkeypatch.setattr(jax, "jit", None)
    assert main(["train", *words]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") <= 2
    assert not (here / "runs").exists()


@pytest.mark.parametrize(
    "words",
    [["--help"], ["train", "--help"], ["train", "small.py", "stepz=1"], ["train", "small.py", "data=digts"]],
)
def test_jax_is_not_imported_where_it_is_not_needed(here, words):
    program = (
        "import sys\nfrom optlab.commands import main\n"
        "try:\n    code = main(sys.argv[1:])\nexcept SystemExit as e:\n    code = e.code\n"
        "assert 'jax' not in sys.modules\nsys.exit(code)"
    )
    found = subprocess.run([sys.executable, "-c", program, *words], capture_output=True, text=True)
    assert found.returncode == (0 if "--help" in words else 2), found.stderr


def test_unknown_options_are_refused(here, capsys):
    with pytest.raises(SystemExit, match="2"):
        main(["train", "small.py", "--runs", "x"])
    assert "unknown arguments: --runs x" in capsys.readouterr().err


def test_show_lists_every_key_with_its_meaning(here, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "200")
    assert main(["show", "small.py", "optimizer=muon", "optimizer.learning_rate=0.01"]) == 0
    out = capsys.readouterr().out
    assert re.search(r"optimizer\.rest +none +GradientTransformation or none +fixed +what moves everything else", out)
    assert re.search(r"steps +40 +an integer +fixed +updates of the parameters", out)
    assert re.search(r"model\.widths +\[16\] +a list of integers +fixed +\w+", out)


@pytest.mark.parametrize(
    ("number", "code"),
    [
        (signal.SIGINT, 130),
        pytest.param(signal.SIGTERM, 75, marks=pytest.mark.slow),
        pytest.param(signal.SIGUSR1, 75, marks=pytest.mark.slow),
    ],
)
@pytest.mark.slow
def test_ctrl_c_saves_says_so_and_the_same_command_continues(here, number, code):
    words = ["train", "small.py", "steps=100000", "checkpoint.every=100000", "evaluate_every=100000", "--run", "long"]
    program = "import sys; from optlab.commands import main; sys.exit(main())"
    process = subprocess.Popen(
        [sys.executable, "-c", program, *words], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    metrics, waited = here / "long" / "metrics.jsonl", time.monotonic()
    while time.monotonic() - waited < 120 and not (metrics.exists() and metrics.read_text()):
        time.sleep(0.1)
    os.kill(process.pid, number)
    out, error = process.communicate(timeout=120)
    assert process.returncode == code, error
    step = int(re.search(r"interrupted by SIG\w+ after step (\d+)", out)[1])
    assert "saved in long; the same command continues" in out
    assert Checkpoints("long/checkpoints").steps() == [step]
