"""The verdict: the words follow from the numbers, and the numbers from the results."""

import dataclasses
import json
import math

import numpy as np
import optax
import pytest

from optlab.compare import choice, statistics
from optlab.compare import study as module
from optlab.compare.causes import causes, counted
from optlab.compare.study import make_study
from optlab.compare.trials import Result
from optlab.compare.verdict import judge
from optlab.config import Target

from .cheap import RATES, played, tiny

WORKLOAD = tiny(Target(metric="validation/loss", value=0.5))


@pytest.fixture(autouse=True)
def nothing_is_traced(monkeypatch):
    monkeypatch.setattr(module, "_check_trains", lambda workload, contender: None)


def studied(contenders=("adamw", "sgd"), workload=WORKLOAD, **settings):
    settings = {"trials": 4, "studies": 5, "executor": "runs", **settings}
    spaces = dict.fromkeys(contenders, RATES)
    return make_study(list(contenders), workload, steps=10, spaces=spaces, **settings)


def verdict_of(study, **kwargs):
    return judge(study, played(study, **kwargs))


def test_a_large_difference_is_said_with_its_interval():
    found = verdict_of(studied(), shifts={"sgd": 1.0})
    c = found.comparisons["sgd"]
    assert c.is_different
    assert c.difference.low < c.difference.value < c.difference.high
    assert c.above.value == 0.0
    assert "sgd is worse than adamw: " in str(found)
    assert "[+" in str(found)


def test_what_cannot_be_told_apart_is_said_with_what_would_be_missed():
    found = verdict_of(studied())
    assert not found.comparisons["sgd"].is_different
    assert "sgd and adamw can't be told apart with 5 studies" in str(found)
    spread = math.sqrt(sum(np.var(found.standings[n].scores, ddof=1) for n in ("adamw", "sgd")) / 2)
    assert found.comparisons["sgd"].missed == pytest.approx(found.detectable * spread)
    assert f"(a true one below {found.comparisons['sgd'].missed:.4g}, 2.1 SD, would often be missed" in str(found)


def test_lower_is_better_for_a_loss_and_worse_for_an_accuracy():
    assert "sgd is better than adamw" in str(verdict_of(studied(), shifts={"sgd": -1.0}))
    as_accuracy = dataclasses.replace(WORKLOAD, target=Target(metric="validation/accuracy", mode="max"))

    def renamed(result):
        name = lambda curve: {k.replace("loss", "accuracy"): v for k, v in curve.items()}
        return dataclasses.replace(result, curve=name(result.curve), test=name(result.test))

    study = studied(workload=as_accuracy)
    assert "sgd is worse than adamw" in str(judge(study, played(study, {"sgd": -5.0}, renamed)))


def test_several_contenders_are_corrected_for():
    found = verdict_of(studied(["adamw", "sgd", "adam", "lion"]), shifts={"sgd": 1.0})
    assert "after Holm's correction for 3" in str(found)
    assert found.detectable > 2.1


def test_a_difference_that_the_correction_takes_away_is_said_so():
    found = verdict_of(studied(["adamw", "sgd"]), shifts={"sgd": 0.9})
    c = found.comparisons["sgd"]
    among = {"sgd": dataclasses.replace(c, p=0.08, difference=dataclasses.replace(c.difference, p=0.02)), "lion": c}
    words = dataclasses.replace(found, comparisons=among)._compared(among["sgd"])
    assert "can't be told apart" in words
    assert "by itself it would be told apart, not among 2 comparisons (Holm)" in words


def test_one_study_says_that_it_says_nothing():
    found = verdict_of(studied(studies=1), shifts={"sgd": 1.0})
    assert "one study has no interval" in str(found)
    assert math.isnan(found.comparisons["sgd"].p)
    assert found.detectable == math.inf


def test_steps_to_the_target_are_a_ratio():
    def slower(result):
        if result.trial.contender != "sgd":
            return dataclasses.replace(result, curve={**result.curve, "validation/loss": [0.3, 0.1]})
        return dataclasses.replace(result, curve={**result.curve, "validation/loss": [0.9, 0.2]})

    found = judge(studied(), played(studied(), change=slower))
    assert found.comparisons["sgd"].ratio.value == pytest.approx(2.0)
    assert "sgd" in str(found)
    assert "it reaches validation/loss 0.5 in 2 of adamw's steps" in str(found)  # all studies alike: no interval
    assert found.standings["adamw"].reached == (5, 5)
    assert found.standings["adamw"].restricted == 5.0


def test_time_to_the_target_counts_what_a_step_costs():
    def slower(result):
        is_sgd = result.trial.contender == "sgd"
        losses = [0.9, 0.2] if is_sgd else [0.3, 0.1]
        curve = {**result.curve, "validation/loss": losses}
        return dataclasses.replace(result, curve=curve, pace=0.01 if is_sgd else 0.04)

    study = studied()
    found = judge(study, played(study, change=slower))
    assert found.comparisons["sgd"].time == pytest.approx(2 / 4)
    assert "in 2 of adamw's steps and 0.5 of its time" in str(found)
    elsewhere = lambda r: dataclasses.replace(
        slower(r), executor="series" if r.trial.contender == "sgd" else r.executor
    )
    assert judge(study, played(study, change=elsewhere)).comparisons["sgd"].time is None


def test_the_best_of_k_has_a_band_over_the_studies_and_a_flip_is_told():
    def early(result):  # sgd: all trials alike; adamw: one of four is better, the others are worse
        trial = result.trial
        loss = 0.3 if trial.contender == "sgd" else (0.1 if trial.point == 0 else 0.5 + 0.01 * trial.study)
        return dataclasses.replace(result, curve={**result.curve, "validation/loss": [1.0, loss]})

    found = judge(studied(), played(studied(), change=early))
    assert [e.value for e in found.standings["sgd"].best_of] == pytest.approx([0.3] * 4)
    best = found.standings["adamw"].best_of
    of_one = [(0.1 + 3 * (0.5 + 0.01 * s)) / 4 for s in range(5)]
    assert best[0] == statistics.mean(of_one)
    assert best[3].value == pytest.approx(0.1)
    assert found.comparisons["sgd"].flip == 3
    assert "; the order of the two on validation flips from 2 to 3 trials." in str(found)


def test_a_target_that_is_never_reached_is_said_so():
    high = lambda r: dataclasses.replace(r, curve={**r.curve, "validation/loss": [0.9, 0.8]})
    never = lambda r: high(r) if r.trial.contender == "sgd" else r
    found = judge(studied(), played(studied(), change=never))
    assert found.standings["sgd"].steps == math.inf
    assert found.standings["sgd"].restricted == 10
    assert "it reaches validation/loss 0.5 in 0 of 5 runs, adamw in 5 of 5, a ratio of steps in [" in str(found)
    assert "until then or the end 10 steps on average, adamw 10" in str(found)


def test_runs_that_never_reach_the_target_are_said_where_half_of_them_do():
    def late(result):
        trial = result.trial
        is_late = trial.contender == "sgd" and trial.is_final and trial.study < 2
        return dataclasses.replace(result, curve={**result.curve, "validation/loss": [0.9, 0.8 if is_late else 0.4]})

    found = judge(studied(), played(studied(), change=late))
    assert found.comparisons["sgd"].ratio.value == 1.0
    words = "it reaches validation/loss 0.5 in 3 of 5 runs, adamw in 5 of 5, by the medians in 1 "
    assert words in str(found)


def test_diverged_trials_are_counted_with_their_cause():
    burst = lambda r: dataclasses.replace(r, diverged="step 3: the loss is nan") if r.trial.point == 0 else r
    found = judge(studied(), played(studied(), change=burst))
    assert found.standings["sgd"].diverged == (5, 25)
    assert "5 of 25 trials of sgd diverged: learning_rate=" in str(found)
    assert "step 3: the loss is nan" in str(found)


def test_a_trial_that_diverged_or_is_flat_has_a_cause_by_the_trials_beside_it():
    study = studied()
    some = list(study.searches("sgd", 0))[:4]
    rates = [
        dataclasses.replace(t, values={"learning_rate": x}) for t, x in zip(some, (1e-4, 1e-2, 0.1, 1.0), strict=True)
    ]
    ends = [1.9, 0.1, 1.8, 1.0]
    starts = [2.0, 2.0, 50.0, 2.0]
    results = [Result(t, {"step": [1, 10], "train/loss": x}) for t, *x in zip(rates, starts, ends, strict=True)]
    results[3] = dataclasses.replace(results[3], diverged="step 7: the loss is nan")
    low, _, high, burst = (r.trial.id for r in results)
    found = {low: "learning rate too low", high: "learning rate too high", burst: "learning rate too high"}
    assert causes(results) == found
    words = f"2 by learning rate too high ({high}, {burst}), 1 by learning rate too low ({low})"
    assert counted(found) == words
    assert counted({str(n): "flat" for n in range(3)}) == "3 flat (0, 1, …)"
    below = [dataclasses.replace(results[0], diverged="step 7"), results[1]]
    assert causes(below) == {low: "diverged"}  # a lower learning rate explains nothing
    assert causes([results[3]]) == {burst: "diverged"}  # and alone it says nothing
    once = [dataclasses.replace(r, curve={"step": [10], "train/loss": [r.curve["train/loss"][1]]}) for r in results]
    assert causes(once, once) == {burst: "diverged"}  # one evaluation shows no fall
    better = Result(dataclasses.replace(some[0], contender="lion"), {"step": [1, 10], "train/loss": [2.0, 0.1]})
    starts = [
        Result(t, {"step": [1, 10], "train/loss": [x, x - 0.01]}) for t, x in zip(rates, (2, 1.5, 3), strict=False)
    ]
    assert causes(starts, [*starts, better]) == dict.fromkeys((low, rates[1].id, high), "flat")  # none has trained


def test_contenders_that_do_not_train_or_are_there_at_once_are_told():
    def change(result):
        losses = {"adamw": [0.4, 0.1], "sgd": [2.0 + 0.1 * result.trial.study, 2.0]}[result.trial.contender]
        return dataclasses.replace(result, curve={"step": [5, 10], "train/loss": losses, "validation/loss": losses})

    study = studied(evaluate_every=5)
    found = judge(study, played(study, change=change)).lines()
    assert "No trial of sgd trained as the best of the others did: give it another space, or more steps." in found
    words = "adamw has reached the target by its first evaluation, after 5 steps: when isn't known."
    assert words in "\n".join(found)


def test_winners_that_diverge_afresh_are_said_to_flatter_the_mean():
    burst = lambda r: dataclasses.replace(r, diverged="step 3") if r.trial.is_final and r.trial.study < 2 else r
    found = judge(studied(), played(studied(), change=burst))
    words = "2 of 5 winners of sgd ended without a finite test/loss when they were trained afresh: its mean is that of"
    assert words in str(found)
    assert [math.isnan(x) for x in found.standings["sgd"].scores] == [True, True, False, False, False]


def test_winners_of_which_none_has_a_score_are_compared_with_nobody():
    burst = lambda r: dataclasses.replace(r, test={"test/loss": math.inf}) if r.trial.contender == "adamw" else r
    found = judge(studied(), played(studied(), change=burst))
    assert "too few winners have a finite test/loss to be compared: 5 of 5 of sgd, 0 of 5 of adamw" in str(found)
    assert "5 of 5 winners of adamw ended without a finite test/loss when they were trained afresh." in str(found)


def test_studies_that_are_all_alike_say_nothing():
    def few_images(result):
        test = {"test/loss": 0.125 if result.trial.contender == "sgd" else 0.25}
        return dataclasses.replace(result, test=test if result.trial.is_final else {})

    found = judge(studied(studies=2), played(studied(studies=2), change=few_images))
    assert not found.comparisons["sgd"].is_different
    assert "the studies are all alike, and don't show how they spread, so that nothing can be said" in str(found)


def test_fresh_trainings_of_one_winner_are_no_repetitions():
    def noisy(result):
        late = result.trial.contender == "sgd" and result.trial.study == 0
        return dataclasses.replace(result, curve={**result.curve, "validation/loss": [0.9 if late else 0.4, 0.4]})

    study, many = studied(studies=2), studied(studies=2, finals=8)
    few, found = (judge(s, played(s, change=noisy)) for s in (study, many))
    assert found.comparisons["sgd"].ratio == few.comparisons["sgd"].ratio
    assert found.standings["sgd"].reached == (16, 16)


def test_a_best_value_at_the_edge_is_flagged():
    edge = lambda r: dataclasses.replace(
        r, curve={**r.curve, "validation/loss": [1.0, 1 / r.trial.values["learning_rate"]]}
    )
    found = judge(studied(), played(studied(), change=edge))
    assert found.standings["sgd"].edges == {"learning_rate": "high"}
    words = "The best values of sgd lie at the edge of what was tried: learning_rate (upper end of "
    assert words + "log_uniform(0.0001, 0.1)). Say widen=True." in str(found)
    grid = {"learning_rate": choice(0.1, 0.2, 0.3)}  # what widen refuses isn't recommended
    study = make_study(["adamw", "sgd"], WORKLOAD, steps=10, studies=1, spaces={"adamw": grid, "sgd": grid},
                       design="grid", executor="runs")  # fmt: skip
    assert words + "choice(0.1, 0.2, 0.3)). Give it a wider space." in str(judge(study, played(study, change=edge)))


def test_a_general_optimizer_that_loses_to_its_special_case_is_told():
    found = verdict_of(studied(["adamw", "adam", "sgd"]), shifts={"adamw": 1.0})
    assert "adamw is worse than adam, which is a special case" in str(found)

    def adam(learning_rate):  # of that name, and another one
        return optax.sgd(learning_rate)

    mine = dataclasses.replace(found.study.contenders["adam"], factory=adam)
    other = dataclasses.replace(found.study, contenders={**found.study.contenders, "adam": mine})
    assert "special case" not in str(dataclasses.replace(found, study=other))
    twice = dataclasses.replace(
        found.study, contenders={**found.study.contenders, "sgd": found.study.contenders["adam"]}
    )
    again = dataclasses.replace(found, study=twice)  # a second one of Adam
    assert sum("special case" in line for line in again.lines()) == 2
    assert "special case" not in str(verdict_of(studied(["adamw", "adam", "sgd"]), shifts={"adam": 1.0}))


def test_every_trial_is_a_row():
    study = studied()
    frame = verdict_of(study).frame()
    assert len(frame) == 2 * 5 * (4 + 1)
    assert {"contender", "study", "learning_rate", "validation/loss", "test/loss", "diverged"} <= set(frame)
    assert frame[frame["is_final"]]["test/loss"].notna().all()
    assert frame[~frame["is_final"]]["test/loss"].isna().all()


def test_the_verdict_is_written_as_words_and_as_numbers(tmp_path):
    found = verdict_of(studied(studies=1), shifts={"sgd": 1.0})
    found.write(tmp_path)
    data = json.loads((tmp_path / "verdict.json").read_text())
    assert data["words"] == found.lines()
    assert data["comparisons"]["sgd"]["p"] == "nan"
    text = (tmp_path / "verdict.md").read_text()
    assert found.lines()[0] in text
    assert "| adamw | " in text


def test_a_paired_study_is_compared_study_by_study():
    found = verdict_of(studied(paired=True), shifts={"sgd": 0.02})
    scores = [found.standings[n].scores for n in ("sgd", "adamw")]
    assert found.comparisons["sgd"].difference.value == pytest.approx(
        sum(a - b for a, b in zip(*scores, strict=True)) / 5
    )
    assert found.detectable < 1.8


def test_without_a_test_split_fresh_trainings_are_compared_on_validation():
    without = dataclasses.replace(WORKLOAD, data=dataclasses.replace(WORKLOAD.data, test=None))
    study = studied(workload=without)
    found = judge(study, played(study, change=lambda r: Result(r.trial, r.curve, seconds=0.1)))
    assert study.measure == "validation/loss"
    assert "validation/loss of the winners" in str(found)
