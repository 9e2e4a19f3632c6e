"""The learning-rate range test: the runs that it makes, the rule that it follows, and what it refuses."""

import math

import numpy as np
import optax
import pytest

import optlab
from optlab.data import arrays
from optlab.models import mlp
from optlab.training import Workload, accuracy, train
from optlab.tuning import RangeError, _learning_rates
from optlab.tuning._learning_rates import _first_look, _grid, _reason, _second_look, regimes, suggest
from optlab.tuning._trainings import Training, Trainings, _shared


def tiny(validation=1 / 6):
    inputs = np.random.default_rng(0).normal(size=(96, 2)).astype(np.float32)
    labels = (inputs.sum(axis=1) > 0).astype(np.int32)
    data = arrays(inputs, labels, validation=validation, test=0)
    return Workload.from_model(mlp(2, widths=[4]), data, batch_size=16, metrics={"accuracy": accuracy})


def played(rate, end, steps=10, diverged=None):
    return Training(rate, steps, 2.0, np.array([2.0, 1.0]), {"step": [steps], "validation/loss": [end]}, diverged)


def test_a_training_at_full_length_is_an_ordinary_run():
    workload, schedule = tiny(), optlab.schedules.warmup_cosine
    trainings = Trainings(workload, optlab.sgd, schedule=schedule, steps=12, seed=3)
    found, wild = trainings.train([0.1, 1e38], 12, every=6)
    run = train(workload, optlab.sgd(schedule(0.1, 12)), steps=12, seed=3, evaluate_every=6, log_every=1)
    assert found.curve["step"] == [6, 12]
    expected = [r["validation/loss"] for r in run.records if "validation/loss" in r]
    np.testing.assert_allclose(found.curve["validation/loss"], expected, rtol=1e-5)
    np.testing.assert_allclose(found.losses, [r["train/loss"] for r in run.records], rtol=1e-5)
    assert found.diverged is None
    assert wild.diverged is not None
    assert math.isnan(wild.end("validation/loss"))
    assert len(wild.losses) == wild.diverged - 1


def test_a_short_training_runs_through_the_whole_schedule():
    whole = optlab.schedules.warmup_cosine(0.5, 100)
    short = _shared(optlab.schedules.warmup_cosine, 100)(0.5, 10.0, 1.0)
    np.testing.assert_allclose([short(t) for t in range(10)], [whole(10 * t) for t in range(10)], rtol=1e-6)
    ramp = _shared(None, 100)(1e-3, 1.0, 2.0)
    np.testing.assert_allclose([ramp(t) for t in range(4)], [1e-3, 2e-3, 4e-3, 8e-3], rtol=1e-5)


def test_the_regimes_are_relative_to_the_best():
    ends = {1: 1.9, 4: 1.2, 16: 0.5, 64: 1.4}
    found = regimes([*(played(r, e) for r, e in ends.items()), played(256, 0.0, diverged=3)], "validation/loss")
    assert list(found.values()) == ["flat", "good", "good", "explodes", "explodes"]


@pytest.mark.parametrize(
    ("ends", "best", "lowest"),
    [
        ((1.0, 0.6, 0.5, 0.6, 1.0), 4, 4),
        ((1.0, 0.7, 0.5, 0.4, math.nan), 4, 4),  # a cliff
        ((1.0, 0.53, 0.52, 0.5, 0.52), 8, 2),  # a flat bottom
        ((0.51, 0.52, 0.5, 0.55, 1.0), 2, 1),
    ],
)
def test_the_suggestion_lies_between_the_best_and_the_lowest_that_is_as_good(ends, best, lowest):
    found = suggest([played(2.0**k, end) for k, end in enumerate(ends)], "validation/loss")
    assert [t.rate for t in found] == [best, lowest]


def test_the_second_look_goes_on_beyond_its_edge():
    class Slope:
        metric = "validation/loss"

        def train(self, rates, steps):
            return [played(r, 1.0 / r if r < 40 else 1.5, steps) for r in rates]

    assert [t.rate for t in _second_look(Slope(), 8.0, 10)] == [1, 2, 4, 8, 16, 32, 64]

    class Flat:
        metric = "validation/loss"

        def train(self, rates, steps):
            return [played(r, 0.5 if 0.25 <= r < 16 else 1.9, steps) for r in rates]

    assert [t.rate for t in _second_look(Flat(), 8.0, 10)] == [0.125, 0.25, 0.5, 1, 2, 4, 8, 16]


def test_a_first_look_that_learns_nothing_is_made_again_for_longer(monkeypatch):
    taken = []

    def look(trainings, grid, steps, *, may_extend):
        taken.append(steps)
        return [played(r, 1.99 if steps < 30 else 1.0, steps) for r in grid]

    monkeypatch.setattr(_learning_rates, "_first_look", look)
    found = optlab.lr_range(tiny(), "sgd", steps=100, low=0.01, high=1.0)
    assert taken == [10, 30]
    assert found.first[0].steps == 30
    assert found.second[0].steps == 50


def test_the_first_look_goes_on_until_both_sides_are_seen():
    class Basin:
        metric, asked = "validation/loss", []

        def train(self, rates, steps):
            self.asked += rates
            return [played(r, min(2.0, 0.1 + abs(math.log10(r))), steps) for r in rates]

    basin = Basin()
    found = _first_look(basin, _grid("sgd", None, None, 1000.0), 10, may_extend=True)
    seen = [t.rate for t in found]
    assert seen == sorted(seen)
    assert min(seen) < 0.1 < 10 < max(seen)
    assert len(set(basin.asked)) == len(basin.asked)  # nothing twice
    assert len(_first_look(basin, _grid("sgd", 1.0, 64.0, None), 10, may_extend=False)) == 4


def test_the_reason_names_the_lowest_loss_and_what_passes_it_over():
    ends = {0.006: 0.4871, 0.012: 0.2006, 0.024: 0.1141, 0.048: 0.07567, 0.096: 0.04165, 0.19: 0.9}
    second = [played(r, e, 50) for r, e in ends.items()]
    words = _reason([played(0.003, 1.99), *second], second, "validation/loss")
    assert "to 0.04165 at 0.096, the lowest, which is passed over for its neighbour, 0.9 at 0.19" in words
    assert "the best is 0.048, with 0.07567" in words
    assert "0.024 has 0.1141, which is 98% of the fall at 0.048" in words
    near = [*second[:-1], played(0.19, 0.05, 50), played(0.38, 0.9, 50)]  # no cliff beside the lowest one
    assert "passed over" not in _reason(near, near, "validation/loss")


def test_a_range_test_says_why_and_draws(tmp_path):
    found = optlab.lr_range(tiny(), optlab.sgd, steps=40, low=0.01, high=200.0, sweep=True)
    text = str(found).replace("\n            ", " ")
    assert f"learning_rate={found.suggestion:.2g}: in 40 steps validation/loss falls from" in text
    assert "by fastai's rules: minimum / 10" in text
    assert f"a factor of {found.factor:.2g} away" in text
    path = found.plot(tmp_path / "range.png")
    assert path.read_bytes()[:4] == b"\x89PNG"
    with pytest.raises(RangeError, match=r"range\.png is there already: name another place"):
        found.plot(path)


def test_without_a_validation_split_the_training_loss_counts():
    found = optlab.lr_range(tiny(validation=0), "sgd", steps=20, low=0.01, high=1.0)
    assert found.metric == "train/loss"
    assert found.suggestion is not None


def test_where_nothing_learns_there_is_no_suggestion():
    found = optlab.lr_range(tiny(), lambda learning_rate: optax.sgd(-1e3 * learning_rate), steps=20, low=1.0, high=16.0)
    assert found.suggestion is None
    assert "no rate from 1 to 16 lowers validation/loss from" in str(found)


def numbers_alone(learning_rate: float):
    if callable(learning_rate):
        raise TypeError("a number")
    return optax.sgd(learning_rate)


def test_an_optimizer_that_takes_numbers_alone_has_no_ramp():
    trainings = Trainings(tiny(), numbers_alone, schedule=None, steps=20)
    assert not trainings.has_ramp
    assert len(trainings.train([0.1, 0.2], 10)) == 2


def test_a_factory_that_cannot_be_traced_is_compiled_for_each_rate():
    trainings = Trainings(tiny(), lambda learning_rate: optax.sgd(float(learning_rate)), schedule=None, steps=20)
    assert not trainings.is_traced
    a, b = trainings.train([0.1, 0.2], 10)
    assert a.end("validation/loss") != b.end("validation/loss")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"tx_factory": optax.sgd(0.1)}, "must be a function of the learning rate, got a transformation"),
        ({"tx_factory": lambda rate: optax.sgd(rate)}, "has an argument 'learning_rate', which <lambda> doesn't take"),
        ({"tx_factory": "adamm"}, "unknown optimizer 'adamm'; did you mean 'adam'"),
        ({"workload": 3}, "workload must be an optlab.training.Workload, got int"),
        ({"steps": 12}, "steps must be a whole number of at least 20, got 12"),
        ({"short": 5}, r"short must be a whole number of steps in \[10, 100\], got 5"),
        ({"low": 0.1}, "low is given alone: give low and high, or neither"),
        ({"low": 1.0, "high": 0.1}, "low must be below high, got low=1 and high=0.1"),
        ({"low": 1.0, "high": 2.0}, "high must be at least 16 times low"),
        ({"low": -1.0, "high": 2.0}, "low must be a positive number, got -1.0"),
        ({"middle": "x"}, "middle must be a positive number, got 'x'"),
        ({"seed": -1}, "seed must"),
    ],
)
def test_bad_input_is_answered_before_anything_compiles(change, message, monkeypatch):
    monkeypatch.setattr(Trainings, "train", None)
    arguments = {"workload": tiny(), "tx_factory": optlab.sgd, "steps": 100, **change}
    with pytest.raises(RangeError, match=message):
        optlab.lr_range(arguments.pop("workload"), arguments.pop("tx_factory"), **arguments)


def test_side_by_side_or_in_turn_the_trainings_are_the_same():
    def made(is_stacked):
        trainings = Trainings(tiny(), optlab.sgd, schedule=optlab.schedules.cosine, steps=12)
        trainings.is_stacked, trainings.width = is_stacked, 3 if is_stacked else 1  # as on a GPU
        return trainings.train([0.1, 0.3, 1.0, 1e38], 12, every=6)

    assert not Trainings(tiny(), optlab.sgd, schedule=None, steps=12, is_alone=True).is_stacked
    for a, b in zip(made(False), made(True), strict=True):
        assert a.rate == b.rate
        assert a.diverged == b.diverged
        np.testing.assert_allclose(a.losses, b.losses, rtol=1e-4)
        np.testing.assert_allclose(a.curve["validation/loss"], b.curve["validation/loss"], rtol=1e-4)
