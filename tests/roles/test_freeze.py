"""`freeze`: what is frozen has no update and no state, whatever moves the rest; in a config likewise."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import optlab
from optlab.commands import main
from optlab.config import load, override
from optlab.experiment import build
from optlab.runs import Run

PARAMS = {name: {"kernel": jnp.ones((4, 4)), "bias": jnp.ones(4)} for name in ("hidden_0", "hidden_1", "head")}


@pytest.mark.parametrize(
    "tx",
    [
        optlab.adamw(0.1),
        optlab.muon(0.1, weight_decay=0.1),
        optax.chain(optax.clip_by_global_norm(1.0), optlab.lion(0.1)),
    ],
    ids=["adamw", "muon", "chain"],
)
def test_the_others_move_as_if_it_were_not_there(tx):
    rest = {name: PARAMS[name] for name in ("hidden_1", "head")}
    frozen = optlab.freeze(tx, ["hidden_0/*"])
    updates, state = frozen.update(PARAMS, frozen.init(PARAMS), PARAMS)
    alone, _ = tx.update(rest, tx.init(rest), rest)
    assert not any(map(np.any, jax.tree.leaves(updates["hidden_0"])))
    assert jax.tree.all(jax.tree.map(np.array_equal, {name: updates[name] for name in rest}, alone))
    assert len(jax.tree.leaves(state)) == len(jax.tree.leaves(tx.init(rest)))


@pytest.mark.parametrize(
    ("patterns", "message"),
    [
        ("hidden_0/*", r"patterns must be a list of paths, such as \['hidden_0/\*'\], got 'hidden_0/\*'"),
        (
            ["hiden_0/kernel"],
            "freeze: 'hiden_0/kernel' matches no parameter: the nearest path is 'hidden_0/kernel'",
        ),
    ],
)
def test_a_pattern_that_is_none_is_refused(patterns, message):
    with pytest.raises(ValueError, match=message):
        optlab.freeze(optlab.sgd(0.1), patterns).init(PARAMS)


CONFIG = """
from optlab.config import Config, component

def get_config():
    return Config(
        data=component("digits"),
        model=component("mlp", widths=[4, 4]),
        optimizer=component("muon", learning_rate=0.05),
        steps=2,
    )
"""


@pytest.fixture
def config(tmp_path, monkeypatch):
    (tmp_path / "small.py").write_text(CONFIG)
    monkeypatch.chdir(tmp_path)


def test_a_config_says_roles_and_what_is_frozen(config, capsys):
    words = ["roles.hidden_?/kernel=head", "freeze=[hidden_0/*]"]
    experiment = build(override(load("small.py"), words))
    layout = experiment.workload.layout()
    assert [layout[f"{name}/kernel"].role for name in ("hidden_0", "hidden_1", "head")] == ["head"] * 3
    before = experiment.workload.init(jax.random.split(jax.random.key(0))[1])[0]
    assert main(["train", "small.py", *words, "--run", "mine"]) == 0
    after = Run("mine").params()
    same = jax.tree.map(lambda a, b: np.array_equal(a, b), before, after)
    assert same["hidden_0"] == {"bias": True, "kernel": True}
    assert not any(jax.tree.leaves((same["hidden_1"], same["head"])))
    capsys.readouterr()
    assert main(["show", "small.py", *words]) == 0
    shown = capsys.readouterr().out
    assert "{hidden_?/kernel: head}" in shown
    assert "[hidden_0/*]" in shown


@pytest.mark.parametrize(
    ("word", "message"),
    [
        ("roles=head", "roles is said by name, as roles.PATTERN=head"),
        (
            "roles.hidden_0/kernel=haed",
            "optlab: roles: hidden_0/kernel has the role 'haed', which no rule knows: did you mean 'head'?",
        ),
        ("roles.hiden_0/kernel=head", "the nearest path is 'hidden_0/kernel'"),
        (
            "optimizer=adamw optimizer.learning_rate=0.1 roles.hiden_0/kernel=head",
            "optlab: roles: 'hiden_0/kernel' matches no parameter",
        ),
        ("optimizer=adamw optimizer.learning_rate=0.1 roles.hidden_0/kernel=haed", "did you mean 'head'?"),
        ("freeze=hidden_0/*", "freeze must be a list of strings, got 'hidden_0/*': say freeze=[hidden_0/*]"),
        ("freeze=[hidden_9/*]", "optlab: freeze: 'hidden_9/*' matches no parameter"),
    ],
)
def test_a_wrong_one_is_one_line(config, capsys, word, message):
    assert main(["explain", "small.py", *word.split()]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert len(error.splitlines()) == 1
