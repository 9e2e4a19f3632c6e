"""Trials as plain data: what is kept of them outlives a kill, and is never another study's."""

import json
import math

import pytest

from optlab.compare import StudyError
from optlab.compare.trials import Ledger, Result, Trial, as_line, from_line, pace
from optlab.config import Target

ABOUT = {"steps": 10, "contenders": {"adam": {"space": {"learning_rate": "log_uniform(0.1, 1)"}}}}


def result(point=0, **kwargs):
    trial = Trial("adam", 0, point, 0, False, {"learning_rate": 0.1 * 3, "nesterov": None}, 7)
    return Result(trial, kwargs.pop("curve", {"step": [1, 2], "validation/loss": [0.5, math.inf]}), **kwargs)


def test_a_result_is_the_same_after_the_disk():
    there = result(diverged="step 3: the loss is nan", seconds=math.nan)
    again = from_line(as_line(there))
    assert as_line(again) == as_line(there)
    assert (again.trial, again.curve, again.diverged) == (there.trial, there.curve, there.diverged)
    assert json.loads(as_line(there))["id"] == "adam/0/search/0/0"


def test_names_that_look_like_numbers_stay_names():
    trial = Trial("nan", 0, "inf", 0, False, {"norm": "inf"}, 7)
    assert from_line(as_line(Result(trial, {"step": [1]}, seconds=1.0, pace=1.0))).trial == trial


def test_the_last_value_of_a_diverged_trial_is_none_at_all():
    curve = {"step": [1, 2], "validation/loss": [0.5, 0.4]}
    assert result(curve=curve).last("validation/loss") == 0.4
    assert math.isnan(result(curve=curve, diverged="step 3").last("validation/loss"))
    assert math.isnan(result(curve=curve).last("validation/accuracy"))
    assert result(curve=curve, test={"test/loss": 0.3}).last("test/loss") == 0.3


def test_a_pace_leaves_out_what_compiles():
    assert pace([9.0, 1.0, 3.0, 2.0]) == 2.0
    assert math.isnan(pace([9.0]))


def test_a_target_is_reached_at_the_first_evaluation_that_is_good_enough():
    there = result(curve={"step": [5, 10, 15], "validation/loss": [0.5, 0.2, 0.3]})
    assert there.reached(Target(value=0.25)) == 10
    assert there.reached(Target(value=0.1)) is None


def test_what_is_finished_is_there_again(tmp_path):
    Ledger(tmp_path, ABOUT).add([result(0), result(1)])
    assert list(Ledger(tmp_path, ABOUT).results) == ["adam/0/search/0/0", "adam/0/search/1/0"]


def test_a_line_that_a_kill_cut_off_is_trained_again_and_spoils_no_other(tmp_path):
    Ledger(tmp_path, ABOUT).add([result(0), result(1)])
    file = tmp_path / "trials.jsonl"
    file.write_text(file.read_text()[:-20])
    ledger = Ledger(tmp_path, ABOUT)
    assert list(ledger.results) == ["adam/0/search/0/0"]
    ledger.add([result(1), result(2)])
    assert len(Ledger(tmp_path, ABOUT).results) == 3


def test_a_line_that_is_damaged_in_the_middle_is_named(tmp_path):
    Ledger(tmp_path, ABOUT).add([result(0), result(1)])
    file = tmp_path / "trials.jsonl"
    file.write_text("{" + file.read_text())
    with pytest.raises(StudyError, match=r"line 1 of .*trials.jsonl can't be read"):
        Ledger(tmp_path, ABOUT)


def test_nothing_is_kept_twice(tmp_path):
    ledger = Ledger(tmp_path, ABOUT)
    ledger.add([result(0)])
    ledger.add([result(0)])
    assert len((tmp_path / "trials.jsonl").read_text().splitlines()) == 1


def test_another_studys_folder_is_refused_with_what_differs(tmp_path):
    Ledger(tmp_path, ABOUT)
    other = {"steps": 20, "contenders": {"adam": {"space": {"learning_rate": "uniform(0, 1)"}}}}
    with pytest.raises(StudyError) as error:
        Ledger(tmp_path, other)
    assert "holds another study: steps (10 there, 20 here)" in str(error.value)
    assert "adam.space.learning_rate (log_uniform(0.1, 1) there, uniform(0, 1) here)" in str(error.value)


def test_contenders_may_join_and_those_that_left_are_remembered(tmp_path):
    Ledger(tmp_path, ABOUT)
    Ledger(tmp_path, {"steps": 10, "contenders": {"lion": {"space": {}}}})
    changed = {"steps": 10, "contenders": {"adam": {"space": {}}}}
    with pytest.raises(StudyError, match="another study"):
        Ledger(tmp_path, changed)


def test_without_a_folder_nothing_is_written(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Ledger(None, {}).add([result(0)])
    assert not list(tmp_path.iterdir())
