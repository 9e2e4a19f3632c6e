"""What may change when a run is continued: every key says so, and rates and lengths have a rule of their own."""

from pathlib import Path

import pytest
from config.example import config

from optlab.config import Config, ConfigError, flatten, keys, override
from optlab.config._schema import _key
from optlab.experiment import kind_of_change, resolve
from optlab.runs import _changes

RUN = Path("runs/x")


def changes(run, before, after, allowed=()):
    return _changes.changes(run, before, after, kind_of_change, allowed)


def kinds(*assignments):
    """The kind of every key that the assignments change."""
    before = resolve(config())
    return {
        c.key: c.kind for c in changes(RUN, before, resolve(override(before, assignments)), allowed=list(keys(Config)))
    }


def test_a_key_that_does_not_say_what_its_change_means_can_not_be_made():
    with pytest.raises(TypeError, match="change"):
        _key("a new key", default=1)
    assert {about["change"] for _, about in keys(Config).values()} == {"fixed", "noted", "changeable"}
    resolved = resolve(config())
    assert {kind_of_change(key, resolved) for key in flatten(resolved)} == {"fixed", "noted", "changeable"}


@pytest.mark.parametrize(
    ("assignment", "kind"),
    [
        ("seed=1", "fixed"),
        ("model.widths=[16]", "fixed"),
        ("loss.label_smoothing=0.1", "fixed"),
        ("optimizer.beta=0.9", "fixed"),
        ("schedule.warmup=6", "fixed"),
        ("optimizer.learning_rate=0.1", "noted"),
        ("evaluate_every=5", "noted"),
        ("stop.patience=5", "noted"),
        ("log.every=5", "changeable"),
        ("checkpoint.keep=5", "changeable"),
    ],
)
def test_a_change_is_of_its_keys_kind(assignment, kind):
    assert kinds(assignment) == {assignment.partition("=")[0]: kind}


def test_a_part_of_the_optimizer_is_fixed_but_for_its_rate():
    found = kinds("optimizer.rest=adamw", "optimizer.rest.learning_rate=0.1", "optimizer.rest.b2=0.99")
    assert {key: kind for key, kind in found.items() if kind != "fixed"} == {"optimizer.rest.learning_rate": "noted"}
    assert {"optimizer.rest", "optimizer.rest.b2"} < found.keys()


def test_where_a_run_is_computed_may_change():
    assert set(kinds("strategy=jit", "mesh.data=4").values()) == {"changeable"}


def test_more_steps_are_noted_only_where_the_schedule_does_not_depend_on_them():
    assert kinds("steps=30") == {"steps": "fixed"}
    for schedule in ("constant", "inverse_sqrt"):
        assert kinds(f"schedule={schedule}", "steps=30")["steps"] == "noted"
    assert kinds("schedule=optax.linear_schedule", "schedule.end_value=0", "steps=30")["steps"] == "fixed"


def test_what_is_fixed_is_refused_with_both_values_unless_it_is_allowed():
    before = resolve(config())
    after = resolve(override(before, ["seed=3", "optimizer=adamw", "optimizer.learning_rate=0.1"]))
    with pytest.raises(ConfigError) as refused:
        changes(RUN, before, after)
    for part in (
        "seed (0 there, 3 here)",
        "optimizer ('muon' there, 'adamw' here)",
        "optimizer.beta (0.95 there, None here)",
        "go on all the same: allow_change=('optimizer', 'seed')",
    ):
        assert part in str(refused.value)
    assert "learning_rate" not in str(refused.value)
    with pytest.raises(ConfigError, match=r"^runs/x holds a run of another config: seed \(0 there, 3 here\); name"):
        changes(RUN, before, after, allowed=["optimizer"])
    assert {"seed", "optimizer", "optimizer.beta"} < {c.key for c in changes(RUN, before, after, ["optimizer", "seed"])}


def test_an_allowed_key_that_there_is_not_is_refused():
    before = resolve(config())
    with pytest.raises(ConfigError, match=r"unknown key 'sed' in allow_change; did you mean 'seed'\?"):
        changes(RUN, before, before, allowed=["sed"])
    assert changes(RUN, before, before, allowed=["stop", "optimizer.beta"]) == []
