"""The executor of a study's trials: measured where two of them work, once."""

import dataclasses
import json

import optax
import pytest

import optlab
from optlab.compare import choosing, log_uniform
from optlab.compare.choosing import BRANCHES, OPEN, decided, open_to, race
from optlab.compare.contenders import contend
from optlab.compare.plan import make_plan
from optlab.compare.study import make_study

from .cheap import tiny

PACES = {"series": 0.002, "population": 0.001}


def studied(contenders=("adamw", "sgd", "soap"), **settings):
    return make_study(contenders, tiny(), steps=10, trials=2, studies=2, **settings)


@pytest.fixture
def measured(monkeypatch):
    """The contenders that were measured; the program of all but soap is straight."""
    monkeypatch.setattr("optlab.compare.study.open_to", lambda w, c: (OPEN, BRANCHES if c.name == "soap" else ""))
    names = []

    def measure(study, name):
        names.append(name)
        return PACES

    return measure, names


def test_what_is_faster_is_taken_and_said(measured):
    found = decided(studied(), measured[0], None).executors
    assert found["sgd"] == ("population", "measured: 1 ms a step and trial side by side, 2 ms in turn")


def test_contenders_share_a_measurement_unless_their_steps_branch(measured):
    measure, names = measured
    decided(studied(), measure, None)
    assert names == ["adamw", "soap"]


def test_an_executor_that_was_asked_for_is_not_measured(measured):
    measure, names = measured
    assert set(decided(studied(executor="series"), measure, None).executors.values()) == {("series", "")}
    assert names == []


def test_what_was_measured_in_a_folder_holds_on_the_same_devices(measured, tmp_path, monkeypatch):
    measure, names = measured
    decided(studied(("adamw", "sgd")), measure, tmp_path)
    kept = json.loads((tmp_path / "executors.json").read_text())
    assert kept["seconds"] == {"adamw": PACES, "sgd": PACES}
    more = decided(studied(), measure, tmp_path)
    assert names == ["adamw", "soap"]
    assert {executor for executor, _ in more.executors.values()} == {"population"}
    monkeypatch.setattr(choosing, "_devices", lambda: "8 × another")
    decided(studied(), measure, tmp_path)
    assert names == ["adamw", "soap"] * 2


def test_a_plan_writes_nothing(measured, tmp_path, monkeypatch):
    monkeypatch.setattr("optlab.compare.plan.Here.paces", lambda self, study, name: PACES)
    monkeypatch.setattr("optlab.compare.plan._laps", lambda lap: (1.0, 1.0))
    assert "one program for many trials (measured: 1 ms a step and trial side" in str(make_plan(studied(), tmp_path))
    assert not list(tmp_path.iterdir())


def test_both_executors_are_raced_by_some_of_the_trainings_own_steps():
    contender = contend("mine", optlab.sgd, space=None, schedule=None, steps=6)
    paces, made = race(tiny(), contender, 3, 2)
    assert paces.keys() == made.keys() == {"series", "population"}
    assert all(0 < seconds < 1 for seconds in paces.values())


def test_a_factory_that_looks_at_its_values_is_trained_in_runs():
    def picky(learning_rate):
        return optax.sgd(learning_rate if learning_rate > 0 else 1.0)

    space = {"learning_rate": log_uniform(1e-3, 1e-1)}
    contender = contend("mine", picky, space=space, schedule=None, steps=6)
    executor, why = open_to(tiny(), contender)
    assert executor == "runs"
    assert why.startswith("it can't be traced: TracerBoolConversionError")
    assert open_to(tiny(), dataclasses.replace(contender, factory=optlab.sgd)) == (OPEN, "")


@pytest.mark.parametrize(("name", "how"), [("lion", ""), ("soap", BRANCHES)])
def test_all_kinds_of_ours_can_be_a_population(name, how):
    contender = contend(name, name, space=None, schedule=optlab.schedules.warmup_cosine, steps=20)
    assert open_to(tiny(), contender) == (OPEN, how)
