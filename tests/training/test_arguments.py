"""Arguments of `train` of another kind than it takes: each is named before anything is traced."""

import numpy as np
import optax
import pytest

from optlab.training import Workload, train

WRONG = [
    ({"workload": "digits"}, TypeError, "workload must be a Workload"),
    ({"tx": None}, TypeError, "tx must be an optax transformation"),
    ({"tx": "adam"}, TypeError, "tx must be an optax transformation"),
    ({"tx": optax.adam}, TypeError, r"call it, as adam\(learning_rate\)"),
    ({"steps": 1.5}, ValueError, "steps must be a whole number of at least 1, got 1.5"),
    ({"steps": True}, ValueError, "steps must be a whole number of at least 1, got True"),
    ({"steps": "3"}, ValueError, "steps must be a whole number"),
    ({"log_every": 2.5}, ValueError, "log_every must be a whole number"),
    ({"evaluate_every": "x"}, ValueError, "evaluate_every must be a whole number"),
    ({"evaluate_batches": 0}, ValueError, "evaluate_batches must be at least 1, got 0"),
    ({"skip_limit": None}, ValueError, "skip_limit must be a whole number"),
    ({"seed": True}, TypeError, "seed must be a whole number, got True"),
    ({"seed": 1.5}, TypeError, "seed must be a whole number"),
    ({"stop": {"patience": 3}}, TypeError, "stop must be an optlab.config.Stop"),
    ({"checkpoints": "runs/x"}, TypeError, r"checkpoints must be Checkpoints\(folder\)"),
    ({"observers": [3]}, TypeError, "observers must be observers, with begin"),
    ({"observers": 3}, TypeError, "observers must be a list"),
    ({"measure": [abs]}, TypeError, "measure must be Measures"),
    ({"measure": abs}, TypeError, "measure must be a list"),
    ({"allow_change": "seed"}, TypeError, r"allow_change must be a collection of keys"),
    ({"allow_change": ("sed",)}, ValueError, "allow_change has 'sed', which no run has; did you mean 'seed'"),
]


@pytest.mark.parametrize(
    ("wrong", "kind", "says"), WRONG, ids=[f"{k}-{i}" for i, (w, *_) in enumerate(WRONG) for k in w]
)
def test_they_are_named(wrong, kind, says):
    given = {"workload": Workload.digits(), "tx": optax.sgd(0.1), "steps": 2} | wrong
    with pytest.raises(kind, match=says):
        train(given.pop("workload"), given.pop("tx"), **given)


def test_numbers_may_be_numpys():
    history = train(Workload.digits(), optax.sgd(0.1), steps=np.int64(2), seed=np.int32(1), log_every=np.int64(1))
    assert history["train/loss"][0].tolist() == [1, 2]
    train(
        Workload.digits(), optax.sgd(0.1), steps=1, allow_change=("data.path", "target", "target.metric", "optimizer")
    )
