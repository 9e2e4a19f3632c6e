"""Populations: the numbers of ordinary runs, whatever happens to the neighbours."""

import dataclasses
import functools

import jax
import numpy as np
import pytest
from flax import linen as nn

import optlab
from optlab.compare import choice, log_uniform
from optlab.compare import population as module
from optlab.compare.choosing import open_to
from optlab.compare.contenders import contend
from optlab.compare.population import Population, static_values
from optlab.compare.runs import Runs
from optlab.compare.trials import Trial
from optlab.data import arrays
from optlab.training import Workload

from .cheap import tiny

STEPS = 12
ONE = jax.devices()[:1]


def both(workload, contender, trials):
    """The results of a population and of runs, by id."""
    return (
        {r.trial.id: r for part in make(workload, contender, 6, len(trials))(trials) for r in part}
        for make in (functools.partial(Population, devices=ONE), Runs)
    )


def trials_of(points, is_final=False):
    return [Trial("mine", 0, i, 0, is_final, values, seed=10 + i) for i, values in enumerate(points)]


def assert_alike(a, b, tolerance=1e-5):
    assert a.keys() == b.keys()
    for id in a:
        assert (a[id].diverged is None) == (b[id].diverged is None)
        assert a[id].curve.keys() == b[id].curve.keys()
        for name in a[id].curve:
            np.testing.assert_allclose(a[id].curve[name], b[id].curve[name], rtol=tolerance, atol=tolerance)
        assert a[id].test.keys() == b[id].test.keys()
        for name in a[id].test:
            np.testing.assert_allclose(a[id].test[name], b[id].test[name], rtol=tolerance, atol=tolerance)


@pytest.mark.slow
def test_a_population_and_runs_of_the_digits_mlp_are_alike():
    workload = Workload.digits()
    contender = contend("mine", optlab.adamw, space=None, schedule=optlab.schedules.warmup_cosine, steps=STEPS)
    trials = [Trial("mine", 0, 0, 0, False, {"learning_rate": 1e-3}, 3), Trial("mine", 0, 1, 0, True,
              {"learning_rate": 3e-3}, 4)]  # fmt: skip
    population, runs = both(workload, contender, trials)
    assert_alike(population, runs)
    assert population[trials[0].id].curve["step"] == [6, 12]
    assert all(r.pace > 0 for found in (population, runs) for r in found.values())
    assert population[trials[0].id].test == {}  # a search never sees the test split
    assert population[trials[1].id].test.keys() == {"test/loss", "test/accuracy"}


def test_a_trial_that_diverges_disturbs_nobody_and_says_what_a_run_says():
    workload, space = tiny(), {"learning_rate": log_uniform(1e-3, 1e38)}
    contender = contend("mine", optlab.sgd, space=space, schedule=None, steps=STEPS)
    trials = trials_of([{"learning_rate": 0.1}, {"learning_rate": 1e38}])
    population, runs = both(workload, contender, trials)
    assert_alike(population, runs)
    assert_alike(
        population,
        {r.trial.id: r for [r] in Population(workload, contender, 6, 2, is_stacked=False, devices=ONE)(trials)},
    )
    lost = population[trials[1].id]
    assert lost.diverged == runs[trials[1].id].diverged
    assert lost.diverged.startswith("step ")
    assert lost.curve["step"] == []


def test_what_is_not_a_number_is_compiled_for():
    space = {"learning_rate": choice(0.1, 0.2), "nesterov": choice(True, False), "momentum": choice(0.9)}
    contender = contend("mine", optlab.sgd, space=space, schedule=None, steps=6)
    points = [{"learning_rate": r, "nesterov": n, "momentum": 0.9} for r in (0.1, 0.2) for n in (True, False)]
    assert [static_values(contender, p) for p in points] == [{"nesterov": p["nesterov"]} for p in points]


@dataclasses.dataclass(frozen=True, eq=False)
class Moved:
    """A split whose examples are moved at random in training, as augmentation does."""

    split: object

    def __len__(self):
        return len(self.split)

    def take(self, indices, epoch=None, seed=0):
        batch = self.split.take(indices)
        if epoch is None:
            return batch
        moves = [np.random.default_rng((seed, epoch, int(i))).normal(size=2) for i in indices]
        return {**batch, "inputs": batch["inputs"] + np.asarray(moves, np.float32)}


def test_augmented_data_are_those_of_a_run_fed_piece_by_piece(monkeypatch):
    monkeypatch.setattr(module, "FEED", 4 * 2 * 16 * 3 * 4)  # two steps of four trials, 16 examples of three numbers
    plain = tiny()
    workload = dataclasses.replace(plain, data=dataclasses.replace(plain.data, train=Moved(plain.data.train)))
    contender = contend("mine", optlab.sgd, space=None, schedule=None, steps=6)
    trials = trials_of([{"learning_rate": 0.1}])
    moved, runs = both(workload, contender, trials)
    assert_alike(moved, runs)


def test_more_trials_than_fit_at_once_come_in_parts(monkeypatch):
    contender = contend("mine", optlab.sgd, space=None, schedule=None, steps=6)
    trials = trials_of([{"learning_rate": r} for r in (0.1, 0.2, 0.3)])
    filled = lambda self, trials, evaluate_every: list(trials)
    monkeypatch.setattr(module, "WIDTH_CPU", 2)
    monkeypatch.setattr(module.Program, "train", filled)
    parts = list(Population(tiny(), contender, 6, 2, devices=ONE)(trials))
    assert parts == [trials[:2], [trials[2]]]
    many = trials_of([{"learning_rate": 0.01 * i} for i in range(1, 12)])
    assert [len(p) for p in Population(tiny(), contender, 6, 2, devices=jax.devices()[:3])(many)] == [3, 3, 3, 2]
    monkeypatch.setattr(module.Program, "fitting", lambda self: 2)  # on each device
    monkeypatch.setattr(module, "WIDTH_CPU", 100)
    assert [len(p) for p in Population(tiny(), contender, 6, 2, devices=jax.devices()[:3])(many)] == [6, 5]


@pytest.mark.parametrize(("is_stacked", "factory"), [(True, optlab.muon), (False, optlab.sgd)])
def test_eight_devices_share_the_trials_and_give_the_numbers_of_one(is_stacked, factory):
    contender = contend("mine", factory, space=None, schedule=None, steps=6)
    trials = trials_of([{"learning_rate": 0.003 * i} for i in range(1, 10)], is_final=True)
    assert len(jax.devices()) == 8
    found = []
    for devices in (ONE, None):
        made = Population(tiny(), contender, 6, 9, is_stacked, devices)
        parts = list(made(trials))
        found.append({r.trial.id: r for part in parts for r in part})
    assert [len(part) for part in parts] == ([9] if is_stacked else [8, 1])
    [program] = made.programs.values()
    state = program.started({"learning_rate": np.ones(made.width, np.float32)}, np.arange(made.width, dtype=np.uint32))
    assert all(len(x.sharding.device_set) == 8 and not x.is_fully_replicated for x in jax.tree.leaves(state))
    assert_alike(*found)


class Convolved(nn.Module):
    @nn.compact
    def __call__(self, inputs):
        return nn.Dense(2)(nn.Conv(2, (3, 3))(inputs).mean(axis=(1, 2)))


def test_convolutions_are_trained_in_turn_on_a_cpu():
    images = np.zeros((8, 4, 4, 1), np.float32)
    data = arrays(images, np.arange(8) % 2, validation=0.25, test=0)
    workload = Workload.from_model(Convolved(), data, batch_size=2)
    contender = contend("mine", optlab.sgd, space=None, schedule=None, steps=6)
    assert open_to(workload, contender) == ("series", "side by side, convolutions are several times slower on a CPU")
    trials = trials_of([{"learning_rate": 0.1}, {"learning_rate": 0.2}])
    series = {r.trial.id: r for [r] in Population(workload, contender, 3, 2, is_stacked=False, devices=ONE)(trials)}
    assert_alike(series, {r.trial.id: r for [r] in Runs(workload, contender, 3, 2)(trials)})
    assert {r.executor for r in series.values()} == {"series"}
