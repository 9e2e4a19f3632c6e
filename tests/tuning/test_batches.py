"""The batch-size range test: steps to the target, the noise scale's prediction, and what it refuses."""

import dataclasses
import math

import numpy as np
import pytest
from matplotlib.figure import Figure

import optlab
from optlab.config import Target
from optlab.tuning import BatchRange, RangeError
from optlab.tuning._batches import Size, _crossing, _fit, _measured, _sizes
from optlab.tuning._pictures import _scale
from optlab.tuning._trainings import Training

from .test_learning_rates import tiny

LOSS = Target(metric="validation/loss", value=0.3)
ACCURACY = Target(metric="validation/accuracy", mode="max", value=0.9)


def aimed(target=LOSS):
    return dataclasses.replace(tiny(), target=target)


@pytest.mark.parametrize(
    ("values", "target", "step"),
    [
        ([0.5, 0.4, 0.2], LOSS, 25),
        ([0.3], LOSS, 10),
        ([0.5, 0.4], LOSS, math.inf),
        ([math.nan, 0.4, 0.2], LOSS, 25),
        ([0.8, 1.0], ACCURACY, 15),
    ],
)
def test_the_target_is_crossed_between_two_evaluations(values, target, step):
    curve = {"step": [10 * (i + 1) for i in range(len(values))], target.metric: values}
    assert _crossing(curve, target) == pytest.approx(step)


class Basin:
    """Trainings whose steps to the target are least at one rate."""

    steps = 50

    def __init__(self, best):
        self.best, self.asked = best, []

    def train(self, rates, steps, *, every, until):
        self.asked += rates
        ends = [10 * (1 + abs(math.log2(r / self.best))) for r in rates]
        curves = [{"step": [1, end], "validation/loss": [1.0, 0.3]} for end in ends]
        return [Training(r, 50, 1.0, np.ones(3), c, None, 0.1) for r, c in zip(rates, curves, strict=True)]


@pytest.mark.parametrize(("best", "tried"), [(1.0, 3), (4.0, 5), (0.5, 4), (64.0, 5)])
def test_the_rates_go_on_beyond_their_edge(best, tried):
    basin = Basin(best)
    found = _measured(basin, 32, 1.0, LOSS)
    assert len(found.rates) == tried == len(set(basin.asked))
    assert found.rate == (best if best < 64 else 8.0)
    assert found.throughput == pytest.approx(320)


def test_the_fit_is_exact_where_the_law_is():
    least, left = _fit({b: 30 * (1 + 100 / b) for b in (16, 64, 256)}, 100)
    assert least == pytest.approx(30)
    assert left == pytest.approx(0, abs=1e-12)


def test_a_range_test_says_why_and_draws(tmp_path):
    found = optlab.batch_range(aimed(), "adamw", learning_rate=0.1, steps=20, sizes=[16, 4])
    assert [s.batch_size for s in found.sizes] == [4, 16]
    assert found.suggestion in (4, 16)
    text = str(found).replace("\n            ", " ")
    assert f"suggestion  batch_size={found.suggestion}: about" in text
    assert f"the measured steps fit {found.fitted:.2g}" in text or not math.isfinite(found.scale)
    assert found.plot(tmp_path / "range.png").read_bytes()[:4] == b"\x89PNG"


def test_where_no_size_gets_there_it_says_so(tmp_path):
    sizes = (Size(16, 0.1, (0.1,), None, 0.01), Size(32, 0.1, (0.1,), None, 0.01))
    found = BatchRange("MLP, sgd", LOSS, sizes, math.nan, math.nan, math.nan, None)
    assert "none: no batch size reaches the target" in str(found)
    assert found.plot(tmp_path / "range.png").exists()


@pytest.mark.parametrize(("most", "is_log"), [(1.01, False), (30.0, True)])
def test_an_axis_is_logarithmic_where_it_has_ticks_of_decades(most, is_log):
    axes = Figure().subplots()
    axes.plot([1, 2], [2e4, most * 2e4])
    _scale(axes, [2e4, most * 2e4, math.inf])
    assert axes.get_yscale() == ("log" if is_log else "linear")
    low, high = axes.get_ylim()
    assert sum(low <= tick <= high for tick in axes.get_yticks()) >= 2
    assert is_log or low == 0


def test_sizes_go_as_far_as_the_data():
    assert _sizes(aimed(), None) == [2, 4, 8, 16, 32, 64]  # of 80 examples


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"workload": tiny()}, "the workload has no target to train to"),
        (
            {"workload": aimed(dataclasses.replace(LOSS, metric="train/accuracy"))},
            "target.metric must be train/loss or",
        ),
        ({"sizes": [8, 5000]}, r"sizes must be numbers of examples in \[1, 80\], which the data have, got 5000"),
        ({"sizes": [8, 8]}, "sizes must be at least two different batch sizes"),
        ({"sizes": "8,16"}, "sizes must be at least two different batch sizes"),
        ({"learning_rate": 0}, "learning_rate must be a positive number, got 0"),
        ({"steps": 3}, "steps must be a whole number of at least 4, got 3"),
        ({"tx_factory": "adamm"}, "unknown optimizer 'adamm'"),
    ],
)
def test_bad_input_is_answered_before_anything_compiles(change, message):
    arguments = {"workload": aimed(), "tx_factory": "sgd", "learning_rate": 0.1, "steps": 10, **change}
    with pytest.raises(RangeError, match=message):
        optlab.batch_range(arguments.pop("workload"), arguments.pop("tx_factory"), **arguments)
