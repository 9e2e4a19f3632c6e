"""Components: found by name, held against signatures, filled in with what the run says by itself."""

import dataclasses
import json

import jax
import numpy as np
import optax
import pytest
from config.example import config
from flax import linen as nn
from flax import nnx

import optlab.optimizers
import optlab.theory.measures  # what uses jax.jit as a decorator is imported before it is taken away
import optlab.training  # noqa: F401
from optlab.compare import Comparison
from optlab.config import ConfigError, Target, component, flatten, load, override, to_json
from optlab.data import digits
from optlab.experiment import build, explain_keys, resolve


@pytest.mark.parametrize(
    ("assignments", "message"),
    [
        (["optimizer=adamv", "optimizer.learning_rate=1"], r"unknown .*'adamv'; did you mean 'adam' or 'adamw'\?"),
        (["optimizer.learning_rte=1"], r"unknown key 'optimizer.learning_rte' for optimizer=muon; did you mean"),
        (["optimizer=adamw"], "optimizer=adamw needs optimizer.learning_rate=…"),
        (["optimizer.learning_rate=fast"], "optimizer.learning_rate must be .*, got 'fast'"),
        (["optimizer.learning_rate=-1"], "optimizer.learning_rate must be at least 0, got -1"),
        (["schedule.peak=1"], "schedule.peak can't be set: it follows from optimizer.learning_rate"),
        (["schedule.steps=7"], "schedule.steps can't be set: it follows from steps"),
        (["schedule.warmup=30"], r"schedule=warmup_cosine: warmup must be .*30"),
        (["schedule=tail_average", "schedule.start=3"], "schedule=tail_average is no learning rate: it takes no peak"),
        (["schedule=cosin"], r"unknown schedule 'cosin'; did you mean 'cosine'\?"),
        (["model.outputs=5"], "model.outputs can't be set: it follows from the data"),
        (["model=mpl"], r"unknown model 'mpl'; did you mean 'mlp'\?"),
        (["model.widths=wide"], "model.widths must be .*, got 'wide'"),
        (["model=transformer"], "model=transformer needs vocabulary, which data=digits doesn't have"),
        (["model=vision_transformer", "model.heads=5"], r"heads must divide width .*got 5"),
        (["batch_size=100000"], "batch_size must be at most the 1297 training examples of data=digits, got 100000"),
        (["data=digitz"], r"unknown data 'digitz'; did you mean 'digits'\?"),
        (["data.pth=x"], "unknown key 'data.pth' for data=digits"),
        (["data=text", "data.path=/does/not/exist"], "data=text: .*does/not/exist"),
        (["data=cifar10", "data.path=/"], "give data.path='FOLDER'"),
        (["loss=cross_entropi"], r"unknown loss 'cross_entropi'; did you mean 'cross_entropy'\?"),
        (["loss.outputs=3"], "loss.outputs can't be set"),
        (
            ["metrics=[acuracy]", "target.metric=validation/loss"],
            r"unknown metrics 'acuracy'; did you mean 'accuracy'\?",
        ),
        (
            ["measure=[agreement]", "optimizer=sgd", "optimizer.learning_rate=0.1"],
            "measure=agreement can't be taken here",
        ),
        (["loss=squared_error"], r"don't fit together: ValueError: squared_error needs labels of the outputs' shape"),
        (
            ["schedule=constant", "schedule.warmup=30"],
            r"warmup must be shorter than steps \(20\), got 30",
        ),
        (["optimizer=optax.scale_by_adam"], "unknown optimizer 'optax.scale_by_adam'"),
        (["optimizer=clip", "optimizer.max_delta=1"], "unknown optimizer 'clip'"),
        (["loss=accuracy"], "unknown loss 'accuracy'"),
        (["loss.label_smoothing=1.5"], r"label_smoothing must lie in \[0, 1\), got 1.5"),
        (
            ["optimizer=optax.contrib.sophia", "optimizer.learning_rate=0.1"],
            "contrib.sophia can't move",
        ),
        (["optimizer.layout=foo"], "optimizer.layout must be a Layout or a function or none, got 'foo'"),
        (
            ["optimizer=adam", "optimizer.learning_rate=1", "optimizer.mu_dtype=foo"],
            "optimizer=adam: mu_dtype must be a floating-point dtype",
        ),
        (["optimizer=builtins:dict"], "must be a function with a signature"),
        ([f"data={__name__}:not_a_source"], "must return an optlab.data.Source, got int"),
        ([f"data={__name__}:breaks"], "breaks: no luck"),
        ([f"schedule={__name__}:not_a_schedule"], "must return a function of the step that gives a number"),
        (
            ["optimizer.lr=1"],
            r"unknown key 'optimizer.lr' .* did you mean 'optimizer.learning_rate'\?",
        ),
        (["optimizer=lbfgs"], "schedule=warmup_cosine has no learning rate to shape"),
        (["optimizer=no.such:thing"], "optimizer=no.such:thing can't be imported: ModuleNotFoundError"),
        (["optimizer=math:sqrtt"], "can't be imported: AttributeError"),
        (["strategy=jit", "batch_size=100"], r"batch_size must be a multiple of 8 .* got 100: say batch_size=104"),
        (["strategy=jit", "batch_size=120", "accumulate=2"], r"must be a multiple of 16 .*accumulate=2\), got 120"),
        (["strategy=fsdp", "mesh.data=16"], "mesh.data=16 times mesh.model=1 is more than the 8 devices"),
        (["strategy=jit", "mesh.model=3"], "mesh.model=3 must divide the 8 devices"),
        (["strategy=pmap", "batch_size=64", f"model={__name__}:normed"], "need an argument axis_name of its factory"),
        (["strategy=pmap", "batch_size=64", f"model={__name__}:normed_nnx"], "normed_nnx has running statistics"),
        (["optimizer.axis_name=data"], "optimizer.axis_name can't be set: it follows from the strategy"),
    ],
)
def test_a_mistake_is_named_before_anything_compiles(assignments, message, monkeypatch):
    monkeypatch.setattr(jax, "jit", None)
    with pytest.raises(ConfigError, match=message) as error:
        build(override(config(), assignments))
    assert str(error.value).count("\n") <= 1


class Normed(nn.Module):
    @nn.compact
    def __call__(self, x, train):
        return nn.BatchNorm(use_running_average=not train)(nn.Dense(10)(x.reshape(len(x), -1)))


def normed():
    return Normed()


def normed_nnx():
    """The inputs' own statistics."""

    class Model(nnx.Module):
        def __init__(self, rngs):
            self.norm, self.linear = nnx.BatchNorm(64, rngs=rngs), nnx.Linear(64, 10, rngs=rngs)

        def __call__(self, x):
            return self.linear(self.norm(x.reshape(len(x), -1)))

    return Model


def not_a_source():
    return 3


def breaks():
    raise RuntimeError("no luck")


def not_a_schedule(peak):
    return peak


def unheld():
    return dataclasses.replace(digits(), validation=None)


def test_without_a_validation_split_its_target_is_refused():
    data = component(f"{__name__}:unheld")
    with pytest.raises(ConfigError, match=r"isn't measured: data=.* has no validation split"):
        build(config(data=data, target=Target(metric="validation/accuracy", mode="max")))
    assert build(config(data=data)).workload.data.validation is None


def test_a_name_may_look_like_a_value():
    resolved = flatten(resolve(override(config(), ["model.norm=none", "data=text", "data.path=2024"])))
    assert resolved["model.norm"] == "none"
    assert resolved["data.path"] == "2024"


def test_names_are_checked_before_data_is_looked_for():
    with pytest.raises(ConfigError, match=r"unknown key 'optimizer.lr'"):
        build(override(config(), ["data=cifar10", "data.path=/no/such", "optimizer.lr=1"]))


def make_rule(learning_rate, *, scale: float = 1.0):
    return optax.sgd(learning_rate, momentum=scale)


def not_a_rule(learning_rate):
    return learning_rate


@pytest.mark.parametrize(
    "name", ["adamw", "optax.adamw", "optax.contrib.schedule_free_adamw", "nadam", f"{__name__}:make_rule"]
)
def test_optimizers_come_from_optlab_optax_and_users(name):
    schedule = component("constant" if "schedule_free" in name else "warmup_cosine")
    experiment = build(config(optimizer=component(name, learning_rate=0.1), schedule=schedule))
    assert isinstance(experiment.tx, optax.GradientTransformation)


def test_the_schedule_shapes_every_learning_rate():
    rest = component("adamw", learning_rate=0.001)
    built = build(config(optimizer=component("muon", learning_rate=0.02, rest=rest)))
    assert {name: float(f(5)) for name, f in built.schedules.items()} == pytest.approx(
        {"learning_rate": 0.02, "rest.learning_rate": 0.001}
    )
    assert float(built.schedules["learning_rate"](20)) == pytest.approx(0, abs=1e-8)


PARTS = ["optimizer.rest=adamw", "optimizer.rest.b2=0.5", "optimizer.orthogonalizer=orthogonalize"]
PARTS += ["optimizer.orthogonalizer.method=polar_express"]


def test_an_optimizers_parts_are_components_too(tmp_path):
    """On the command line, in Python, in config.json, and overridden from there."""
    muon = config(optimizer=component("muon", learning_rate=0.02))
    nested = component(
        "muon",
        learning_rate=0.02,
        rest=component("adamw", b2=0.5),
        orthogonalizer=component("orthogonalize", method="polar_express"),
    )
    resolved = resolve(override(muon, PARTS))
    assert flatten(resolved) == flatten(resolve(config(optimizer=nested)))
    said = flatten(resolved)
    assert (said["optimizer.rest"], said["optimizer.rest.b2"], said["optimizer.rest.b1"]) == ("adamw", 0.5, 0.9)
    assert "optimizer.rest.learning_rate" not in said
    (tmp_path / "config.json").write_text(json.dumps({"config": to_json(resolved)}))
    again = load(tmp_path / "config.json")
    assert flatten(resolve(again)) == said
    changed = flatten(resolve(override(again, ["optimizer.rest=adamw", "optimizer.rest.b1=0.8", "steps=7"])))
    assert changed == {**said, "optimizer.rest.b1": 0.8, "steps": 7}
    assert flatten(resolve(override(again, ["optimizer.rest=lion"])))["optimizer.rest.b2"] == 0.99
    keys = {key: (kind, text) for key, _, kind, text in explain_keys(resolved)}
    assert keys["optimizer.rest.b2"] == ("a number", "decay of the average of squared gradients (β₂), in [0, 1).")
    assert keys["optimizer.rest"][0] == "name"


def test_what_moves_the_rest_has_the_optimizers_rate_unless_it_says_its_own():
    params = {"dense": {"kernel": jax.numpy.ones((3, 4)), "bias": jax.numpy.ones(4)}}
    for assignments, expected in ((PARTS, 0.02), ([*PARTS, "optimizer.rest.learning_rate=0.5"], 0.5)):
        start = config(optimizer=component("muon", learning_rate=0.02), schedule=component("constant"))
        tx = build(override(start, [*assignments, "optimizer.rest.weight_decay=0"])).tx
        update, _ = tx.update(params, tx.init(params), params)
        np.testing.assert_allclose(update["dense"]["bias"], -expected, rtol=1e-5)


def test_under_pmap_the_part_is_told_the_axis():
    for assignments in ([], PARTS):
        start = config(optimizer=component("muon", learning_rate=0.02), strategy="pmap", batch_size=64)
        tx = build(override(start, assignments)).tx
        params = {"dense": {"kernel": jax.numpy.ones((3, 4))}}
        with pytest.raises(ValueError, match="axis_name='data' is no mapped axis here"):
            tx.update(params, tx.init(params), params)


@pytest.mark.parametrize(
    ("assignments", "message"),
    [
        (
            ["optimizer.rest.b2=0.9"],
            r"rest.b2 says an argument of a part that isn't named: say optimizer.rest=NAME too",
        ),
        (["optimizer.rest=adamww"], r"unknown part 'adamww'; did you mean 'adamw'\?"),
        (
            ["optimizer.rest=adamw", "optimizer.rest.b3=1"],
            r"unknown key 'optimizer.rest.b3' .* did you mean 'optimizer.r",
        ),
        (["optimizer.rest=adamw", "optimizer.rest.b2=x"], "optimizer.rest.b2 must be a number, got 'x'"),
        (["optimizer.rest=adamw", "optimizer.rest.b2=2"], r"optimizer.rest=adamw: b2 must lie in \[0, 1\), got 2"),
        (["optimizer.rest=3"], "optimizer.rest must be GradientTransformation or none, got 3"),
        (["optimizer.beta.b2=0.9"], "unknown key 'optimizer.beta.b2'"),
        (
            ["optimizer.orthogonalizer=orthogonalize", "optimizer.orthogonalizer.axis_name=x"],
            "follows from the strategy",
        ),
    ],
)
def test_a_mistake_in_a_part_is_named(assignments, message):
    with pytest.raises(ConfigError, match=message):
        build(override(config(optimizer=component("muon", learning_rate=0.02)), assignments))


def test_a_constant_schedule_keeps_the_number_but_not_when_it_warms_up():
    flat, warm = (
        build(config(optimizer=component("sgd", learning_rate=1.0), schedule=component("constant", **arguments)))
        for arguments in ({}, {"warmup": 10})
    )
    params = {"w": jax.numpy.zeros(2)}
    sizes = [float(b.tx.update({"w": jax.numpy.ones(2)}, b.tx.init(params), params)[0]["w"][0]) for b in (flat, warm)]
    assert sizes[0] == -1.0
    assert -0.2 < sizes[1] <= 0.0


def test_a_users_function_that_returns_no_transformation_is_named():
    with pytest.raises(ConfigError, match=r"must return an optax.GradientTransformation, got function"):
        build(config(optimizer=component(f"{__name__}:not_a_rule", learning_rate=1.0)))


@pytest.mark.parametrize(
    ("schedule", "at_peak"),
    [
        (component("optax.cosine_decay_schedule"), 0),
        (component("optax.warmup_cosine_decay_schedule", init_value=0.0, warmup_steps=5), 5),
        (component("linear_schedule", end_value=0.0), 0),
    ],
)
def test_optaxs_schedules_are_filled_in_too(schedule, at_peak):
    f = build(config(schedule=schedule)).schedules["learning_rate"]
    assert float(f(at_peak)) == pytest.approx(3e-3)
    assert float(f(20)) == pytest.approx(0, abs=1e-9)
    name = "transition_steps" if "linear" in schedule.name else "decay_steps"
    with pytest.raises(ConfigError, match="can't be set: it follows from steps"):
        resolve(config(schedule=component(schedule.name, **{**schedule.arguments, name: 7})))


def test_what_json_cannot_hold_is_named():
    with pytest.raises(ConfigError, match=r"optimizer.mask can't be written to config.json"):
        resolve(config(optimizer=component("optax.adamw", learning_rate=1.0, mask=lambda p: p)))


def test_resolving_fills_in_every_default_and_survives_json(tmp_path):
    resolved = resolve(config())
    assert flatten(resolved)["optimizer.weight_decay"] == 0.1
    assert flatten(resolved)["model.activation"] == "relu"
    path = tmp_path / "config.json"
    path.write_text(json.dumps({"config": to_json(resolved)}))
    again = load(path)
    assert to_json(again) == to_json(resolved)
    assert to_json(resolve(again)) == to_json(resolved)


def test_every_key_is_explained():
    rows = explain_keys(resolve(config()))
    assert {key for key, *_ in rows} >= {"optimizer", "optimizer.learning_rate", "log.every", "data", "model.widths"}
    unexplained = [key for key, _, kind, meaning in rows if not meaning or not kind]
    assert not unexplained


def test_clipping_stands_before_the_optimizer():
    tx = build(config(clip_norm=1.0, optimizer=component("sgd", learning_rate=1.0), schedule=component("constant"))).tx
    updates, _ = tx.update(
        {"w": jax.numpy.full(4, 10.0)}, tx.init({"w": jax.numpy.zeros(4)}), {"w": jax.numpy.zeros(4)}
    )
    assert float(optax.tree.norm(updates)) == pytest.approx(1.0)


def test_entries_are_cut_before_the_norm_is():
    settings = {"optimizer": component("sgd", learning_rate=1.0), "schedule": component("constant")}
    zero = {"w": jax.numpy.zeros(2)}

    def moved(**clips):
        tx = build(config(**settings, **clips)).tx
        return np.asarray(tx.update({"w": jax.numpy.array([3.0, -40.0])}, tx.init(zero), zero)[0]["w"])

    np.testing.assert_allclose(moved(clip_value=4.0), [-3, 4])
    np.testing.assert_allclose(moved(clip_value=4.0, clip_norm=1.0), [-0.6, 0.8], rtol=1e-6)
    with pytest.raises(ConfigError, match="clip_value must be above 0, got 0; to do without it, say clip_value=none"):
        config(clip_value=0)


def test_a_config_says_how_weights_are_averaged_and_batches_drawn():
    assert build(config()).settings.ema is None
    assert build(config(ema=0.9)).settings.ema == 0.9
    average = build(config(average_from=3)).settings.ema
    assert [float(average(t)) for t in (2, 3, 5)] == pytest.approx([0, 0, 2 / 3])
    with pytest.raises(ConfigError, match=r"ema=0\.9 and average_from=3 are two averages: say one of them"):
        config(ema=0.9, average_from=3)
    with pytest.raises(ConfigError, match=r"average_from must be below steps \(20\), got 20"):
        config(steps=20, average_from=20)
    assert build(config(draw="replacement")).workload.draw == "replacement"
    with pytest.raises(
        ConfigError, match=r"under draw=stream, which shows each of the .* examples of data=digits once"
    ):
        build(config(draw="stream", steps=10_000))


def test_configs_in_the_repository_are_right():
    from pathlib import Path

    for path in sorted((Path(__file__).parents[1] / "configs").glob("*.py")):
        if path.stem.startswith(("compare_", "assignment_")):
            assert resolve(override(load(path, Comparison).baseline, ["optimizer.learning_rate=1"])).steps > 0, path
            continue
        found = load(path)
        assert resolve(found).steps == found.steps, path
        assert dataclasses.is_dataclass(found)


@pytest.mark.slow
def test_under_pmap_the_model_and_the_optimizer_know_the_axis():
    """BatchNorm's statistics are the whole batch's, and each device orthogonalizes its share."""
    keys = ["strategy=pmap", "model=resnet20", "optimizer=muon"]
    experiment = build(override(config(), [*keys, "optimizer.learning_rate=0.01", "batch_size=16", "mesh.data=2"]))
    from optlab.training import init_state, make_step, parallelize

    step = make_step(experiment.workload.loss, experiment.tx, axis_name="data")
    place_state, place_batch, _ = parallelize(step, "pmap", experiment.mesh)
    make = lambda key: init_state(*experiment.workload.init(key), experiment.tx, key=key)
    state, batch = place_state(make, jax.random.key(0)), place_batch(experiment.workload.data.train.take(np.arange(16)))
    parts = jax.tree.map(lambda x: x.reshape(2, 8, *x.shape[1:]), batch)
    program = str(jax.make_jaxpr(jax.pmap(step, axis_name="data", in_axes=(None, 0), out_axes=None))(state, parts))
    assert "all_gather" in program  # of the orthogonalized shares
    assert program.count("psum") > len(jax.tree.leaves(state.params))  # gradients, and BatchNorm's means


@pytest.mark.slow
def test_under_pmap_a_rule_that_divides_its_work_moves_the_parameters_as_on_one_device():
    from optlab.training import init_state, make_step, parallelize

    def after_a_step(strategy):
        keys = [f"strategy={strategy}", "model.widths=[16,16,16]", "optimizer=muon", "batch_size=16"]
        experiment = build(override(config(), [*keys, "optimizer.learning_rate=0.01"]))
        workload, tx = experiment.workload, experiment.tx
        step = make_step(workload.loss, tx, axis_name="data" if strategy == "pmap" else None)
        place_state, place_batch, run = parallelize(step, strategy, experiment.mesh)
        state = place_state(lambda key: init_state(*workload.init(key), tx, key=key), jax.random.key(0))
        return run(state, place_batch(workload.data.train.take(np.arange(16))))[0].params

    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=2e-6), *map(after_a_step, ("pmap", "single")))
