"""A user's own workload, by `train`: NumPy arrays, Flax modules and losses of theirs, rules of three houses."""

import dataclasses

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

import optlab
from optlab.config import Target
from optlab.data import arrays
from optlab.training import Checkpoints, Workload, train

RNG = np.random.default_rng(0)
INPUTS = RNG.normal(size=(203, 6)).astype(np.float32)
LABELS = np.tanh(INPUTS @ RNG.normal(size=(6, 2)) / 4).astype(np.float32)


class Net(nn.Module):
    """A module that knows nothing of optlab."""

    @nn.compact
    def __call__(self, x):
        return nn.Dense(2)(nn.tanh(nn.Dense(16)(nn.tanh(nn.Dense(16)(x)))))


class Noisy(nn.Module):
    """One with dropout and running statistics."""

    @nn.compact
    def __call__(self, x, train):
        x = nn.BatchNorm(use_running_average=not train)(nn.Dense(16)(x))
        return nn.Dense(2)(nn.Dropout(0.2, deterministic=not train)(nn.relu(x)))


class Newer(nnx.Module):
    """The same with NNX."""

    def __init__(self, rngs):
        self.hidden, self.norm = nnx.Linear(6, 16, rngs=rngs), nnx.BatchNorm(16, rngs=rngs)
        self.dropout, self.out = nnx.Dropout(0.2, rngs=rngs), nnx.Linear(16, 2, rngs=rngs)

    def __call__(self, x):
        return self.out(self.dropout(nnx.relu(self.norm(self.hidden(x)))))


def huber(outputs, batch):
    return optax.losses.huber_loss(outputs, batch["labels"]).sum(-1)


def workload(model=None, loss=huber, **kwargs):
    return Workload.from_model(
        model or Net(), arrays(INPUTS, LABELS, validation=0.2, test=0.2), loss=loss, batch_size=32, **kwargs
    )


def test_running_statistics_of_a_float64_model_are_float64_from_the_start():
    with jax.enable_x64(True):
        types = {"dtype": "float64", "param_dtype": "float64"}
        model = workload(optlab.models.mlp(2, widths=(8,), norm="batch", **types))
        params, before = model.init(jax.random.key(0))
        _, (after, _) = model.loss(params, before, {"inputs": INPUTS, "labels": LABELS}, jax.random.key(0), True)
        assert {x.dtype for x in jax.tree.leaves((before, after))} == {jnp.dtype("float64")}


RULES = {
    "optax.lbfgs": optax.lbfgs,
    "optax.contrib.schedule_free_adamw": lambda: optax.contrib.schedule_free_adamw(1e-2),
    "optlab.muon": lambda: optlab.muon(1e-2),
}


@pytest.mark.parametrize("name", RULES)
@pytest.mark.parametrize("model", [Net(), Noisy(), Newer], ids=["plain", "noisy", "nnx"])
def test_a_workload_of_the_users_is_trained_by_rules_of_any_house(name, model):
    history = train(workload(model), RULES[name](), steps=60, log_every=5)
    steps, losses = history["train/loss"]
    assert steps[-1] == 60
    assert history["validation/loss"][1][-1] < 0.6 * losses[0]
    assert "test/loss" in history.records[-1]


def test_the_architectures_example_runs():
    hidden = optax.chain(
        optlab.momentum(0.95, nesterov=True),
        optlab.orthogonalize(),
        optlab.scale_by_matrix_shape(),
        optlab.decay_weights(0.1),
    )
    rest = optax.chain(optlab.scale_by_adam(b2=0.95), optlab.decay_weights(0.1))
    tx = optax.chain(
        optlab.by_role({"matrix": hidden, "conv": hidden, "default": rest}),
        optax.scale_by_learning_rate(optlab.schedules.warmup_cosine(peak=3e-3, steps=150, warmup=20)),
    )
    history = train(Workload.digits(), tx, steps=150, strategy="single")
    assert history["validation/accuracy"][1][-1] > 0.9
    assert history.reached is None or history.reached <= 150


def test_an_nnx_model_keeps_its_statistics_its_dropout_and_its_bits(tmp_path):
    make = lambda steps, folder: train(workload(Newer), optax.adamw(1e-2), steps=steps, checkpoints=Checkpoints(folder))
    whole = make(12, tmp_path / "whole")
    make(5, tmp_path / "parts")
    parts = make(12, tmp_path / "parts")
    for a, b in zip(*(jax.tree.leaves(h.state.params) for h in (whole, parts)), strict=True):
        assert np.asarray(a).tobytes() == np.asarray(b).tobytes()
    mean = whole.state.model_state["norm"]["mean"][...]
    assert np.abs(mean).max() > 0
    other = train(workload(Newer), optax.adamw(1e-2), steps=1, seed=5)
    assert (
        other.records[-1]["train/loss"] != train(workload(Newer), optax.adamw(1e-2), steps=1).records[-1]["train/loss"]
    )


@pytest.mark.parametrize("model", [Newer(nnx.Rngs(0)), 3])
def test_what_is_no_model_is_named(model):
    with pytest.raises(TypeError, match=r"Linen module or a function rngs -> nnx.Module, got (Newer|int)"):
        workload(model)


def test_schedule_free_is_judged_by_its_own_parameters():
    tx = optax.contrib.schedule_free_adamw(1e-2)
    history = train(workload(), tx, steps=20)
    inner = history.state.opt_state
    expected = optax.contrib.schedule_free_eval_params(inner, history.state.params)
    assert jax.tree.all(jax.tree.map(lambda a, b: bool((a == b).all()), history.params, expected))
    assert not jax.tree.all(jax.tree.map(lambda a, b: bool((a == b).all()), history.params, history.state.params))


def test_a_scalar_loss_is_the_mean_over_the_examples():
    """So that the last short batch of an evaluation counts for as much as it holds."""
    scalar = train(workload(loss=lambda o, b: huber(o, b).mean()), optax.sgd(0.01), steps=5).records[-1]
    each = train(workload(), optax.sgd(0.01), steps=5).records[-1]
    assert scalar == pytest.approx(each, rel=1e-5)


def test_an_evaluation_covers_the_whole_split_whatever_the_batch():
    records = [
        train(
            Workload.from_model(Net(), arrays(INPUTS, LABELS, validation=0.2, test=0.2), loss=huber, batch_size=b),
            optax.sgd(0.0),
            steps=1,
        ).records[-1]
        for b in (7, 100)
    ]
    for split in ("validation", "test"):
        assert records[0][f"{split}/loss"] == pytest.approx(records[1][f"{split}/loss"], rel=1e-5)


def test_weights_must_fit_the_loss():
    source = arrays(INPUTS, LABELS)

    class Weighted:
        def __len__(self):
            return len(source.train)

        def take(self, indices, epoch=None, seed=0):
            return {**source.train.take(indices, epoch, seed), "weight": np.ones((len(indices), 2), np.float32)}

    bad = Workload.from_model(Net(), dataclasses.replace(source, train=Weighted()), loss=huber, batch_size=32)
    with pytest.raises(
        ValueError, match=r"weight must have the loss's shape \(1,\), one for every value, got \(1, 2\)"
    ):
        train(bad, optax.sgd(0.1), steps=1)


def test_metrics_may_not_take_the_steps_names():
    with pytest.raises(ValueError, match="metrics can't be named loss: the step has values of that name"):
        workload(metrics={"loss": huber})


def test_two_functions_are_a_workload():
    """Without Flax: the contract itself."""

    def init(key):
        return {"w": jax.random.normal(key, (6, 2))}, {}

    def loss(params, model_state, batch, key, train):
        errors = jnp.square(batch["inputs"] @ params["w"] - batch["labels"]).sum(-1)
        total, count = errors.sum(), jnp.float32(errors.size)
        return total / count, (model_state, {"loss": (total, count)})

    mine = Workload("least squares", arrays(INPUTS, LABELS, validation=0.2, test=0), init, loss, 32, Target())
    history = train(mine, optlab.sgd(0.05), steps=50)
    assert history["train/loss"][1][-1] < history["train/loss"][1][0]
    assert "validation/loss" in history.records[-1]
    assert "test/loss" not in history.records[-1]
