"""A run that is continued is the same run: what differs from its checkpoint is refused, unless it is allowed."""

import dataclasses
import shutil

import jax
import numpy as np
import optax
import pytest

from optlab.config import Stop, Target
from optlab.data import arrays
from optlab.training import CheckpointError, Checkpoints, Workload, identity, train

RNG = np.random.default_rng(1)
X = RNG.normal(size=(60, 4)).astype(np.float32)


def init(key):
    return {"w": 0.1 * jax.random.normal(key, (4,))}, {}


def loss(params, model_state, batch, key, train):
    errors = (batch["inputs"] @ params["w"] - batch["labels"]) ** 2
    return errors.mean(), (model_state, {"loss": (errors.sum(), np.float32(errors.size))})


def go(
    folder,
    *,
    shift=0.0,
    moved=None,
    gone=None,
    batch_size=16,
    target=Target(),
    optimizer=optax.sgd,
    rate=0.01,
    **kwargs,
):
    source = arrays(X, X.sum(axis=1) + shift, validation=0.2, test=0.2)
    if moved:
        source = dataclasses.replace(source, **{moved: source.train})
    if gone:
        source = dataclasses.replace(source, **{gone: None})
    workload = Workload("regression", source, init, loss, batch_size, target)
    settings = {"steps": 6, "ema": 0.5, "evaluate_every": 2, **kwargs}
    return train(workload, optimizer(rate), checkpoints=Checkpoints(folder, every=2), **settings)


@pytest.fixture(scope="module")
def ran(tmp_path_factory):
    """The checkpoints of a run of four steps."""
    folder = tmp_path_factory.mktemp("ran") / "checkpoints"
    go(folder, steps=4)
    return folder


@pytest.fixture
def copy(ran, tmp_path):
    """One's own."""
    return shutil.copytree(ran, tmp_path / "checkpoints")


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"seed": 3}, r"4 is of another run: seed \(0 there, 3 here\); .*--allow-change seed"),
        ({"batch_size": 12}, r"batch_size \(16 there, 12 here\)"),
        ({"accumulate": 2, "ema": 0.9}, r"accumulate \(1 there, 2 here\), ema \(0.5 there, 0.9 here\); .*"
         r"allow_change=\('accumulate', 'ema'\)"),
        ({"shift": 1.0}, r"data \('36 examples in memory \w+' there, '36 examples in memory \w+' here\)"),
        ({"shift": 1.0, "allow_change": ["data.path"]}, "4 is of another run: data"),  # moved, not changed
        ({"moved": "validation"}, r"run: data.validation \('12 examples .*' there, '36 examples .*' here\)"),
        ({"moved": "test"}, r"run: data.test \('12 .* there, '36 .* here\); .*--allow-change data$"),
        ({"gone": "validation", "target": Target(metric="train/loss")}, r"data.validation \('12 .* there, None here\)"),
        ({"ema": None}, r"run: ema \(0.5 there, None here\); .*--allow-change ema$"),
        ({"target": Target(value=0.1)}, r"target.value \(None there, 0.1 here\)"),
        ({"optimizer": optax.adam}, r"another model or optimizer: opt_state/.* \(absent there, float32\[4\] here\)"),
    ],
)  # fmt: skip
def test_another_run_is_refused_with_what_differs(ran, changed, message):
    with pytest.raises(CheckpointError, match=message):
        go(ran, **changed)
    assert Checkpoints(ran).steps() == [2, 4]


def test_another_random_generator_is_refused(ran):
    with jax.default_prng_impl("rbg"), pytest.raises(CheckpointError, match=r"key .*fry.* there, .*rbg here"):
        go(ran)


def test_what_is_allowed_goes_on_and_is_what_is_checked_from_then_on(copy):
    changed = {"seed": 3, "batch_size": 12, "shift": 1.0, "target": Target(value=1e9), "evaluate_every": 1}
    history = go(copy, allow_change=["seed", "batch_size", "data", "target"], **changed)
    assert [r["step"] for r in history.records] == [5, 6]
    assert history.reached == 5
    fresh = jax.random.split(jax.random.key(3))[0]
    assert (jax.random.key_data(history.state.key) == jax.random.key_data(fresh)).all()
    assert go(copy, **changed).outcome == "finished"
    with pytest.raises(CheckpointError, match=r"seed \(3 there, 0 here\), batch_size \(12 there, 16 here\)"):
        go(copy)


def test_what_was_found_under_another_target_is_forgotten(tmp_path):
    first = go(tmp_path, steps=4, target=Target(value=1e9))
    assert (first.best[0], first.reached) == (4, 2)
    history = go(tmp_path, target=Target(value=1e9, mode="max"), allow_change=["target.mode"])
    assert history.best == (6, history.records[-1]["validation/loss"])  # the loss falls: 4 was higher
    assert history.reached is None


def test_another_learning_rate_is_the_same_run(copy):
    assert go(copy, rate=0.001).outcome == "finished"


def test_a_changed_rate_that_the_optimizer_keeps_in_its_state_is_the_new_one(tmp_path):
    first = go(tmp_path, steps=4, optimizer=optax.inject_hyperparams(optax.sgd), rate=0.01)
    then = go(tmp_path, steps=6, optimizer=optax.inject_hyperparams(optax.sgd), rate=0.0)
    assert then.state.params["w"].tolist() == first.state.params["w"].tolist()
    assert then.state.opt_state.hyperparams["learning_rate"] == 0


def test_a_rate_that_the_optimizer_moved_stays_moved(tmp_path):
    def halving(rate):
        inner = optax.inject_hyperparams(optax.sgd)(learning_rate=rate)

        def update(updates, state, params=None):
            updates, state = inner.update(updates, state, params)
            return updates, state._replace(hyperparams={"learning_rate": state.hyperparams["learning_rate"] / 2})

        return optax.GradientTransformation(inner.init, update)

    for steps in (4, 6):
        history = go(tmp_path, steps=steps, optimizer=halving, rate=1.0)
    assert history.state.opt_state.hyperparams["learning_rate"] == 2.0**-6


def test_a_fingerprint_that_was_made_otherwise_says_how_many_alone(copy, monkeypatch):
    monkeypatch.setattr(identity, "fingerprint", lambda split: f"{len(split)} examples 0123456789abcdef")
    assert go(copy).best[0] <= 6
    monkeypatch.setattr(identity, "fingerprint", lambda split: f"{len(split) + 1} examples 0123456789abcdef")
    with pytest.raises(CheckpointError, match=r"data \('36 examples .* there, '37 examples"):
        go(copy, steps=8)


def test_the_average_may_begin_and_end_where_it_is_allowed(copy):
    history = go(copy, ema=None, steps=6, allow_change=["ema"])
    assert history.state.ema is None
    with pytest.raises(CheckpointError, match=r"run: ema \(None there, 0.5 here\)"):
        go(copy, steps=8)
    begun = go(copy, steps=7, ema=0.0, allow_change=["ema"]).state
    assert begun.ema["w"].tolist() == begun.params["w"].tolist()


def test_the_best_on_other_data_is_forgotten(copy):
    assert go(copy, moved="validation", rate=0.0, allow_change=["data"]).best[0] == 6


def test_a_guard_against_spikes_may_begin_and_end(tmp_path):
    for steps, spike, accepted in ((2, None, None), (4, 5.0, 2), (6, 4.0, 4), (8, None, None)):
        state = go(tmp_path, steps=steps, spike=spike).state
        assert (state.losses and int(state.losses.accepted)) == accepted


def test_a_run_that_stopped_early_goes_on_under_another_stop(tmp_path):
    settings = {"rate": 0.0, "steps": 12}
    assert int(go(tmp_path, stop=Stop(patience=2), **settings).state.step) == 6
    assert go(tmp_path, stop=Stop(patience=2), **settings).records == []
    assert int(go(tmp_path, stop=Stop(patience=4), **settings).state.step) == 10
    assert go(tmp_path, **settings).outcome == "finished"


def test_checkpoints_that_do_not_say_whose_they_are_go_on(ran, tmp_path):
    like = go(shutil.copytree(ran, tmp_path / "read"), steps=4).state
    notes = {name: value for name, value in Checkpoints(ran).notes(4).items() if name != "run"}
    older = Checkpoints(tmp_path / "older")
    older.save(like, notes)
    older.wait()
    assert go(tmp_path / "older", seed=3).outcome == "finished"
    own = Checkpoints(tmp_path / "own")
    own.save(like, {})
    own.wait()
    with pytest.raises(CheckpointError, match="isn't one that a run of `train` saved: its notes hold no best, waited"):
        go(tmp_path / "own")


def test_processes_that_have_other_data_are_refused(monkeypatch, tmp_path):
    monkeypatch.setattr(identity, "once", lambda work: {**work(), "data": "36 examples of last week"})
    with pytest.raises(CheckpointError, match=r"aren't one run: data \('36 examples of last week' in process 0"):
        go(tmp_path)
