"""Search spaces: what is drawn from them, and what is refused."""

import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from optlab.compare import StudyError, points
from optlab.compare.points import at_edge, check_design, choice, draw, log_uniform, seed_of, uniform

RATES = {"learning_rate": log_uniform(1e-4, 1e-1), "b1": uniform(0.8, 0.99), "nesterov": choice(True, False)}


@given(st.integers(0, 2**31 - 1))
def test_points_fill_the_space_evenly(seed):
    found = draw(RATES, 8, seed=seed)
    eighths = sorted(int(8 * (np.log10(p["learning_rate"]) + 4) / 3) for p in found)
    assert eighths == list(range(8))  # one in each eighth: Sobol's property, whatever the scrambling
    assert all(0.8 <= p["b1"] <= 0.99 for p in found)
    assert sum(p["nesterov"] for p in found) == 4


def test_the_same_seed_draws_the_same_and_another_one_others():
    assert draw(RATES, 8, seed=1) == draw(RATES, 8, seed=1)
    assert draw(RATES, 8, seed=1) != draw(RATES, 8, seed=2)


def test_more_trials_begin_with_the_same_points():
    assert draw(RATES, 16, seed=5)[:8] == draw(RATES, 8, seed=5)


def test_a_grid_is_every_combination():
    space = {"learning_rate": choice(0.1, 0.01), "momentum": choice(0.0, 0.9)}
    assert draw(space, 4, design="grid") == [
        {"learning_rate": a, "momentum": b} for a in (0.1, 0.01) for b in (0.0, 0.9)
    ]
    assert check_design("sgd", space, None, "grid") == 4


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: log_uniform(1e-1, 1e-3), "log_uniform must have the lower bound first, got 0.1 and 0.001"),
        (lambda: uniform(1, 1), "uniform must have the lower bound first, got 1 and 1"),
        (lambda: log_uniform(0, 1), "positive bounds, got 0: say uniform"),
        (lambda: log_uniform("1e-3", 1), "finite numbers as bounds, got '1e-3' and 1"),
        (lambda: uniform(0, float("inf")), "finite numbers as bounds"),
        (lambda: choice(), "at least one value, got none"),
        (lambda: choice(0.1, 0.1), "different values, got 0.1, 0.1"),
        (lambda: choice(0.1, float("inf")), "finite numbers, got inf: say none"),
        (lambda: choice([1]), r"numbers, strings, true, false or none, got \[1\]"),
    ],
)
def test_an_impossible_space_is_refused_by_name(make, message):
    with pytest.raises(StudyError, match=message):
        make()


@pytest.mark.parametrize(
    ("trials", "design", "message"),
    [
        (6, "sobol", "power of two, which Sobol's points are made for, got 6"),
        (2, "sobol", r"at least 4 for the 3 hyperparameters of adam \(learning_rate, b1, nesterov\), got 2"),
        (0, "sobol", "power of two"),
        (None, "grid", r"design=grid needs choices, got log_uniform\(0.0001, 0.1\) for adam's learning_rate"),
    ],
)
def test_an_impossible_number_of_trials_is_refused(trials, design, message):
    with pytest.raises(StudyError, match=message):
        check_design("adam", RATES, trials, design)


def test_a_grids_size_is_its_own():
    with pytest.raises(StudyError, match="trials must be 2 for sgd's grid, got 8: leave trials out"):
        check_design("sgd", {"learning_rate": choice(0.1, 0.2)}, 8, "grid")


@pytest.mark.parametrize("space", [uniform(-3, 5), log_uniform(1e-4, 1e-1), choice(1, 3, 10)])
def test_a_share_is_the_place_of_a_value(space):
    shares = (0.0, 0.5, 1.0)
    assert [space.share(space.at(u)) for u in shares] == pytest.approx(shares)


def test_the_outermost_values_are_edges_if_they_lie_near_the_bounds():
    space = {"lr": log_uniform(1e-4, 1e-1), "kind": choice("a", "b", "c"), "power": choice(1, 2, 4)}
    tried = [{"lr": x, "kind": k, "power": p} for x, k, p in ((5e-4, "a", 1), (5e-3, "b", 2), (0.02, "c", 4))]
    assert at_edge(space, tried, tried[0]) == {"lr": "low", "power": "low"}
    assert at_edge(space, tried, tried[1]) == {}
    assert at_edge(space, tried, tried[2]) == {"lr": "high", "power": "high"}
    pair = {"power": choice(1, 2)}  # of two values each is an outermost one
    assert at_edge(pair, [{"power": 1}, {"power": 2}], {"power": 2}) == {}
    inside = [{**point, "lr": x} for point, x in zip(tried, (6e-4, 5e-3, 0.016), strict=True)]
    assert [at_edge(space, inside, point).get("lr") for point in inside] == [
        None
    ] * 3  # a quarter of three decades is left


def test_every_optimizer_of_ours_has_a_space():
    from optlab import optimizers

    assert set(points.DEFAULTS) == set(optimizers.__all__)


def test_seeds_are_the_same_in_every_process():
    code = "from optlab.compare.points import seed_of; print(seed_of('adam', 3, 'final'))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert int(done.stdout) == seed_of("adam", 3, "final")
    assert seed_of("adam", 3) != seed_of("adam", 4)


def test_spaces_need_the_standard_library_alone():
    code = "import sys, optlab.compare.points; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert not {"jax", "numpy", "scipy"} & set(done.stdout.split())
