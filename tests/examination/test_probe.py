"""Faults that curves don't show, planted into data and models, and healthy ones beside them."""

import dataclasses
import json
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

import optlab
from optlab.commands import main
from optlab.config import Component, Config, to_json
from optlab.data import DataError, arrays
from optlab.diagnosis import Evidence, examine
from optlab.diagnosis._data import Examples, agreement, probe_data
from optlab.diagnosis._layers import Layer, ModelProbe, _sees_ahead, last_operation
from optlab.examination._patient import Patient
from optlab.runs import Run
from optlab.training import GuardError, Workload, squared_error, train

RNG = np.random.default_rng(0)
X = RNG.standard_normal((600, 8)).astype(np.float32)
Y = (X[:, 0] + X[:, 1] > 0).astype(int)
BY_CLASS = np.argsort(Y, kind="stable")
T = np.arange(5, 305, 5)


class Net(nnx.Module):
    def __init__(self, rngs, *, init=None, act=nnx.relu, depth=1, end=None, dtype=jnp.float32, outputs=2):
        kwargs = {"param_dtype": dtype, "rngs": rngs, **({} if init is None else {"kernel_init": init})}
        self.first = nnx.Linear(8, 16, **kwargs)
        self.hidden = nnx.List([nnx.Linear(16, 16, **kwargs) for _ in range(depth)])
        self.head, self.act, self.end = nnx.Linear(16, outputs, **kwargs), act, end or (lambda x: x)

    def __call__(self, x):
        x = self.act(self.first(x))
        for layer in self.hidden:
            x = self.act(layer(x))
        return self.end(self.head(x))


def work(X=X, Y=Y, *, draw="shuffled", loss=None, **net):
    loss = {} if loss is None else {"loss": loss}
    return Workload.from_model(lambda rngs: Net(rngs, **net), arrays(X, Y), batch_size=32, draw=draw, **loss)


def own_cross_entropy(outputs, batch):
    return optax.softmax_cross_entropy_with_integer_labels(outputs, batch["labels"])


def of_data(source, *, draw="shuffled", loss=None, held_out=None):
    """The names that are found in data beside a loss that stays where it is, or a given one."""
    flat = np.full(len(T), 0.7)
    metrics = {"step": T, "train/loss": flat if loss is None else loss}
    metrics["validation/loss"] = flat if held_out is None else held_out
    evidence = Evidence("made", metrics, data=probe_data(source, batch_size=32, draw=draw))
    return [f.name for f in examine(evidence) if f.is_cause]


WIDE = X * np.array([1e4, *[1] * 7], np.float32)
TEXT = (np.arange(9) + RNG.integers(0, 20, (600, 1)) + RNG.integers(0, 2, (600, 9))) % 20
SOUND = probe_data(arrays(X, Y), batch_size=32)
DATA = {
    "one class": arrays(X, 0 * Y),
    "inputs all alike": arrays(0 * X, Y),
    "validation leaks": arrays(np.concatenate([X, X]), np.concatenate([Y, Y])),
    "splits differ": arrays(X, Y, validation=(100 * X[:90], Y[:90])),
    "splits differ ": arrays(X[BY_CLASS][:200], Y[BY_CLASS][:200], validation=(X[BY_CLASS][500:], Y[BY_CLASS][500:])),
    "labels apart from inputs": arrays(X, RNG.permutation(Y)),
    "labels apart from inputs ": arrays(TEXT[:, :-1], RNG.permutation(TEXT[:, 1:])),
    "label among the inputs": arrays(np.c_[X, 3.0 * Y].astype(np.float32), Y),
    "label among the inputs ": arrays(X, 2 * X[:, :1] - 1),
    "label among the inputs  ": arrays(TEXT, TEXT),
    "label among the inputs   ": arrays(TEXT[:, 1:], TEXT[:, :-1]),
    "features not scaled": arrays(WIDE, Y),
    "features not scaled ": arrays(300 * X, Y),
}


@pytest.mark.parametrize("name", DATA)
def test_each_fault_of_the_data_is_named(name):
    assert name.strip() in of_data(DATA[name])


def test_data_in_order_are_seen_in_the_batches_themselves():
    source = arrays(X[BY_CLASS], Y[BY_CLASS], validation=0, test=0)
    assert "data in order" in of_data(source, draw="ordered")
    assert "data in order" not in of_data(source)
    targets = np.sort(X[:, 0])
    for labels in (targets, targets[:, None], np.stack([RNG.standard_normal(600), targets], 1)):
        source = arrays(X, labels, validation=0, test=0)
        assert ("data in order" in of_data(source, draw="ordered"), "data in order" in of_data(source)) == (True, False)
    text = np.sort(RNG.integers(0, 90, (600, 1)), axis=0) + RNG.integers(0, 10, (600, 8))  # its letters change with it
    assert "data in order" in of_data(arrays(text, text, validation=0, test=0), draw="ordered")
    assert "data in order" not in of_data(arrays(text, text, validation=0, test=0))


def test_examples_in_a_good_order_are_no_fault():
    assert of_data(arrays(X, Y), draw="ordered") == []


def test_sound_data_are_no_cause_of_a_flat_loss():
    assert of_data(arrays(X, Y)) == []
    assert of_data(arrays(TEXT[:, :-1], TEXT[:, 1:])) == []
    assert of_data(optlab.data.digits()) == []


def test_short_pieces_of_text_are_alike_by_chance_and_copies_are_not():
    words = RNG.integers(0, 3, (3000, 7))
    assert np.mean([row.tobytes() in {r.tobytes() for r in words[:2400]} for row in words[2400:]]) > 0.2
    assert probe_data(arrays(words, words), batch_size=32).overlap == 0
    twice = np.concatenate([words, words])
    assert probe_data(arrays(twice, twice), batch_size=32).overlap > 0.5


def test_what_is_predicted_is_scaled_too():
    metrics = {"step": T, "train/loss": 3e4 * np.exp(-T / 60)}
    data = probe_data(arrays(X, 150 + 70 * X[:, 0] + 9 * X[:, 1]), batch_size=32)
    assert [(f.name, f.severity) for f in examine(Evidence("made", metrics, data=data))] == [
        ("features not scaled", "ill")
    ]


@pytest.mark.parametrize(
    ("classes", "outputs", "metric", "found"),
    [
        (5, 1, "train/accuracy", True),
        (5, 5, "train/accuracy", False),
        (2, 1, "train/accuracy", False),  # a logit
        (5, 1, "train/error", False),  # counts are regressed
    ],
)
def test_classes_that_one_number_stands_for(classes, outputs, metric, found):
    metrics = {"step": T, "train/loss": np.exp(-T / 60), metric: np.full(len(T), 0.3)}
    data = probe_data(arrays(X, RNG.integers(0, classes, 600)), batch_size=32)
    model = ModelProbe(
        300, (LAYER,), 0.1, 1.0, outputs=np.zeros((37, outputs)), labels=np.zeros(37, int), association=9.0
    )
    names = [f.name for f in examine(Evidence("made", metrics, data=data, model=model))]
    assert ("wrong loss for the output" in names) == found


def test_few_kinds_of_rows_are_alike_by_chance():
    coarse = RNG.integers(0, 2, (600, 8)).astype(np.float32)
    assert "validation leaks" not in of_data(arrays(coarse, Y))


def test_unscaled_features_of_a_run_that_learns_are_a_note():
    fall = np.exp(-T / 60)
    evidence = Evidence("made", {"step": T, "train/loss": fall}, data=probe_data(arrays(WIDE, Y), batch_size=32))
    assert [(f.name, f.severity) for f in examine(evidence)] == [("features not scaled", "note")]


def test_a_guess_by_frequency_has_learned_nothing_of_what_belongs_to_what():
    fall, mixed = 0.69 + 0.6 * np.exp(-T / 60), probe_data(arrays(X, RNG.permutation(Y)), batch_size=32)
    metrics = {"step": T, "train/loss": fall, "validation/loss": fall + 0.01}
    for is_cross_entropy in (True, False):
        model = ModelProbe(300, (LAYER,), 0.69, 1.3, is_cross_entropy=is_cross_entropy)
        found = examine(Evidence("made", metrics, data=mixed, model=model))
        assert ("labels apart from inputs" in [f.name for f in found]) == is_cross_entropy


@pytest.mark.parametrize("belongs", [True, False])
def test_a_model_that_knows_which_label_belongs_to_which_input(belongs):
    held_out = Y if belongs else RNG.permutation(Y)
    workload = Workload.from_model(lambda rngs: Net(rngs), arrays(X, Y, validation=(X, held_out)), batch_size=32)
    state = train(workload, optax.adam(1e-2), steps=40).state
    found = Patient(workload, ADAM, 0, state)._association()
    assert found > 10 if belongs else abs(found) < 4
    assert Patient(work(X, 0 * Y), ADAM, 0, state)._association() is None  # no order of theirs is another one


@pytest.mark.parametrize(("association", "names"), [(1.0, ["labels apart from inputs"]), (3.0, [])])
def test_weak_signals_are_no_labels_apart(association, names):
    model = ModelProbe(300, (LAYER,), 0.7, 0.7, association=association)
    data = probe_data(arrays(X, RNG.permutation(Y)), batch_size=32)
    flat = {"step": T, "train/loss": np.full(len(T), 0.7), "validation/loss": np.full(len(T), 0.7) - T / 1e4}
    assert [f.name for f in examine(Evidence("made", flat, data=data, model=model)) if f.is_cause] == names


@pytest.mark.parametrize("mixes", [jnp.cumsum, lambda x, axis: x - x.mean(axis, keepdims=True)], ids=["back", "all"])
def test_outputs_that_depend_on_tokens_behind_their_place(mixes):
    def apply(params, model_state, inputs, key, is_training):
        return mixes(params[inputs], axis=1), model_state

    params, state = jnp.asarray(RNG.standard_normal((20, 5))), SimpleNamespace(model_state={}, key=None)
    state.params, workload = params, SimpleNamespace(apply=apply)
    outputs = np.asarray(apply(params, {}, TEXT, None, False)[0])
    sees = _sees_ahead(workload, state, TEXT, outputs)
    assert sees == (mixes is not jnp.cumsum)
    assert _sees_ahead(workload, state, TEXT, outputs[:, 0]) is None
    model = ModelProbe(300, (LAYER,), 0.7, 0.7, sees_ahead=sees)
    data = probe_data(arrays(TEXT[:, :-1], TEXT[:, 1:]), batch_size=32)
    found = examine(Evidence("made", {"step": T, "train/loss": np.exp(-T / 60)}, data=data, model=model))
    assert [f.name for f in found] == ["label among the inputs"] * sees


def test_neighbours_of_numbers_agree_where_the_target_depends_on_the_inputs():
    assert agreement(Examples(X, X[:, 0] + X[:, 1], True)) > 8
    assert abs(agreement(Examples(X, RNG.standard_normal(600), True))) < 3
    assert agreement(Examples(X.astype(int), X[:, 0], True)) is None  # numbers of tokens


@pytest.mark.parametrize(
    ("f", "name"),
    [
        (jax.nn.softmax, "softmax"),
        (jax.nn.sigmoid, "logistic"),
        (jnp.tanh, "tanh"),
        (jax.nn.relu, "relu"),
        (lambda x: jax.nn.softmax(x).reshape(-1), "softmax"),
        (lambda x: jnp.tanh(x) @ jnp.ones((3, 2)), None),
        (jax.jit(lambda x: jax.nn.sigmoid(x)), "logistic"),
    ],
)
def test_the_operation_that_a_model_ends_in(f, name):
    assert last_operation(jax.make_jaxpr(f)(jnp.ones((4, 3))).jaxpr) == name


def probed(workload, tx, steps=30):
    history = train(workload, tx, steps=steps, log_every=2, evaluate_every=5)
    return optlab.diagnose(history, probe=True, workload=workload, tx=tx).findings


def frozen(params):
    return jax.tree.map_with_path(lambda path, _: "first" in jax.tree_util.keystr(path), params)


def head_alone(params):
    return jax.tree.map_with_path(lambda path, _: "fast" if "head" in jax.tree_util.keystr(path) else "slow", params)


ADAM = optax.adam(1e-3)
MODELS = {
    "wrong loss for the output": (work(end=nnx.softmax), ADAM),
    "wrong loss for the output ": (
        work(X, X[:, :1] + X[:, 1:2] - 1, loss=squared_error, outputs=1, end=nnx.sigmoid),
        ADAM,
    ),
    "bad initialization": (work(init=nnx.initializers.constant(0.05)), ADAM),
    "bad initialization ": (work(init=nnx.initializers.normal(3.0), depth=2), ADAM),
    "vanished gradients": (work(act=nnx.sigmoid, depth=8), optax.sgd(1e-4)),
    "learning rate too low": (work(), optax.sgd(1e-3)),
    "a part frozen": (work(), optax.chain(ADAM, optax.masked(optax.set_to_zero(), frozen))),
    "updates round to nothing": (work(dtype=jnp.bfloat16), optax.adam(1e-5)),
    "wrong routing": (work(), optax.contrib.muon(1e-3)),
    "no learning rate": (work(), optax.chain(optax.scale_by_adam(), optax.scale(-1.0))),
}


@pytest.mark.parametrize("name", MODELS)
def test_each_fault_of_the_model_is_named_first(name):
    assert probed(*MODELS[name])[0].name == name.strip()


@pytest.mark.parametrize("tx", [optax.adam(1e-2), optlab.muon(1e-2)], ids=["adam", "muon"])
def test_a_sound_run_is_healthy_under_a_probe(tx):
    assert [f.name for f in probed(work(), tx, steps=60) if f.severity == "ill"] == []


def of_model(*layers, **found):
    """The names that are found in a model beside a loss that stays where it is."""
    flat = np.full(len(T), 0.7)
    metrics = {"step": T, "train/loss": flat, "learning_rate": np.ones(len(T))}
    model = ModelProbe(300, tuple(layers), 0.7, 0.7, **found)
    return [f.name for f in examine(Evidence("made", metrics, model=model)) if f.is_cause]


LAYER = Layer("a", "matrix", (16, 16), 4.0, 0.2, dead=0.0, moved=1.0, stuck=0.0)


@pytest.mark.parametrize(
    ("change", "name"),
    [
        ({"dead": 0.8}, "dead units"),
        ({"gradient": 1e3}, "exploded gradients"),
        ({"gradient": 1e-9, "is_input": True}, "vanished gradients"),
        ({"gradient": 1e-9}, None),  # inside
        ({"gradient": 0.0, "first_gradient": 0.0}, "a part frozen"),  # weight decay moves it all the same
        ({"gradient": 0.0, "first_gradient": 1.0}, "dead units"),
        ({"moved": 0.0, "stuck": 1.0}, "a part frozen"),
        ({"moved": 0.0, "stuck": 1.0, "bits": 7}, "a part frozen"),
        ({"turned": 0.01}, "learning rate too low"),
        ({"turned": 0.5}, None),
        ({"is_symmetric": True}, "bad initialization"),
        ({"moved": 0.7, "stuck": 0.3, "bits": 7}, "updates round to nothing"),
        ({}, None),
    ],
)
def test_a_layer_beside_a_sound_one(change, name):
    assert of_model(LAYER, dataclasses.replace(LAYER, path="b", **change)) == [name] * (name is not None)


def test_next_to_nothing_that_is_left_of_all_matrices():
    layers = [dataclasses.replace(LAYER, path=x, weight=0.4, first_weight=4.0) for x in "ab"]
    model = ModelProbe(300, tuple(layers), 0.1, 0.7)
    (found,) = examine(Evidence("made", {"step": T, "train/loss": np.exp(-T / 60)}, model=model))
    assert (found.name, found.severity) == ("weight decay too strong", "ill")


@pytest.mark.parametrize(("other", "names"), [(1.0, ["weight decay too strong"]), (4.0, [])])
def test_matrices_that_have_all_shrunk(other, names):
    layers = [dataclasses.replace(LAYER, path=str(x), weight=x, first_weight=4.0) for x in (0.5, other)]
    assert of_model(*layers) == names


@pytest.mark.parametrize(
    ("change", "name", "severity"),
    [
        ({"gradient": 0.0, "first_gradient": 0.0, "is_used": True}, "a part frozen", "ill"),
        ({"gradient": 0.0, "first_gradient": 0.0, "is_used": False}, "a part frozen", "note"),
        ({"gradient": 0.0, "first_gradient": 0.0, "is_used": True, "role": "embedding"}, "a part frozen", "ill"),
        ({"moved": 0.0, "stuck": 1.0}, "a part frozen", "ill"),
        ({"dead": 0.8}, "dead units", "note"),
    ],
)
def test_a_layer_of_a_run_that_learns(change, name, severity):
    model = ModelProbe(300, (LAYER, dataclasses.replace(LAYER, path="b", **change)), 0.1, 0.7)
    found = examine(Evidence("made", {"step": T, "train/loss": np.exp(-T / 60)}, model=model))
    assert [(f.name, f.severity) for f in found] == [(name, severity)]


def test_what_the_optimizer_calls_frozen_is_meant():
    (found,) = (
        f for f in probed(work(), optlab.freeze(optax.adam(3e-2), ["first/*"]), 60) if f.name == "a part frozen"
    )
    assert found.severity == "note"


@pytest.mark.parametrize(
    ("tx", "limit"),
    [
        (optax.chain(optax.clip_by_global_norm(0.01), optax.sgd(0.1, momentum=0.9)), 0.01),
        (optax.chain(optax.clip_by_global_norm(0.01), optlab.sgd(optax.linear_schedule(0, 1, 9))), 0.01),
        (optax.chain(optax.clip_by_global_norm(0.01), optax.add_decayed_weights(0.1), optax.sgd(0.1)), 0.01),
        (optax.chain(optax.clip_by_global_norm(1e6), optax.sgd(0.1)), None),
        (optlab.adamw(0.1), None),
        (optlab.muon(0.1), None),
        (optax.chain(optax.clip(1e-4), optax.sgd(0.1)), 1e-4 * 450**0.5),  # each entry by itself
        (optlab.signum(0.1), None),
        (optlab.signsgd(0.1), None),  # the update of every length
    ],
)
def test_a_limit_is_read_from_what_the_optimizer_does(tx, limit):
    assert Patient(work(), tx, 0, None)._clip() == (limit if limit is None else pytest.approx(limit, rel=0.1))


@pytest.mark.parametrize(
    ("saturation", "names"),
    [
        ({"tanh": 0.8}, ["bad initialization"]),
        ({"relu": 0.8}, ["dead units"]),
        ({"logits": 0.9}, ["saturated softmax"]),
        ({"logistic": 0.8, "tanh": 0.1}, ["bad initialization"]),
        ({"softmax": 0.9}, ["saturated softmax"]),
        ({"softmax": 0.5, "tanh": 0.3}, []),
    ],
)
def test_layers_that_were_drawn_saturated(saturation, names):
    model = ModelProbe(300, (LAYER,), 9.0, 9.0, first_saturation=saturation)
    flat = {"step": T, "train/loss": np.full(len(T), 9.0), "learning_rate": np.ones(len(T))}
    assert [f.name for f in examine(Evidence("made", flat, model=model)) if f.is_cause] == names


def test_a_model_that_was_trained_before_may_be_sure():
    for loss in (0.02, 3.0):  # on what it was trained on, or on something alike
        model = ModelProbe(300, (LAYER,), 0.01, loss, first_saturation={"logits": 0.99})
        assert examine(Evidence("made", {"step": T, "train/loss": np.full(len(T), 0.01)}, model=model)) == ()


def test_weights_that_no_gradient_reaches_were_drawn_badly():
    gone = dataclasses.replace(LAYER, gradient=0.0, first_gradient=0.0)
    bias = Layer("bias", "vector", (16,), 1.0, 0.2)
    assert of_model(gone, dataclasses.replace(gone, path="b"), bias) == ["bad initialization"]
    assert "bad initialization" not in of_model(gone, bias)  # a linear model may start at 0


def test_a_rate_of_zero_is_no_part_frozen_and_no_rate_too_low():
    still = dataclasses.replace(LAYER, moved=0.0, stuck=1.0, turned=0.0)
    assert of_model(still, dataclasses.replace(still, path="b")) == ["nothing moves"]


@pytest.mark.parametrize(
    ("first", "now", "names"),
    [
        (0.5, 0.0, ["learning rate too high"]),
        (1e-9, 1e-9, ["bad initialization"]),
        (1e-9, 0.2, ["bad initialization"]),  # a plateau that ends late
        (0.0, 0.2, []),  # a head that starts at 0
        (0.5, 0.2, []),
    ],
)
def test_outputs_that_are_the_same_for_all_examples(first, now, names):
    base = np.linspace(-1, 1, 16).reshape(8, 2)
    found = {"labels": np.arange(8) % 2, "outputs": now * base, "first_outputs": first * base}
    assert of_model(LAYER, is_cross_entropy=True, **found) == names


@pytest.mark.parametrize(("loss", "names"), [(0.1, []), (50.0, ["saturated softmax"])])
def test_wrong_and_sure_is_saturated(loss, names):
    labels, outputs = np.arange(8) % 2, 50.0 * np.eye(2)[(np.arange(8) + 1) % 2]
    model = ModelProbe(300, (LAYER,), loss, 0.7, labels, outputs, is_cross_entropy=True)
    evidence = Evidence("made", {"step": T, "train/loss": np.full(len(T), loss)}, model=model)
    assert [f.name for f in examine(evidence) if f.is_cause] == names


def test_a_divergence_is_followed_to_the_layer_whose_gradient_leaves_its_scale_first():
    workload = work(X, X[:, :1], loss=squared_error, outputs=1)
    tx = optax.multi_transform({"fast": optax.sgd(-0.3), "slow": optax.sgd(1e-6)}, head_alone)
    evidence = Evidence("made", {"step": T[:1], "train/loss": np.ones(1)}, outcome="NonFiniteError")
    path, step = Patient(workload, tx, 0, None)._began(evidence)
    assert path.startswith(("first", "hidden"))  # they are multiplied by the head, which alone moves
    assert 1 < step < 100


def test_the_command_probes_a_run_of_a_config(tmp_path, capsys):
    run = tmp_path / "run"
    run.mkdir()
    lines = [{"step": int(t), "train/loss": 2.3, "validation/loss": 2.3 + 1e-3 * t} for t in T]
    (run / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    config = Config(
        data=Component("digits"),
        model=Component("mlp"),
        optimizer=Component("optax.contrib.muon", {"learning_rate": 1e-3}),
        steps=300,
    )
    (run / "config.json").write_text(json.dumps({"config": to_json(config)}))
    assert main(["diagnose", str(run), "--probe"]) == 1
    assert "ill: wrong routing" in capsys.readouterr().out


def test_a_probe_needs_what_was_trained():
    history = train(work(), ADAM, steps=4, log_every=1)
    with pytest.raises(TypeError, match="workload="):
        optlab.diagnose(history, probe=True)


@pytest.mark.parametrize(
    ("data", "how", "curves", "probed"),
    [
        ((1e15 * X, X.sum(1, keepdims=True)), {"loss": squared_error, "outputs": 1}, "diverged", "features not scaled"),
        ((X, Y + 1), {}, "labels out of range", "labels out of range"),
        ((X, Y + 1), {"loss": own_cross_entropy}, "diverged", "labels out of range"),
    ],
    ids=["inputs", "labels", "labels, own loss"],
)
def test_a_run_that_ends_before_its_first_record_is_diagnosed(tmp_path, data, how, curves, probed):
    workload, tx = work(*data, **how), optax.sgd(1e-2)
    with pytest.raises((GuardError, DataError)):
        train(workload, tx, steps=100, run=tmp_path / "run", seed=3)
    assert Run(tmp_path / "run").metrics()["step"][-1] < 10
    found = optlab.diagnose(tmp_path / "run")
    assert (found.verdict, found.is_probed) == (curves, False)
    assert ", probe=True, workload=workload, tx=tx)" in found.command
    assert optlab.diagnose(tmp_path / "run", probe=True, workload=workload, tx=tx).verdict == probed


def test_a_run_that_the_first_steps_found_uphill_is_named_by_its_outcome():
    evidence = Evidence("made", {"step": T[:2], "train/loss": np.array([1.0, 9.0])}, outcome="UphillError")
    assert examine(evidence)[0].name == "updates point uphill"


HEAD = lambda tree: jax.tree.map_with_path(lambda path, _: "head" in jax.tree_util.keystr(path), tree)


@pytest.mark.parametrize(
    ("tx", "is_uphill", "climbing"),
    [
        (optax.sgd(30.0), False, ()),  # too long an update turns the next gradient round, and is no climb
        (optax.sgd(0.5, momentum=0.99), False, ()),  # what goes on by its momentum climbs now and then
        (optax.sgd(-1e-3), True, ()),
        (optax.sgd(optax.linear_schedule(0, -1e-3, 9)), True, ()),
        (optax.chain(optax.adam(1e-3), optax.masked(optax.scale(-1.0), HEAD)), False, ("head/kernel",)),
    ],
    ids=["high", "momentum", "up", "warm-up", "a part"],
)
def test_an_update_is_compared_with_its_own_gradient(tx, is_uphill, climbing):
    found = Patient(work(), tx, 0, None)._first_updates()
    assert (found["uphill"] > 0.1, set(climbing) <= set(found["climbing"])) == (is_uphill, True)
    assert all(path.startswith("head") for path in found["climbing"]) if climbing else found["climbing"] == ()


def test_a_part_that_climbs_is_named_in_a_run_that_learns():
    model = ModelProbe(300, (LAYER,), 0.1, 0.7, uphill=-0.2, climbing=("head/kernel",))
    (found,) = examine(Evidence("made", {"step": T, "train/loss": np.exp(-T / 60)}, model=model))
    assert (found.name, found.severity) == ("updates point uphill", "ill")


@pytest.mark.parametrize(
    ("tx", "is_known"),
    [
        (optax.sgd(0.7), True),
        (optax.adam(optax.cosine_decay_schedule(1e-3, 9)), True),
        (optax.chain(optax.scale_by_adam(), optax.scale(-1e-3)), True),
        (optax.chain(optax.scale_by_adam(), optax.scale(-1.0)), False),
        (optax.scale_by_adam(), False),
        (optlab.sgd(0.7), True),
    ],
)
def test_whether_a_rate_is_known(tx, is_known):
    assert Patient(work(), tx, 0, None)._has_rate(Evidence("made", {"step": T})) == is_known


def test_a_head_that_is_said_to_be_hidden_is_still_a_head():
    workload = dataclasses.replace(work(), roles={"head/kernel": "matrix"})
    assert Patient(workload, optlab.muon(1e-3), 0, None)._orthogonalized() == ("head/kernel",)
    assert Patient(work(), optlab.muon(1e-3), 0, None)._orthogonalized() == ()


def test_matrices_that_became_others_and_know_no_more_than_a_guess_by_frequency():
    layers = [dataclasses.replace(LAYER, path=name, turned=0.9) for name in "ab"]
    fall = 0.69 + 0.6 * np.exp(-T / 60)
    metrics = {"step": T, "train/loss": fall, "validation/loss": fall}
    found = {}
    for turned in (0.9, 0.1):
        layers = [dataclasses.replace(LAYER, path=name, turned=turned) for name in "ab"]
        model = ModelProbe(300, tuple(layers), 0.69, 1.3, is_cross_entropy=True)
        found[turned] = [f.name for f in examine(Evidence("made", metrics, data=SOUND, model=model))]
    assert found == {0.9: ["learning rate too high"], 0.1: []}


def test_layers_that_a_collapse_left_behind_are_notes_beside_it():
    metrics = {"step": T, "train/loss": np.full(len(T), 2.3), "train/gradient_norm": 2 * np.exp(-T / 10) + 0.1}
    model = ModelProbe(300, (dataclasses.replace(LAYER, path="in", gradient=1e-9, is_input=True), LAYER), 2.3, 2.3)
    found = examine(Evidence("made", metrics, model=model))
    assert [(f.name, f.severity) for f in found] == [("learning rate too high", "ill"), ("vanished gradients", "note")]


def test_of_a_training_loss_that_is_gone_no_gradient_has_exploded():
    metrics = {"step": T, "train/loss": np.exp(-T / 30), "validation/loss": 1 + T / 900}
    model = ModelProbe(300, (dataclasses.replace(LAYER, gradient=1e3),), 0.1, 1.0)
    assert "exploded gradients" not in [f.name for f in examine(Evidence("made", metrics, model=model))]


def test_a_probe_compares_the_splits_themselves():
    metrics = {"step": T, "train/loss": np.exp(-T / 60), "validation/loss": 20 * np.exp(-T / 60) + 1}
    found = [[f.name for f in examine(Evidence("made", metrics, data=data))] for data in (None, SOUND)]
    assert ["splits differ" in names for names in found] == [True, False]
