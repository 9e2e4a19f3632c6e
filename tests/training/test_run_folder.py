"""`train(run=…)`: everything of a run in one folder, which the same call goes on in, and no other run's is touched."""

import io
import json
import sys

import flax.linen as nn
import jax
import numpy as np
import optax
import pytest
from rich.console import Console

import optlab
from optlab.config import Config, ConfigError, Target, component, load
from optlab.runs import CheckpointError, Checkpoints, MetricsFile, PlaceError, Run
from optlab.runs._folder import make_folder
from optlab.training import Progress, Workload, squared_error, train
from optlab.training.folder import RunFolder

X = np.random.default_rng(0).normal(size=(60, 4)).astype(np.float32)
Y = X.sum(axis=1)
RATE = optlab.schedules.linear_to_zero(0.1, 4)
WORKLOAD = Workload.from_model(nn.Dense(1), (X, Y), loss=squared_error, batch_size=16, target=Target(value=100.0))


def trained(run, tx=None, **settings):
    return train(WORKLOAD, tx or optlab.sgd(RATE), run=run, **{"steps": 4, "log_every": 1, **settings})


@pytest.mark.drawn
def test_the_folder_holds_everything_and_the_same_call_shows_it_again(tmp_path, capsys):
    history = trained(tmp_path / "x")
    said = capsys.readouterr().out
    files = {path.name for path in (tmp_path / "x").iterdir()}
    assert files == {"config.json", "metrics.jsonl", "summary.json", "curves.png", "checkpoints", "skipped.jsonl"}
    assert said.startswith("finished after step 4, ")
    assert said.endswith(f"target      validation/loss 100 reached at step 1\n  folder      {tmp_path / 'x'}\n")
    assert json.loads((tmp_path / "x" / "config.json").read_text())["train"]["workload"] == "Dense"
    run = Run(tmp_path / "x")
    assert run.summary["outcome"] == "finished"
    np.testing.assert_allclose(run.metrics()["learning_rate"], [0.1, 0.075, 0.05, 0.025], rtol=1e-6)

    again = trained(tmp_path / "x")
    assert capsys.readouterr().out.startswith("finished already, at step 4\n  train ")
    assert again.records == history.records

    loaded = optlab.load_run(tmp_path / "x", workload=WORKLOAD, tx=optlab.sgd(RATE))
    assert np.array_equal(loaded.params["kernel"], history.params["kernel"])
    expected = X @ np.asarray(history.params["kernel"]) + np.asarray(history.params["bias"])
    np.testing.assert_allclose(loaded.predict(X), expected, rtol=1e-5)


def test_the_same_call_goes_on(tmp_path):
    checkpoints = lambda: Checkpoints(tmp_path / "x" / "checkpoints", every=1)
    trained(tmp_path / "x", steps=2, checkpoints=checkpoints())
    assert trained(tmp_path / "x", checkpoints=checkpoints(), allow_change=("optimizer",)).start == 2
    assert Run(tmp_path / "x").metrics()["step"].tolist() == [1, 2, 3, 4]


def test_what_another_run_left_is_not_touched(tmp_path):
    trained(tmp_path / "x")
    before = {p: p.read_bytes() for p in (tmp_path / "x").rglob("*") if p.is_file() and p.name != "writer.lock"}
    for settings, differs in (
        ({"tx": optlab.sgd(optlab.schedules.linear_to_zero(0.2, 4))}, "optimizer"),
        ({"seed": 1}, "seed"),
    ):
        with pytest.raises(CheckpointError, match=f"is of another run: {differs}"):
            trained(tmp_path / "x", **settings)
    assert {path: path.read_bytes() for path in before} == before
    with pytest.raises(ConfigError, match="a run that Python's train made: it has no config"):
        load(tmp_path / "x" / "config.json")
    config = Config(data=component("digits"), model=component("mlp"), optimizer=component("sgd"), steps=4)
    with pytest.raises(ConfigError, match="holds a run of Python's train, which its script continues"):
        make_folder(tmp_path / "x", config, lambda key, config: "fixed", [])


@pytest.mark.parametrize(
    ("file", "text", "says"),
    [
        ("thesis.tex", "", "isn't empty and isn't a run"),
        ("config.json", '{"config": {}}', "holds a run of a config, which optlab train continues"),
        ("config.json", "{", "holds a run of a config"),
    ],
)
def test_a_folder_of_something_else_is_refused_and_left_alone(tmp_path, file, text, says):
    (tmp_path / file).write_text(text)
    with pytest.raises(PlaceError, match=says):
        trained(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == [file]
    assert (tmp_path / file).read_text() == text


def made(run, **given):
    return RunFolder(run, WORKLOAD, **{"checkpoints": None, "skip_log": None, "observers": [], **given})


@pytest.mark.parametrize(("is_terminal", "shown"), [(True, 1), (False, 0)])
def test_progress_is_shown_where_there_is_a_terminal(tmp_path, monkeypatch, is_terminal, shown):
    monkeypatch.setattr(sys.stdout, "isatty", lambda: is_terminal, raising=False)
    assert sum(isinstance(o, Progress) for o in made(tmp_path).observers) == shown
    own = [Progress(batch_size=1), MetricsFile(tmp_path / "m.jsonl")]
    assert made(tmp_path, observers=own).observers == own


def test_of_a_run_that_is_over_no_progress_is_shown():
    file = io.StringIO()
    progress = Progress(batch_size=1, console=Console(file=file, force_terminal=True))
    progress.begin(4, 4)
    progress.end("finished")
    assert file.getvalue() == ""


def test_checkpoints_of_another_folder_are_refused(tmp_path):
    with pytest.raises(ValueError, match=r"checkpoints must be Checkpoints\('.*x/checkpoints', every=…\), or None"):
        made(tmp_path / "x", checkpoints=Checkpoints(tmp_path / "y"))


def test_a_constant_of_optax_is_no_rate_that_is_known():
    history = train(WORKLOAD, optax.sgd(0.1), steps=1)
    assert "learning_rate" not in history.records[-1]
    assert str(history).splitlines()[0].startswith("finished after step 1, ")


INJECTED = optax.inject_hyperparams(optax.sgd)(RATE)


@pytest.mark.parametrize(
    "tx",
    [
        optax.sgd(RATE),
        optax.chain(optax.clip(1.0), optax.apply_if_finite(optax.adamw(RATE), 3)),
        optax.partition({"all": optax.sgd(RATE)}, lambda params: jax.tree.map(lambda _: "all", params)),
        optlab.by_role({"default": optax.sgd(RATE)}),
        INJECTED,
        optax.chain(optax.clip(1.0), INJECTED),
    ],
    ids=["alias", "wrapped", "partition", "by_role", "injected", "chained"],
)
def test_the_rate_of_an_optimizer_of_optax_is_logged(tx):
    history = train(WORKLOAD, tx, steps=3, log_every=1)
    np.testing.assert_allclose(history["learning_rate"][1], [0.1, 0.075, 0.05], rtol=1e-6)
    assert not any(name.startswith("learning_rate_") for name in history.records[-1])


def test_injected_rates_come_before_the_others():
    tx = optax.partition({"kernel": INJECTED, "bias": optlab.sgd(0.5)}, {"kernel": "kernel", "bias": "bias"})
    last = train(WORKLOAD, tx, steps=3, log_every=1).records[-1]
    assert (last["learning_rate"], last["learning_rate_2"]) == (pytest.approx(0.05), 0.5)


def test_data_and_workload_are_printed_in_a_few_lines():
    assert str(WORKLOAD.data).splitlines() == [
        "arrays: 48 training, 6 validation, 6 test examples",
        "  an example  inputs float32[4], labels float32[]",
        "  facts       outputs 1",
    ]
    assert repr(WORKLOAD).splitlines()[:2] == [
        "Dense: 5 parameters, batches of 16, shuffled",
        "  target      validation/loss, min, to 100",
    ]


def test_an_observer_may_see_the_state_of_every_evaluated_step():
    class Kernels:
        def __init__(self):
            self.seen = []

        def begin(self, start, steps):
            pass

        def record(self, record):
            pass

        def evaluated(self, record, state):
            self.seen.append((record["step"], int(state.step), np.array(state.params["kernel"])))

        def end(self, outcome):
            pass

    kernels = Kernels()
    history = train(WORKLOAD, optlab.sgd(RATE), steps=4, log_every=1, evaluate_every=2, observers=[kernels])
    assert [(t, step) for t, step, _ in kernels.seen] == [(2, 2), (4, 4)]
    assert np.array_equal(kernels.seen[-1][2], history.params["kernel"])
