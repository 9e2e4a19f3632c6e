"""Twins of a run: what they compute is what training computes, and what their difference says."""

import dataclasses

import numpy as np
import optax
import pytest

import optlab
from optlab.data import evaluation_batches
from optlab.diagnosis import Evidence, examine
from optlab.diagnosis._rules_of_twins import Twins
from optlab.examination._patient import Patient
from optlab.examination._twins import raise_twins
from optlab.training import Workload, make_evaluation, train

T = np.arange(5, 305, 5)
FLAT = {"step": T, "train/loss": np.full(len(T), 2.0), "learning_rate": np.ones(len(T))}
SAME = Twins(0, 30, 2.0, 1.9, 1.9, 1.9, 1.91, 1.9, 2.0)


@pytest.mark.parametrize(
    ("change", "name"),
    [
        ({"double": 1.8, "half": 1.95}, "learning rate too low"),
        ({"half": 1.5, "double": 3.0}, "learning rate too high"),
        ({"same": np.nan, "seed": np.nan, "half": 1.9, "double": np.inf}, "learning rate too high"),
        ({"batch": 1.5}, "noisy"),
        ({"seed": np.nan}, "depends on the seed"),
        ({"double": 1.89}, None),  # within what another seed changes
        ({"double": 1.8, "seed": 1.5}, None),
        ({}, None),
    ],
)
def test_the_difference_of_twins_names_what_no_rule_can(change, name):
    found = examine(Evidence("made", FLAT, twins=dataclasses.replace(SAME, **change)))
    assert [f.name for f in found if f.is_cause] == [name] * (name is not None)


def test_twins_of_a_run_that_learns_are_notes():
    fall = {**FLAT, "train/loss": 2 * np.exp(-T / 60)}
    faster = dataclasses.replace(SAME, double=1.5)
    (found,) = examine(Evidence("made", fall, twins=dataclasses.replace(faster, start=100)))
    assert (found.name, found.severity) == ("learning rate too low", "note")
    # In the first steps of a run, a rate that is too high later is ahead.
    assert examine(Evidence("made", fall, twins=dataclasses.replace(faster, start=0))) == ()


@pytest.mark.slow
def test_twins_are_what_training_at_those_settings_is():
    workload = Workload.digits()
    twins = raise_twins(Patient(workload, optlab.adamw(1e-3), 3, None), 100)
    batch = next(evaluation_batches(workload.data.validation, 1024))

    def trained(rate, seed=3):
        state = train(workload, optlab.adamw(rate), steps=10, seed=seed, log_every=10).state
        total, weight = make_evaluation(workload.loss)(state.params, state.model_state, batch, state.key)["loss"]
        return float(total / weight)

    assert (twins.start, twins.steps) == (0, 10)
    found = [twins.same, twins.half, twins.double, twins.seed]
    assert found == pytest.approx([trained(1e-3), trained(5e-4), trained(2e-3), trained(1e-3, seed=4)], rel=1e-4)


def test_a_run_that_is_far_too_slow_is_named_by_its_twins():
    workload, tx = Workload.digits(), optax.sgd(1e-4)
    history = train(workload, tx, steps=60, log_every=5)
    found = optlab.diagnose(history, twins=True, workload=workload, tx=tx)
    assert found.findings[0].name == "learning rate too low"
    assert "at double to" in found.findings[0].because
