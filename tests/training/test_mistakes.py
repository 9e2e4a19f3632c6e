"""What one gets wrong in Python at first, and the answer: the line that would work, mostly before anything compiles."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import optlab
from optlab.data import arrays
from optlab.diagnosis import Watch
from optlab.models import mlp
from optlab.roles._layout import check_overrides
from optlab.training import UphillError, Workload, accuracy, train
from optlab.training.first_steps import _is_rising

X = np.random.default_rng(0).normal(size=(60, 4)).astype(np.float32)
VALUES = X.sum(axis=1)
CLASSES = (VALUES > 0).astype(np.int32)
ONE_HOT = np.eye(2)[CLASSES]


MODEL = mlp(2, widths=[4])


def workload(data=(X, CLASSES), model=MODEL, **settings):
    return Workload.from_model(model, data, **{"batch_size": 16, **settings})


def trained(tx=None, data=(X, CLASSES), roles=None, **settings):
    return train(workload(data, roles=roles), optax.sgd(0.1) if tx is None else tx, **{"steps": 3, **settings})


MISTAKES = {
    "float labels without loss=": (lambda: trained(data=(X, VALUES)), "loss=squared_error for values"),
    "a column of them": (lambda: trained(data=(X, VALUES[:, None])), "loss=squared_error for values"),
    "one-hot labels": (lambda: trained(data=(X, ONE_HOT)), r"labels\.argmax\(-1\) of one-hot rows"),
    "one-hot integers": (lambda: trained(data=(X, ONE_HOT.astype(int))), r"labels\.argmax\(-1\) of one-hot rows"),
    "a column of classes": (lambda: trained(data=(X, CLASSES[:, None])), r"labels\[:, 0\] of one column"),
    "other names in a dict": (lambda: workload({"x": X, "y": CLASSES}), "must hold 'inputs' and 'labels', got 'x'"),
    "a bare array": (lambda: workload(X), r"your arrays as \(inputs, labels\), got ndarray"),
    "a split": (lambda: workload(arrays(X, CLASSES).train), r"say Source\('mine', it, None, None, {}\)"),
    "a factory as tx": (lambda: trained(optax.adam), r"call it, as adam\(learning_rate\)"),
    "a string as tx": (lambda: trained("adam"), r"such as optlab\.adam\(1e-3\), got 'adam'"),
    "no optimizer's name": (lambda: trained("zzz"), r"such as optlab\.adamw\(1e-3\), got 'zzz'"),
    "a pattern that matches nothing": (lambda: trained(roles={"zzz": "matrix"}), "roles: 'zzz' matches no parameter"),
    "a misspelt role": (lambda: trained(roles={"head/kernel": "matrx"}), "did you mean 'matrix'"),
    "a role that is no string": (lambda: trained(roles={"head/kernel": 3}), "roles: head/kernel: an override must be"),
    "a run without a name": (lambda: trained(run=""), "a run's folder must have a name"),
    "a file as run": (lambda: trained(run=__file__), "test_mistakes.py is a file: name a folder"),
    "a folder as checkpoints": (lambda: trained(checkpoints="runs/x"), r"say Checkpoints\('runs/x'\)"),
    "epochs": (lambda: trained(epochs=3), "say steps=…: an epoch is 3 steps"),
    "a learning rate": (lambda: trained(lr=0.1), r"it is the optimizer's, as in optlab\.adamw"),
    "a schedule alone": (lambda: trained(schedules=max), "schedules must be a dict of functions of the step"),
    "a loss by name": (lambda: workload(loss="mse"), r"such as optlab\.training\.squared_error, got 'mse'"),
    "a loss of optax": (lambda: workload(loss=optax.l2_loss), r"optax\.l2_loss\(outputs, batch\['labels'\]\)"),
    "metrics as a list": (lambda: workload(metrics=[accuracy]), r"metrics={'accuracy': optlab\.training\.accuracy}"),
    "a target by name": (lambda: workload(target="train/loss"), r"such as Target\(metric='train/loss'\)"),
    "a class as model": (lambda: workload(model=nn.Dense), r"got its class Dense: say Dense\(…\)"),
    "a batch size of 16.0": (lambda: workload(batch_size=16.0), "batch_size must be a number of examples"),
    "a fraction of no length": (lambda: optlab.schedules.constant(0.1, warmup=0.1), "must be a whole number of steps"),
    "a long warm-up": (lambda: optlab.schedules.cosine(0.1, 20) and optlab.schedules.warmup_cosine(0.1, 20, warmup=99),
                       "0.1 is a tenth of the run"),
}  # fmt: skip


@pytest.mark.parametrize(("made", "says"), MISTAKES.values(), ids=MISTAKES)
def test_a_mistake_is_answered_with_what_would_work(made, says):
    with pytest.raises((TypeError, ValueError), match=says) as error:
        made()
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("data", [(X, CLASSES), [X, CLASSES], {"inputs": X, "labels": CLASSES}])
def test_arrays_are_data(data):
    made, source = workload(data).data, arrays(X, CLASSES)
    for split in ("train", "validation", "test"):
        assert np.array_equal(getattr(made, split).rows, getattr(source, split).rows)
    assert Workload("mine", data, lambda key: ({}, {}), lambda *_: None).data.facts == {"outputs": 2}


def test_an_equinox_module_is_told_the_two_functions():
    eqx = pytest.importorskip("equinox")
    with pytest.raises(TypeError, match=r"say Workload\(name, data, init, loss\) with two functions"):
        workload(model=eqx.nn.Linear(4, 2, key=jax.random.key(0)))


def test_a_module_with_functions_among_its_parameters_is_told_how_to_part_them():
    init = lambda key: ({"w": jnp.zeros(4), "activation": jnp.tanh}, {})
    mine = Workload("mine", (X, CLASSES), init, lambda *_: None, batch_size=16)
    says = r"got a function at \['activation'\]: .*eqx\.partition\(model, eqx\.is_array\)\[0\]"
    for act in (mine.sizes, lambda: train(mine, optax.sgd(0.1), steps=1)):
        with pytest.raises(TypeError, match=says):
            act()


# What only training shows, on the cheapest workload.


def line(tx, batch_size=16, **settings):
    def loss(weights, model_state, batch, key, train):
        errors = jnp.square(batch["inputs"] @ weights - batch["labels"])
        return jnp.mean(errors), (model_state, {"loss": (jnp.sum(errors), errors.size)})

    mine = Workload("line", (X, VALUES), lambda key: (jnp.zeros(4), {}), loss, batch_size=batch_size)
    return train(mine, tx, **{"steps": 3, "log_every": 1, **settings})


@pytest.mark.parametrize("tx", [optax.identity(), optax.scale_by_adam()], ids=["identity", "adam"])
def test_a_chain_without_a_learning_rate_goes_uphill(tx):
    with pytest.raises(UphillError, match=r"tx goes uphill .*optlab\.scale_by_learning_rate\(1e-3\)"):
        line(tx)


UPHILL = {  # of batches so large that chance alone is no jump
    "adam without its minus": (lambda: optax.chain(optax.scale_by_adam(), optax.scale(1e-3)), 48, "step 10: the loss"),
    "a negative rate": (lambda: optax.adam(-1e-4), 48, "step 10: the loss"),
    "too slow for batches to show": (lambda: optax.adam(-1e-6), 40, "step 13: the validation loss"),
}


@pytest.mark.parametrize("name", UPHILL)
def test_a_slow_climb_is_uphill_too(name):
    made, batch_size, says = UPHILL[name]
    with pytest.raises(UphillError, match=f"{says} rose from .*tx goes uphill"):
        line(made(), batch_size, steps=20, evaluate_every=6)


def test_a_loss_that_rises_by_a_rate_too_large_is_no_climb():
    losses = [r["train/loss"] for r in line(optax.sgd(1.2), 48, steps=10).records]
    assert _is_rising(losses)


def test_noise_seldom_looks_like_a_rise():
    rng = np.random.default_rng(0)
    rising = [_is_rising(list(rng.normal(size=10))) for _ in range(1000)]
    assert np.mean(rising) < 0.05
    assert not _is_rising([1.0])
    assert _is_rising([1.0, 1.1, 1.2, 1.3])


def test_a_role_of_ones_own_is_taken():
    check_overrides({"head/*": "mine"}, {"head/kernel": (4, 2)})


def test_a_burst_that_goes_downhill_is_reported_once(capsys):
    line(optax.sgd(30.0))
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1
    assert "the learning rate is too large, or there is none in tx" in lines[0]


def test_a_loss_that_jumps_twice_is_compared_by_one_program():
    """Which makes a fresh optimizer where it is traced."""
    rule, made = optax.sgd(30.0), []
    counted = optax.GradientTransformation(lambda params: made.append(1) or rule.init(params), rule.update)
    for steps in (2, 3):
        line(counted, steps=steps)
        made.append(0)
    once, twice, _ = "".join(map(str, made)).split("0")
    assert once == twice


def test_a_batch_with_a_tenth_of_another_ones_loss_is_no_burst(capsys):
    x = np.ones((40, 1), np.float32)
    y = np.where(np.arange(40) == 0, 0.1, 2.0).astype(np.float32)
    zero = lambda key: ({"w": jnp.zeros(1)}, {})

    def loss(params, state, batch, key, train):
        value = jnp.mean((batch["inputs"] @ params["w"] - batch["labels"]) ** 2)
        return value, (state, {"loss": (value, 1.0)})

    work = Workload("ones", arrays(x, y, validation=0, test=0), zero, loss, batch_size=1, draw="ordered")
    history = train(work, optax.sgd(1e-3), steps=3, log_every=1)
    assert history.records[1]["train/loss"] > 11 * history.records[0]["train/loss"]
    assert capsys.readouterr().err == ""


def test_a_watch_does_not_repeat_what_the_first_steps_reported(capsys):
    said = []
    watch = Watch({"data": "digits", "loss": "cross_entropy"}, said.append)
    trained(optax.sgd(1e3), steps=4, log_every=2, evaluate_every=1, observers=[watch])
    assert len(capsys.readouterr().err.splitlines()) == 1
    assert (said, watch.has_reported) == ([], True)


def test_what_moves_nothing_is_reported(capsys):
    line(optax.sgd(0.0), evaluate_every=2)
    assert capsys.readouterr().err == (
        "optlab: step 2: no parameter has changed so far: the learning rate is 0, or all are frozen\n"
    )


def test_what_moves_nothing_in_the_only_step_is_reported(capsys):
    line(optax.sgd(0.0), steps=1)
    assert "optlab: step 1: no parameter has changed so far: the learning rate is 0" in capsys.readouterr().err


RIGHT = {
    "a warm-up from 0": lambda: optlab.sgd(optlab.schedules.warmup_cosine(0.01, 30, warmup=0.1)),
    "collecting": lambda: optax.MultiSteps(optax.sgd(0.1), 8),
    "uphill and back": lambda: optax.contrib.sam(optax.sgd(0.1), optax.sgd(0.3)),
}


@pytest.mark.parametrize("name", RIGHT)
def test_what_is_right_is_not_reported(name, capsys):
    line(RIGHT[name]())
    assert capsys.readouterr().err == ""
