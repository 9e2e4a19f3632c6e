"""A run is loaded from its folder alone: model, parameters and predictions."""

import sys

import jax
import numpy as np
import pytest
from flax import nnx

import optlab
from optlab.commands import main
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
