"""The classical ramp, and fastai's four rules on curves whose answers are known."""

import math

import numpy as np
import pytest

from optlab.tuning import _ramp
from optlab.tuning._ramp import Ramp, minimum, ramp_of, slide, steepest, valley

RATES = 10.0 ** np.linspace(-4, 0, 41)  # ten a decade


def test_the_ramp_grows_by_one_factor_a_step():
    found = ramp_of(1e-3, 1e1, np.ones(3), steps=5)
    np.testing.assert_allclose(found.rates, [1e-3, 1e-2, 1e-1])


def test_the_smoothed_loss_is_a_weighted_mean():
    losses = np.array([3.0, 1.0, 2.0])
    weights = np.array([0.98**2, 0.98, 1.0])
    found = Ramp(np.ones(3), losses).smoothed
    np.testing.assert_allclose(found, [3.0, (0.98 * 3 + 1) / 1.98, weights @ losses / weights.sum()])


def test_the_rules_on_a_valley():
    """Flat up to 1e-3, falling to 1e-1, rising behind it; steepest between 1e-2 and 10^-1.9."""
    at = np.log10(RATES)
    losses = np.interp(at, [-4, -3, -2, -1.9, -1, 0], [2.0, 2.0, 1.5, 1.2, 0.5, 3.0])
    assert minimum(RATES, losses) == pytest.approx(1e-2)
    assert steepest(RATES, losses) == pytest.approx(1e-2)
    # The longest fall has 21 members, 10 … 30: from 30 − 21 = 9 a third and a sixth of 21 are 10 steps.
    assert valley(RATES, losses) == pytest.approx(RATES[9 + 7 + 3])


def test_the_valley_skips_what_rises_in_between():
    losses = np.array([5.0, 9.0, 4.0, 8.0, 3.0, 2.0, 7.0])
    assert valley(RATES[:7], losses) == RATES[5 - 4 + 1]  # 5, 4, 3, 2 end at 5; a third of 4 is 1, a sixth 0


def test_the_slide_stops_where_both_slopes_are_alike():
    at = np.arange(41)
    assert slide(RATES, 2 - 0.05 * at) == RATES[25]  # a line: at once, 15 steps before the end
    # Its right end leaves the rise after 25, where the slope is half of it.
    assert slide(RATES, np.where(at < 25, 1.0, 1.0 + 0.1 * (at - 25))) == RATES[10]
    assert math.isnan(slide(RATES[:10], np.ones(10)))


def test_a_ramp_that_blew_up_is_read_up_to_there():
    losses = np.concatenate([np.linspace(2, 1, 60), np.full(40, 1e6)])
    found = ramp_of(1e-4, 1.0, losses).suggestions()
    assert found.keys() == _ramp.RULES.keys()
    assert found["minimum / 10"] < 1e-4 * 1e4 ** (60 / 99)
    assert all(math.isnan(v) for v in ramp_of(1e-4, 1.0, losses[:12]).suggestions().values())
