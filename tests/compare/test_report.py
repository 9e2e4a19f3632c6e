"""The report of a study: its charts hold the study's numbers, and several studies make a profile."""

import dataclasses
import json
import math

import numpy as np
import pytest

from optlab.commands import main
from optlab.compare import log_uniform
from optlab.compare.report import _charts, _page, profile
from optlab.compare.study import make_study
from optlab.compare.verdict import judge
from optlab.config import Target
from optlab.report import Chart, distinct

from .cheap import RATES, played, tiny


@pytest.fixture(scope="module")
def verdict():
    spaces = {"adamw": {**RATES, "weight_decay": log_uniform(1e-3, 1.0)}, "sgd": RATES}
    study = make_study(["adamw", "sgd"], tiny(Target(value=0.5)), steps=10, trials=4, studies=3, spaces=spaces,
                       executor="runs")  # fmt: skip
    return judge(study, played(study))


def test_every_question_has_its_chart(verdict):
    charts = {c.key: c for c in _charts(verdict)}
    assert list(charts) == ["validation-loss", "train-loss", "reached", "over-learning-rate", "over-weight-decay",
                            "parallel-adamw", "best-of"]  # fmt: skip
    learning = charts["validation-loss"]
    assert [line.name for line in learning.lines] == ["adamw", "sgd", "target"]
    assert learning.lines[0].y[-1] == pytest.approx(
        verdict.standings["adamw"].mean.value - 0.01
    )  # less than the test's
    steps = learning.lines[0].x
    np.testing.assert_allclose(learning.views["examples"][1], np.multiply(steps, 16))
    np.testing.assert_allclose(learning.views["seconds"][1], np.multiply(steps, 0.05))
    assert len(charts["over-learning-rate"].lines[1].x) == 3 * 4
    assert len(charts["parallel-adamw"].lines) == 3 * 4
    assert charts["parallel-adamw"].ticks[1] == "weight_decay<br>0.001 to 1"
    assert [line.name for line in charts["parallel-adamw"].lines].count("winners") == 3
    assert charts["best-of"].lines[0].y == [e.value for e in verdict.standings["adamw"].best_of]


def test_a_click_shows_what_the_trial_was(verdict):
    points = next(c for c in _charts(verdict) if c.key == "over-weight-decay").lines[0]
    shown = dict(points.details[0])
    trial = verdict.results[shown["trial"]].trial
    assert shown["seed"] == str(trial.seed)
    assert shown["weight_decay"] == f"{trial.values['weight_decay']:.4g}"


def test_bands_have_no_repetitions_but_studies_and_a_loss_that_overflows_is_a_gap():
    def noisy(result):
        losses = [1.0 + result.trial.study, math.inf if result.trial.contender == "sgd" else 0.5]
        return dataclasses.replace(result, curve={**result.curve, "validation/loss": losses})

    few, many = (
        make_study(["adamw", "sgd"], tiny(), steps=10, trials=4, studies=2, finals=f, executor="runs") for f in (1, 4)
    )
    one, four = (_charts(judge(s, played(s, change=noisy)))[0].lines for s in (few, many))
    assert (one[0].low[0], one[0].high[0]) == (four[0].low[0], four[0].high[0])
    assert math.isnan(one[1].y[1])
    assert one[0].low[1] == one[0].y[1] == 0.5  # the studies agree: the band has no width


def test_every_chart_has_a_key_of_its_own():
    names = ["a/b", "a-b", "ä" * 300, "ö" * 300]
    found = [c.key for c in distinct([Chart(name, "", "", "", []) for name in names])]
    assert found == ["a-b", "a-b-2", "-" * 60, "-" * 60 + "-2"]


def test_the_page_begins_with_the_verdict_and_ends_with_the_way_to_have_it_again(verdict):
    text = _page(verdict, [], "optlab compare mine.py")
    found = [
        text.index(part) for part in ("<h2>Verdict", verdict.lines()[0], "<h2>Contenders", "optlab compare mine.py")
    ]
    assert found == sorted(found)


def test_several_studies_make_a_performance_profile(tmp_path, capsys, verdict):
    data = verdict.to_json()
    slow = json.loads(json.dumps(data))
    for name, steps in (("adamw", 30.0), ("sgd", "inf")):
        slow["standings"][name]["steps"] = steps
    for name, steps in (("adamw", 20.0), ("sgd", 10.0)):
        data["standings"][name]["steps"] = steps
    chart = profile({"a": data, "b": slow})
    adamw, sgd = chart.lines
    assert (adamw.y[0], adamw.y[-1]) == (0.5, 1.0)  # the faster one in b, twice as slow in a
    assert (sgd.y[0], sgd.y[-1]) == (0.5, 0.5)
    for name, tree in (("a", data), ("b", slow)):
        (tmp_path / name).mkdir()
        (tmp_path / name / "trials.jsonl").touch()
        (tmp_path / name / "verdict.json").write_text(json.dumps(tree))
    assert main(["report", str(tmp_path / "a"), str(tmp_path / "b")]) == 0
    assert "Performance profile" in (tmp_path / "report.html").read_text()
    (tmp_path / "c").mkdir()
    (tmp_path / "a").rename(tmp_path / "c" / "b")  # another study in a folder of the same name
    assert main(["report", str(tmp_path / "b"), str(tmp_path / "c" / "b")]) == 0
    text = (tmp_path / "report.html").read_text()
    assert "<h1>2 studies</h1>" in text
    assert "<h2>c/b</h2>" in text
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "trials.jsonl").touch()
    (tmp_path / "b" / "verdict.json").unlink()
    assert main(["report", str(tmp_path / "a"), str(tmp_path / "b")]) == 2
    assert "has no verdict yet" in capsys.readouterr().err


def test_without_a_target_there_is_no_profile(verdict):
    data = verdict.to_json()
    data["standings"]["adamw"]["steps"] = None
    assert "it needs contenders that are in every study" in profile({"a": data})
