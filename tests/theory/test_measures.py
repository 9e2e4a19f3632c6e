"""Measurements along training: what is measured, when, and that training doesn't notice."""

import dataclasses
import functools
import json
import subprocess
import sys
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from config.example import config
from jax.flatten_util import ravel_pytree

import optlab
from optlab.config import STRATEGIES, ConfigError
from optlab.experiment import build
from optlab.theory import adam, noise
from optlab.theory.measures import Measure, agreement, noise_scale, norms, sharpness
from optlab.training import MetricsFile, Workload, train

same = np.testing.assert_allclose


@pytest.fixture(autouse=True)
def float64():
    """As training runs: in float32."""
    with jax.enable_x64(False):
        yield


class Rows:
    def __len__(self):
        return 64

    def take(self, indices, epoch=None, seed=0):
        x = np.random.default_rng(0).normal(size=(64, 3)).astype(np.float32)
        return {"inputs": x[indices], "labels": np.sin(x[indices].sum(axis=1))}


def loss(params, model_state, batch, key, train):
    outputs = jnp.tanh(batch["inputs"] @ params["W"]) @ params["a"]
    value = jnp.mean((outputs - batch["labels"]) ** 2)
    return value, (model_state, {"loss": (value, 1.0)})


def init(key):
    for_w, for_a = jax.random.split(key)
    return {"W": jax.random.normal(for_w, (3, 4)), "a": jax.random.normal(for_a, (4,))}, {}


def workload():
    source = optlab.data.Source("rows", Rows(), None, None, {})
    return Workload("rows", source, init, loss, batch_size=64)


def run(steps=12, tx=None, **settings):
    return train(workload(), tx or optlab.adam(0.01), steps=steps, log_every=100, evaluate_every=100, **settings)


@pytest.mark.slow
def test_the_sharpness_is_the_dense_hessians_of_the_state_before_the_step():
    history = run(measure=[sharpness(every=5, examples=None, matvecs=14)])
    steps, values = history["measure/sharpness"]
    assert steps.tolist() == [5, 10]
    state = run(steps=9).state  # before step 10
    flat, unravel = ravel_pytree(state.params)
    batch = Rows().take(np.arange(64))
    H = jax.jit(jax.hessian(lambda v: loss(unravel(v), {}, batch, None, True)[0]))(flat)
    same(values[1], np.linalg.eigvalsh(H)[-1], rtol=1e-3)


def test_the_noise_scale_has_its_parts():
    history = run(measure=[noise_scale(every=4)])
    steps, scales = history["measure/noise_scale"]
    assert steps.tolist() == [4, 8, 12]
    parts = [history[f"measure/gradient_{part}"][1] for part in ("variance", "signal")]
    same(scales, parts[0] / parts[1], rtol=1e-5)
    state, batch = run(steps=3).state, optlab.data.as_batches(Rows(), 64, 0).batch(3)
    found = noise.noise_scale(loss, state.params, {}, batch, jax.random.key(0))
    same(parts[0][0], found.variance, rtol=1e-4)


@pytest.mark.slow
def test_agreement_is_one_where_gradients_agree_and_small_where_they_flip():
    tx = optlab.adam(1.0)
    params = {"same": jnp.zeros(2), "flips": jnp.zeros(2), "random": jnp.zeros(4000), "none": jnp.zeros(1)}
    state = tx.init(params)

    def step(state, t):
        g = {
            "same": jnp.array([1.0, -3.0]),
            "flips": jnp.where(t % 2 == 0, 1.0, -1.0) * jnp.array([1.0, 5.0]),
            "random": jax.random.normal(jax.random.fold_in(jax.random.key(0), t), (4000,)),
            "none": jnp.zeros(1),
        }
        return tx.update(g, state)[1], None

    state, _ = jax.lax.scan(step, state, jnp.arange(3000))
    found = adam.agreement(state)
    same(found["same"], 1, rtol=1e-3)
    same(found["flips"], 0.1 / 1.9, rtol=0.02)
    same(np.sqrt(np.mean(np.square(found["random"]))), np.sqrt(0.1 / 1.9), rtol=0.05)
    same(found["none"], 0)
    mean = np.mean(np.concatenate([np.ravel(x) for x in jax.tree.leaves(found)]))
    same(adam.mean_agreement(state), mean, rtol=1e-5)
    assert run(measure=[agreement(every=6)])["measure/agreement"][0].tolist() == [6, 12]
    with pytest.raises(ValueError, match="agreement needs an optimizer's state with one of Adam's in it, found 0"):
        run(tx=optlab.sgd(0.1), measure=[agreement()])


@pytest.mark.parametrize(
    ("tx", "settings"),
    [
        (optlab.adamw(0.01, b2=0.95), {"b1": 0.9, "b2": 0.95}),
        (optax.adam(0.01, b1=0.8), {"b1": 0.8, "b2": 0.999}),
        (optlab.adam(0.01, start="first_gradient", bias_correction=False), {"bias_correction": False}),
        (optlab.muon(0.02), {"b1": 0.9, "b2": 0.95}),
    ],
)
def test_the_agreement_has_the_optimizers_own_settings(tx, settings):
    g = {"W": jnp.ones((3, 4)), "b": jnp.array([1.0, -2.0])}
    _, opt_state = tx.update(g, tx.init(g), g)
    state = SimpleNamespace(opt_state=opt_state)
    same(agreement().function(state, None, tx=tx)["agreement"], 1, rtol=1e-4)  # after one step
    same(adam.mean_agreement(opt_state, **settings), 1, rtol=1e-4)


def test_settings_that_the_optimizer_hides_must_be_said():
    g = jnp.ones(3)
    tx = optax.inject_hyperparams(optlab.adam)(0.01, b2=0.95)
    _, opt_state = tx.update(g, tx.init(g), g)
    state = SimpleNamespace(opt_state=opt_state)
    with pytest.raises(ValueError, match="agreement can't read b1 and b2 of this optimizer"):
        agreement().function(state, None, tx=tx)
    same(agreement(b1=0.9, b2=0.95).function(state, None, tx=tx)["agreement"], 1, rtol=1e-4)


def test_training_does_not_notice(tmp_path):
    measures = [sharpness(every=3), noise_scale(every=4)]
    watched = run(measure=measures, observers=[MetricsFile(tmp_path / "metrics.jsonl")])
    jax.tree.map(lambda a, b: same(a, b, rtol=1e-6), watched.params, run().params)
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    seen = {line["step"]: {n for n in line if n.startswith("measure/")} for line in lines}
    assert sorted(seen) == [3, 4, 6, 8, 9, 12]
    assert seen[3] == seen[6] == seen[9] == {"measure/sharpness"}
    assert "measure/noise_scale" in seen[8]


@functools.cache
def under(strategy):
    """What is measured at step 4, and the parameters after six, where the loss takes a mean over all examples."""

    def centred(params, model_state, batch, key, train):
        outputs = jnp.tanh(batch["inputs"] @ params["W"]) @ params["a"]
        total = jnp.sum(outputs)
        total = jax.lax.psum(total, "data") if strategy == "pmap" and train else total
        value = jnp.mean((outputs - (total / 64 if train else 0) - batch["labels"]) ** 2)
        return value, (model_state, {"loss": (value * len(outputs), jnp.float32(len(outputs)))})

    work = dataclasses.replace(workload(), loss=centred)
    measures = [sharpness(every=4, examples=None), noise_scale(every=4), norms(every=4), agreement(every=4)]
    history = train(work, optlab.adam(0.01), steps=6, evaluate_every=6, strategy=strategy, measure=measures)
    (record,) = [r for r in history.records if r["step"] == 4]
    return {name: x for name, x in record.items() if name.startswith("measure/")}, history.params


@pytest.mark.parametrize("strategy", [name for name in STRATEGIES if name != "single"])
def test_every_strategy_measures_what_one_device_measures(strategy):
    (one, params), (many, others) = under("single"), under(strategy)
    assert len(one) == 1 + 3 + 3 * 2 + 1  # sharpness; noise scale and its parts; norms of W and a; agreement
    assert many == pytest.approx(one, rel=2e-3)
    jax.tree.map(lambda a, b: same(a, b, rtol=1e-4), params, others)


def test_the_norms_are_those_of_the_steps_own_gradient_and_update():
    history = run(steps=4, tx=optlab.sgd(0.1), measure=[norms(every=4)])
    before, after = run(steps=3, tx=optlab.sgd(0.1)).state, history.state
    batch = optlab.data.as_batches(Rows(), 64, 0).batch(3)
    gradient = jax.grad(lambda p: loss(p, {}, batch, None, True)[0])(before.params)
    for name in ("W", "a"):
        norm = lambda kind, name=name: history[f"measure/{kind}_norm/{name}"][1][0]
        same(norm("parameter"), np.linalg.norm(before.params[name]), rtol=1e-5)
        same(norm("gradient"), np.linalg.norm(gradient[name]), rtol=1e-4)
        same(norm("update"), np.linalg.norm(after.params[name] - before.params[name]), rtol=1e-4)
        same(norm("update"), 0.1 * norm("gradient"), rtol=1e-4)


def test_a_sum_with_a_weight_is_logged_as_their_quotient_and_not_at_all_where_it_has_none():
    pairs = lambda state, batch: {"mean": (jnp.float32(6), jnp.float32(4)), "never": (jnp.zeros(()), jnp.zeros(()))}
    records = run(measure=[Measure(pairs, every=5)]).records
    assert [r["measure/mean"] for r in records if "measure/mean" in r] == [1.5, 1.5]
    assert not any("measure/never" in r for r in records)


def test_a_measure_of_ones_own_is_a_pure_function():
    own = Measure(lambda state, batch: {"weight": jnp.sum(state.params["a"])}, every=12)
    history = run(measure=[own])
    same(history["measure/weight"][1], np.sum(run(steps=11).params["a"]), rtol=1e-6)


def test_a_config_names_them():
    experiment = build(config(measure=("sharpness", "noise_scale"), measure_every=7))
    assert [m.every for m in experiment.measures] == [7, 7]
    with pytest.raises(ConfigError, match="unknown measure 'sharpnes'; did you mean 'sharpness'"):
        build(config(measure=("sharpnes",)))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Measure(lambda state, batch: {}, every=0), "every must be a whole number of at least 1, got 0"),
        (lambda: sharpness(every=0), "every must be a whole number of at least 1, got 0"),
        (lambda: sharpness(examples=0), "examples must be a whole number of at least 1, got 0"),
        (lambda: sharpness(matvecs=0), "matvecs must be a whole number of at least 1, got 0"),
        (lambda: run(measure=[sharpness(), sharpness()]), "two measures have the name 'sharpness'"),
    ],
)
def test_what_cannot_be_measured_is_named(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_without_matfree_the_line_that_installs_it_is_named():
    code = "import sys; sys.modules['matfree'] = None; from optlab.theory.measures import sharpness; sharpness()"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert "needs matfree: pip install -e '.[theory]'" in done.stderr
