"""A run that is continued is the same run: what differs from its checkpoint is refused, unless it is allowed."""

import dataclasses
import os
import shutil
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import optlab
from optlab.config import Stop, Target
from optlab.data import arrays
from optlab.training import CheckpointError, Checkpoints, Workload, identity, init_state, program, train

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
    own=None,
    **kwargs,
):
    source = arrays(X, X.sum(axis=1) + shift, validation=0.2, test=0.2)
    if moved:
        source = dataclasses.replace(source, **{moved: source.train})
    if gone:
        source = dataclasses.replace(source, **{gone: None})
    workload = Workload("regression", source, *(own or (init, loss)), batch_size, target)
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
        ({"seed": 3}, r"4 is of another run: seed \(0 there, 3 here\); .*allow_change=\('seed',\)$"),
        ({"batch_size": 12}, r"batch_size \(16 there, 12 here\)"),
        ({"accumulate": 2, "ema": 0.9}, r"accumulate \(1 there, 2 here\), ema \(0.5 there, 0.9 here\); .*"
         r"allow_change=\('accumulate', 'ema'\)"),
        ({"shift": 1.0}, r"data \('36 examples in memory \w+' there, '36 examples in memory \w+' here\)"),
        ({"shift": 1.0, "allow_change": ["data.path"]}, "4 is of another run: data"),  # moved, not changed
        ({"moved": "validation"}, r"run: data.validation \('12 examples .*' there, '36 examples .*' here\)"),
        ({"moved": "test"}, r"run: data.test \('12 .* there, '36 .* here\); .*allow_change=\('data',\)$"),
        ({"gone": "validation", "target": Target(metric="train/loss")}, r"data.validation \('12 .* there, None here\)"),
        ({"ema": None}, r"run: ema \(0.5 there, None here\); .*allow_change=\('ema',\)$"),
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


@pytest.mark.thinned
@pytest.mark.parametrize("steps", [4, 6])
@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"rate": 0.001}, r"optimizer \(-0.01 there, -0.001 here\); .*allow_change=\('optimizer',\)"),
        (
            {"optimizer": lambda rate: optax.chain(optax.sgd(rate), optax.scale(1.5))},
            r"optimizer \(program \w+ there, program \w+ with 1.5 here",
        ),
        ({"initial": {"w": np.zeros(4, np.float32)}}, r"initial \(None there, '\w{16}' here\); .*\('initial',\)"),
        ({"loss": lambda e: abs(e).mean()}, r"loss \(.* there, .* here\); .*allow_change=\('loss',\)"),
        ({"loss": lambda e: (e**2).mean() + 0.25}, r"loss \(program \w+ there, program \w+ with 0.25 here\)"),
        ({"scale": 0.5}, r"model \(0.1 there, 0.5 here\); .*allow_change=\('model',\)"),
    ],
    ids=["rate", "chain", "initial", "loss", "constant", "model"],
)
def test_another_optimizer_loss_or_model_of_python_is_another_run(copy, steps, changed, message):
    changed = dict(changed)
    settings = {"steps": steps, "optimizer": changed.pop("optimizer", optax.sgd), "rate": changed.pop("rate", 0.01)}
    if initial := changed.pop("initial", None):
        settings["initial"] = (initial, {})
    own = made(**changed) if changed else None
    with pytest.raises(CheckpointError, match=message):
        go(copy, own=own, **settings)
    names = ["optimizer", "loss", "model", "initial"]
    assert go(copy, own=own, allow_change=names, **settings).outcome == "finished"
    if steps > 4:  # it was saved again, and is what is checked from then on
        assert len(go(copy, own=own, **settings).records) == 3


def made(loss=lambda e: (e**2).mean(), scale=0.1):
    """Another way to measure errors, or to begin."""

    def measure(params, model_state, batch, key, train):
        errors = batch["inputs"] @ params["w"] - batch["labels"]
        return loss(errors), (model_state, {"loss": (loss(errors) * errors.size, errors.size), "more": (1.0, 1)})

    return lambda key: ({"w": scale * jax.random.normal(key, (4,))}, {}), measure


def test_the_same_again_says_so_and_gives_its_records(ran, copy, capsys):
    whole = go(copy, steps=4)
    assert [r["step"] for r in whole.records] == [2, 4]
    assert (whole.start, whole.outcome) == (4, "finished")
    assert f"the run in {copy} is finished already, at step 4: nothing is trained" in capsys.readouterr().err
    assert [r["step"] for r in go(copy, steps=6).records] == [6]
    assert capsys.readouterr().err == ""
    assert [r["step"] for r in go(copy, steps=6).records] == [2, 4, 6]
    (copy / "metrics.jsonl").unlink()
    assert go(copy, steps=6).records == []


def test_a_program_of_another_version_is_not_compared_and_that_is_said(copy, monkeypatch, capsys):
    monkeypatch.setattr(program, "_version", lambda name: "99")
    assert go(copy, rate=0.5).outcome == "finished"
    assert "was made with jax " in (said := capsys.readouterr().err)
    assert "here is jax 99, optax 99" in said
    with pytest.raises(CheckpointError, match="optimizer"):
        go(copy, rate=0.6)


def test_a_digest_is_the_same_in_every_process_and_whatever_the_names(capsys):
    code = """
import jax, jax.numpy as jnp, numpy as np, optax
from optlab.training.program import program
def f(x):
    unused = jnp.sin(x) * 7.5
    jax.debug.print("{}", x)
    with jax.named_scope("somewhere"):
        y = jax.jit(lambda z: jax.nn.relu(z) * np.arange(3.0))(x)
    return {name: jax.lax.fori_loop(0, 3, lambda i, z: z * 1.5, y) for name in {"b", "a"}}
print(program(f, jnp.ones(3)))
"""
    exec(code, {})
    found = capsys.readouterr().out
    environment = {**os.environ, "PYTHONHASHSEED": "1"}
    ran = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True)
    assert found == ran.stdout
    assert "'numbers': [1.5]" in found

    def renamed(values):
        y = jnp.maximum(values, 0) * jax.nn.relu(values) * 0 + jax.nn.relu(values) * np.arange(3.0)
        return {name: jax.lax.fori_loop(0, 3, lambda j, w: w * 1.5, y) for name in ("a", "b")}

    assert str(program.program(renamed, jnp.ones(3))) != found.strip()


def test_a_schedules_length_is_part_of_the_optimizer(tmp_path):
    settings = {"optimizer": lambda length: optax.sgd(optax.cosine_decay_schedule(0.01, length))}
    go(tmp_path, rate=20, **settings)
    with pytest.raises(CheckpointError, match=r"run: optimizer \(.* there, .* here\)"):
        go(tmp_path, rate=30, **settings)
    assert go(tmp_path, rate=30, allow_change=["optimizer"], **settings).outcome == "finished"


PLAIN = lambda x: jax.lax.scan(lambda c, i: (c * 2 + i, c), x, jnp.arange(3.0))


@pytest.mark.parametrize(
    ("other", "is_same"),
    [
        (lambda x: jax.jit(PLAIN)(x), True),
        (lambda x: jax.checkpoint(PLAIN)(x), True),
        (lambda x: jax.lax.scan(lambda c, i: (i + c * 2, c), x, jnp.arange(3.0)), False),
        (lambda x: jax.lax.scan(lambda c, i: (c * 3 + i, c), x, jnp.arange(3.0)), False),
        (lambda x: jax.lax.scan(lambda c, i: (c * 2 + i, c), x, jnp.arange(3.0) + 1), False),
        (lambda x: jax.lax.scan(lambda c, i: (c * 2 + i, c), x, jnp.asarray([0.0, 1.0, 2.5])), False),
        (lambda x: jax.lax.scan(lambda c, i: (c * 2 + i, c), x, jnp.arange(3.0), reverse=True), False),
        (lambda x: PLAIN(x)[::-1], False),
    ],
)
def test_a_digest_is_of_what_is_computed(other, is_same):
    a, b = (program.program(f, jnp.ones(())) for f in (PLAIN, other))
    assert (a["digest"] == b["digest"]) is is_same


@pytest.mark.parametrize("settings", [{"strategy": "jit"}, {"strategy": "pmap"}, {"guard": "skip"}, {"spike": 9.0}])
def test_a_run_that_goes_on_elsewhere_is_the_same_run(copy, settings):
    assert go(copy, **settings).outcome == "finished"


@pytest.mark.parametrize(
    "tx",
    [optax.lbfgs(), optax.contrib.schedule_free_sgd(0.1), optlab.muon(0.01), optax.polyak_sgd()],
    ids=["lbfgs", "schedule_free", "muon", "polyak"],
)
def test_rules_of_every_house_have_a_digest(tx):
    source = arrays(X, X.sum(axis=1))
    work = Workload("regression", source, init, loss, 16)
    state = init_state({"w": jnp.ones(4)}, {}, tx, key=jax.random.key(0))
    assert set(program.programs(work, tx, state)) == {"model", "loss", "loss.training", "optimizer"}


def test_an_update_that_needs_a_mapped_axis_is_left_out():
    """As Muon's under pmap: `optlab train configs/digits.py strategy=pmap` fails without this."""
    tx = optlab.orthogonalize(axis_name="data")
    params = {"w": jnp.ones((4, 3))}
    work = Workload("matrix", arrays(X, X), lambda key: (params, {}), matrix_loss, 16)
    state = init_state(params, {}, tx, key=jax.random.key(0))
    assert set(program.programs(work, tx, state)) == {"model", "loss", "loss.training"}


def matrix_loss(params, model_state, batch, key, train):
    return (batch["inputs"] @ params["w"]).sum(), (model_state, {})


def test_a_changed_rate_that_the_optimizer_keeps_in_its_state_is_the_new_one(tmp_path):
    first = go(tmp_path, steps=4, optimizer=optax.inject_hyperparams(optax.sgd), rate=0.01)
    changed = {"optimizer": optax.inject_hyperparams(optax.sgd), "rate": 0.0}
    with pytest.raises(CheckpointError, match=r"hyperparameter .*allow_change=\('optimizer',\)"):
        go(tmp_path, steps=4, **changed)
    then = go(tmp_path, steps=6, **changed, allow_change=["optimizer"])
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


def test_data_of_another_fingerprint_are_refused(copy, monkeypatch):
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
    assert go(copy, moved="validation", rate=0.0, allow_change=["data", "optimizer"]).best[0] == 6


def test_a_guard_against_spikes_may_begin_and_end(tmp_path):
    for steps, spike, accepted in ((2, None, None), (4, 5.0, 2), (6, 4.0, 4), (8, None, None)):
        state = go(tmp_path, steps=steps, spike=spike).state
        assert (state.losses and int(state.losses.accepted)) == accepted


def test_a_run_that_stopped_early_goes_on_under_another_stop(tmp_path):
    settings = {"rate": 0.0, "steps": 12}
    assert int(go(tmp_path, stop=Stop(patience=2), **settings).state.step) == 6
    assert [r["step"] for r in go(tmp_path, stop=Stop(patience=2), **settings).records] == [2, 4, 6]
    assert int(go(tmp_path, stop=Stop(patience=4), **settings).state.step) == 10
    assert go(tmp_path, **settings).outcome == "finished"


@pytest.mark.parametrize(("left", "missing"), [((), "best, waited"), (("run",), "run;"), (("lines",), "lines;")])
def test_a_checkpoint_that_no_run_saved_is_refused(ran, tmp_path, left, missing):
    like = go(shutil.copytree(ran, tmp_path / "read"), steps=4).state
    notes = {name: value for name, value in Checkpoints(ran).notes(4).items() if left and name not in left}
    own = Checkpoints(tmp_path / "own")
    own.save(like, notes)
    own.wait()
    with pytest.raises(CheckpointError, match=f"isn't one that a run of `train` saved: its notes hold no {missing}"):
        go(tmp_path / "own")


def test_processes_that_have_other_data_are_refused(monkeypatch, tmp_path):
    monkeypatch.setattr(identity, "once", lambda work: {**work(), "data": "36 examples of last week"})
    with pytest.raises(CheckpointError, match=r"aren't one run: data \('36 examples of last week' in process 0"):
        go(tmp_path)
