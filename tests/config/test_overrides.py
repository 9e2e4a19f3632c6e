"""Overrides: typed, swapped before set, and every mistake answered with the nearest right key."""

import pytest
from example import config
from hypothesis import given
from hypothesis import strategies as st

from optlab.config import Config, ConfigError, Stop, Target, component, flatten, override, slug
from optlab.config._values import parse


@pytest.mark.parametrize(
    ("assignment", "key", "value"),
    [
        ("steps=500", "steps", 500),
        ("optimizer.learning_rate=1e-3", "optimizer.learning_rate", 1e-3),
        ("optimizer.decay_roles=[matrix, conv]", "optimizer.decay_roles", ["matrix", "conv"]),
        ("optimizer.nesterov=false", "optimizer.nesterov", False),
        ("model.widths=[64,[1,2]]", "model.widths", [64, [1, 2]]),
        ("data.path=/tmp/x=y", "data.path", "/tmp/x=y"),
        ("data.path='12'", "data.path", "12"),
        ("ema=0.99", "ema", 0.99),
        ("ema=none", "ema", None),
        ("metrics=[]", "metrics", ()),
        ("metrics=[accuracy]", "metrics", ("accuracy",)),
        ("target.metric=validation/accuracy", "target.metric", "validation/accuracy"),
        ("log.tensorboard=false", "log.tensorboard", False),
        ("clip_norm=1", "clip_norm", 1),
        ("init_from=runs/none", "init_from", "runs/none"),
    ],
)
def test_a_value_is_read_as_its_type(assignment, key, value):
    assert flatten(override(config(), [assignment]))[key] == value


def test_swapping_a_component_drops_the_old_arguments_whatever_the_order():
    for assignments in (["optimizer=adamw", "optimizer.b1=0.8"], ["optimizer.b1=0.8", "optimizer=adamw"]):
        assert override(config(), assignments).optimizer == component("adamw", b1=0.8)
    assert override(config(), ["optimizer=muon"]).optimizer == config().optimizer


def test_a_config_is_not_changed():
    before = config()
    override(before, ["optimizer.learning_rate=1", "stop.patience=2"])
    assert before == config()


@pytest.mark.parametrize(
    ("assignment", "message"),
    [
        ("stepz=5", r"unknown key 'stepz'; did you mean 'steps'\?"),
        ("optimzer.learning_rate=1", r"did you mean 'optimizer.learning_rate'\?"),
        ("log.evry=5", r"unknown key 'log.evry'; did you mean 'log.every'\?"),
        ("log.zzz=5", r"there are log.every, log.tensorboard, log.wandb"),
        ("steps.x=5", "steps has no parts"),
        ("log=5", "log is a group of keys; set one of log.every"),
        ("steps=abc", "steps must be an integer, got 'abc'"),
        ("steps=1.5", "steps must be an integer, got '1.5'"),
        ("steps=true", "steps must be an integer"),
        ("steps=-5", "steps must be at least 1, got -5"),
        ("batch_size=0", "batch_size must be at least 1, got 0"),
        ("accumulate=3", r"accumulate must divide batch_size \(128\), got 3"),
        ("ema=1", r"ema must lie in \[0, 1\), got 1"),
        ("clip_norm=nan", "clip_norm must be a number or none, got 'nan'"),
        ("clip_norm=0", "clip_norm must be above 0, got 0; to do without it, say clip_norm=none"),
        ("target.mode=best", "target.mode must be 'min' or 'max', got 'best'"),
        ("target.metric=validation/acuracy", r"target.metric.*did you mean 'validation/accuracy'\?"),
        ("log.tensorboard=maybe", "log.tensorboard must be true or false, got 'maybe'"),
        ("metrics=accuracy", "metrics must be a list of strings, got 'accuracy'"),
        ("steps", "an override must read key=value, got 'steps'"),
        ("seed=4294967296", "seed must lie in"),
        ("init_from=", "init_from= says no value; for none say init_from=none"),
        ("stop.min_gain=0.5", "stop.min_gain=0.5 has no effect without stop.patience"),
        ("strategy=pmapp", "strategy must be"),
        ("mesh.data=4", "mesh.data=4 and mesh.model=1 need strategy=jit"),
        ("mesh.model=0", "mesh.model must be at least 1, got 0"),
        ("guard=go", "guard must be 'stop' or 'skip' or none, got 'go'"),
        ("stop.min_gain=-1", "stop.min_gain must be at least 0, got -1"),
    ],
)
def test_a_mistake_is_named(assignment, message):
    with pytest.raises(ConfigError, match=message) as error:
        override(config(), [assignment])
    assert "\n" not in str(error.value)


def test_a_key_said_twice_is_refused():
    with pytest.raises(ConfigError, match="steps is said twice: '5' and '6'"):
        override(config(), ["steps=5", "steps=6"])


def test_what_python_says_wrong_is_refused_too():
    with pytest.raises(ConfigError, match="optimizer must be a Component, got 'adamw'"):
        config(optimizer="adamw")
    with pytest.raises(ConfigError, match="stop must be a Stop"):
        config(stop=5)


@given(st.one_of(st.integers(), st.floats(allow_nan=False, allow_infinity=False), st.booleans(), st.none()))
def test_plain_values_survive_the_command_line(value):
    text = "none" if value is None else repr(value).lower() if isinstance(value, bool) else repr(value)
    assert parse(text) == value


@pytest.mark.parametrize(("mode", "better", "worse"), [("min", 1.0, 3.0), ("max", 3.0, 1.0)])
def test_a_target_knows_better_from_worse(mode, better, worse):
    target = Target(mode=mode, value=2.0)
    assert target.gain(better, worse) > 0 > target.gain(worse, better)
    assert target.gain(worse, None) > 0 > target.gain(float("nan"), None)
    assert target.reached(better)
    assert target.reached(2.0)
    assert not target.reached(worse)
    assert not target.reached(float("nan"))
    assert not Target(mode=mode).reached(better)


def test_a_files_warmup_shrinks_with_the_run(capsys):
    """`steps=20` works whatever the file's warm-up; one that the command line says itself is refused later."""
    long = Config(
        data=component("digits"), model=component("mlp"), optimizer=component("sgd"), steps=300,
        schedule=component("warmup_cosine", warmup=100),
    )  # fmt: skip
    assert override(long, ["steps=20"]).schedule.arguments == {"warmup": 2}
    assert capsys.readouterr().err.startswith("optlab: schedule.warmup=100 is longer than the run: it is 2, a tenth")
    assert override(long, ["steps=101"]).schedule.arguments == {"warmup": 100}
    assert override(long, ["steps=20", "schedule.warmup=100"]).schedule.arguments == {"warmup": 100}
    assert capsys.readouterr().err == ""


def test_measurements_are_made_in_a_short_run_too(capsys):
    some = Config(data=component("digits"), model=component("mlp"), optimizer=component("sgd"), steps=300)
    assert override(some, ["steps=20"]).measure_every == 50
    assert override(some, ["steps=20", "measure=[norms]"]).measure_every == 2
    assert capsys.readouterr().err == "optlab: measure_every=50 is longer than the run: it is 2, a tenth of it\n"
    assert override(some, ["steps=50", "measure=[norms]"]).measure_every == 50
    assert override(some, ["steps=20", "measure=[norms]", "measure_every=50"]).measure_every == 50


def test_a_folder_is_named_by_config_and_overrides():
    assert slug("configs/digits.py", []) == "digits"
    assert slug("configs/digits.py", ["steps=5", "optimizer=adamw"]) == "digits-optimizer=adamw-steps=5"
    assert slug(
        "a.py", ["log.every=5", "accumulate=2", "strategy=jit", "optimizer.learning_rate=1", "optimizer=lion"]
    ) == ("a-optimizer=lion-optimizer.learning_rate=1-accumulate=2")
    assert slug("runs/digits/config.json", []) == "digits-again"
    assert "/" not in slug("a.py", ["data.path=/x/y z"])
    long = [f"model.widths=[{n}]" for n in range(50)]
    assert len(slug("a.py", long)) < 128
    assert slug("a.py", long) != slug("a.py", long[:-1])


def test_stop_defaults_never_stop():
    assert Stop() == Stop(patience=None, min_gain=0.0, gradient_norm=None)
