"""Widening: the search goes on where the best values lie, and nobody gets more trials than another."""

import pytest

from optlab.compare import StudyError, _face, choice, log_uniform, uniform
from optlab.compare import study as module
from optlab.compare._face import conclude
from optlab.compare.driver import run_study
from optlab.compare.study import make_study
from optlab.compare.widening import widened

from .cheap import RATES, Pretended, tiny

WORKLOAD = tiny()
FAR = {"learning_rate": log_uniform(1e-5, 10**-3.5)}  # the basin's bottom lies a decade above


@pytest.fixture(autouse=True)
def nothing_is_trained(monkeypatch):
    monkeypatch.setattr(_face, "write_report", lambda *arguments: None)
    monkeypatch.setattr(module, "EXECUTORS", dict.fromkeys(("population", "series", "runs"), Pretended))
    monkeypatch.setattr(Pretended, "trained", [])
    monkeypatch.setattr(module, "_check_trains", lambda workload, contender: None)
    monkeypatch.setattr(module, "_programs", lambda workload: {})
    monkeypatch.setattr(module, "_described", lambda workload, contender: {"space": str(contender.space)})


def studied(spaces=None, trials=4, studies=2, **settings):
    spaces = {"adamw": FAR, "sgd": RATES} if spaces is None else spaces
    return make_study(["adamw", "sgd"], WORKLOAD, steps=10, trials=trials, studies=studies, spaces=spaces,
                      executor="runs", **settings)  # fmt: skip


def test_the_search_goes_on_beyond_an_edge_with_equal_trials_for_all():
    found = conclude(studied(), widen=True, quiet=True)
    study = found.study
    assert 1 <= len(study.widened) <= 3
    assert found.standings["adamw"].best[0]["learning_rate"] > FAR["learning_rate"].high
    counts = [len(study.points(name, s)) for name in study.contenders for s in range(2)]
    assert counts == [4 * (1 + len(study.widened))] * 4
    assert "The space of adamw was widened " in str(found)
    assert "The space of sgd" not in str(found)
    assert f"{counts[0]} trials each" in str(found)


def test_a_widened_study_goes_on_in_its_folder_and_more_trials_keep_their_names(tmp_path):
    found = conclude(studied(), tmp_path, widen=True, quiet=True)
    Pretended.trained.clear()
    assert str(conclude(studied(), tmp_path, widen=True, quiet=True)) == str(found)
    assert Pretended.trained == []
    results = run_study(studied(trials=16), tmp_path)  # sgd's further rounds were points of its own space
    kept = {t for t in found.results if t.startswith("sgd") and "/search/" in t}
    assert kept
    assert not kept & set(Pretended.trained)
    assert all(results[t.id].trial == t for t in studied(trials=16).searches("sgd", 0))


def test_a_round_begins_at_the_edge_that_the_last_one_ended_with():
    once = widened(studied(), {"adamw": {"learning_rate": "high"}, "sgd": {}})
    assert once.widened[0]["sgd"] is None
    piece = once.widened[0]["adamw"]["learning_rate"]
    assert (piece.low, piece.high) == pytest.approx((10**-3.875, 1e-3))  # from its last quarter to a third more
    twice = widened(once, {"adamw": {"learning_rate": "high"}, "sgd": {}})
    piece = twice.widened[1]["adamw"]["learning_rate"]
    assert (piece.low, piece.high) == pytest.approx((10**-3.375, 10**-2.5))
    assert twice.searched("adamw")["learning_rate"].high == piece.high
    low = widened(studied(), {"adamw": {"learning_rate": "low"}, "sgd": {}}).widened[0]["adamw"]["learning_rate"]
    assert (low.low, low.high) == pytest.approx((10**-5.5, 10**-4.625))


def test_only_decades_are_widened():
    space = {"learning_rate": log_uniform(1e-4, 1e-1), "b1": uniform(0.8, 0.99)}
    study = studied({"adamw": space})
    assert widened(study, {"adamw": {"b1": "high"}, "sgd": {}}) is None
    both = widened(study, {"adamw": {"learning_rate": "high", "b1": "high"}, "sgd": {}}).widened[0]["adamw"]
    assert both["b1"] == space["b1"]
    grid = {"learning_rate": choice(0.1, 0.2)}
    with pytest.raises(StudyError, match="widen=True needs a log_uniform space"):
        conclude(studied({"adamw": grid, "sgd": grid}, design="grid", trials=None), widen=True)
