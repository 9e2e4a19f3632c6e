"""A run is loaded from its folder alone: model, parameters and predictions."""

import sys
from types import SimpleNamespace

import jax
import numpy as np
import pytest
from flax import nnx

import optlab
from optlab.commands import main
from optlab.config import ConfigError
from optlab.experiment._load import LoadedRun, _predictor
from optlab.runs import Run

OWN = """
from flax import nnx

class Net(nnx.Module):
    def __init__(self, outputs, rngs):
        self.first = nnx.Linear(64, 4, rngs=rngs)
        self.norm = nnx.BatchNorm(4, rngs=rngs)
        self.last = nnx.Linear(4, outputs, rngs=rngs)

    def __call__(self, x):
        return self.last(self.norm(self.first(x.reshape(len(x), -1))))

def net(outputs: int):
    return lambda rngs: Net(outputs, rngs)
"""
CONFIG = """
from optlab.config import Config, component

def get_config():
    return Config(data=component("digits"), model=component("own:net"), optimizer=component("muon", learning_rate=0.01),
                  steps=2, ema=0.5, batch_size=64, strategy="jit", accumulate=2)
"""


@pytest.fixture
def run(tmp_path, monkeypatch):
    (tmp_path / "own.py").write_text(OWN)
    (tmp_path / "small.py").write_text(CONFIG)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    assert main(["train", "small.py", "--run", "run"]) == 0
    return tmp_path / "run"


@pytest.mark.slow
def test_an_nnx_model_on_many_devices_is_loaded_on_one(run, monkeypatch):
    monkeypatch.chdir("/")
    loaded = optlab.load_run(run)
    validation = loaded.workload.data.validation
    batch = validation.take(np.arange(len(validation)))
    log_p = jax.nn.log_softmax(loaded.predict(batch["inputs"]))
    loss = -np.mean(np.take_along_axis(np.asarray(log_p), batch["labels"][:, None], 1))
    assert loss == pytest.approx(Run(run).metrics()["validation/loss"][-1], rel=1e-5)
    assert isinstance(loaded.model(nnx.Rngs(0)), nnx.Module)
    assert {len(x.devices()) for x in jax.tree.leaves(loaded.params)} == {1}


def test_what_cannot_be_loaded_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match="nowhere is no folder"):
        optlab.load_run(tmp_path / "nowhere")
    with pytest.raises(optlab.config.ConfigError, match=r"no config file '.*config\.json'"):
        optlab.load_run(tmp_path)


@pytest.mark.parametrize("part", ["checkpoints", "checkpoints/40"])
def test_a_part_of_a_run_is_answered_with_the_runs_folder(tmp_path, part):
    (tmp_path / "first" / part).mkdir(parents=True)
    (tmp_path / "first" / "config.json").write_text("{}")
    with pytest.raises(ConfigError, match=rf"is a part of a run, .* say {tmp_path / 'first'}$"):
        optlab.load_run(tmp_path / "first" / part)


def test_a_loaded_run_prints_in_a_few_lines():
    state = SimpleNamespace(step=np.int32(40))
    text = str(LoadedRun(None, None, None, state, {"kernel": np.zeros((64, 256)), "bias": np.zeros(256)}, None))
    assert text.splitlines()[:2] == [
        "a run, restored from step 40",
        "  model       of Python's train, 16,640 numbers in 2 parameters",
    ]
    assert len(text) < 300


def test_inputs_of_another_shape_are_answered_with_the_datas():
    data = SimpleNamespace(example=lambda: {"inputs": np.zeros((1, 8, 8, 1))})
    predict = _predictor(lambda x: x.reshape(len(x), -1) @ np.ones((64, 10)), data)
    assert predict(np.ones((2, 64))).shape == (2, 10)
    with pytest.raises(ValueError, match=r"inputs of shape \(2, 9\); the run's data has \(B, 8, 8, 1\)"):
        predict(np.zeros((2, 9)))
