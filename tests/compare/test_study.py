"""The study: who trains what with which seed, who wins, and that nothing is trained twice."""

import dataclasses
import json
import math
import re

import pytest

from optlab.compare import StudyError, _face
from optlab.compare import study as module
from optlab.compare._face import _Progress, conclude
from optlab.compare.driver import run_study
from optlab.compare.plan import make_plan
from optlab.compare.study import make_study
from optlab.compare.trials import Result
from optlab.config import Target

from .cheap import RATES, Pretended, pretended, tiny

WORKLOAD = tiny()


@pytest.fixture(autouse=True)
def nothing_is_trained(monkeypatch):
    monkeypatch.setattr(module, "EXECUTORS", dict.fromkeys(("population", "series", "runs"), Pretended))
    monkeypatch.setattr(Pretended, "trained", [])
    monkeypatch.setattr(Pretended, "stop_after", math.inf)


@pytest.fixture
def untraced(monkeypatch):
    """Leaves what programs compute out of a study's identity: tracing them takes longest here."""
    monkeypatch.setattr(module, "_check_trains", lambda workload, contender: None)
    monkeypatch.setattr(module, "_programs", lambda workload: {})
    monkeypatch.setattr(module, "_described", lambda workload, contender: {"space": str(contender.space)})


def studied(contenders=("adamw", "sgd"), **settings):
    settings = {"trials": 4, "studies": 2, "executor": "runs", **settings}
    return make_study(contenders, WORKLOAD, steps=settings.pop("steps", 10), **settings)


def asked(study, folder):
    """What a call trains."""
    Pretended.trained.clear()
    run_study(study, folder)
    return list(Pretended.trained)


def test_every_tuning_has_points_and_seeds_of_its_own():
    study = studied(["adam", "adamw"], spaces={"adam": RATES, "adamw": RATES})
    found = [study.points(c, s) for c in study.contenders for s in range(2)]
    rates = [p["learning_rate"] for points in found for p in points.values()]
    assert len(set(rates)) == len(rates) == 16
    seeds = [t.seed for c in study.contenders for s in range(2) for t in study.searches(c, s)]
    assert len(set(seeds)) == 16


def test_paired_contenders_share_seeds_and_no_points():
    study = studied(["adam", "adamw"], paired=True)
    a, b = (study.searches(c, 0) for c in ("adam", "adamw"))
    assert [t.seed for t in a] == [t.seed for t in b]
    assert len({t.seed for t in a}) == 4
    assert all(x.values != y.values for x, y in zip(a, b, strict=True))


def test_ids_and_seeds_do_not_depend_on_who_else_is_there():
    few, many = studied(["adamw", "sgd"]), studied(["adamw", "lion", "sgd"], studies=3)
    assert few.searches("sgd", 1) == many.searches("sgd", 1)


def test_the_best_point_wins_and_diverged_ones_come_last():
    study = studied()
    results = {t.id: pretended(t) for t in study.searches("adamw", 0)}
    losses = [r.last("validation/loss") for r in results.values()]
    best = losses.index(min(losses))
    assert study.winner("adamw", 0, results) == best
    won = list(results)[best]
    results[won] = dataclasses.replace(results[won], diverged="step 3")
    assert study.winner("adamw", 0, results) == losses.index(sorted(losses)[1])


def test_a_higher_metric_wins_where_higher_is_better():
    target = Target(metric="validation/accuracy", mode="max")
    study = dataclasses.replace(studied(), workload=dataclasses.replace(WORKLOAD, target=target))
    values = [0.2, 0.9, 0.5, 0.1]
    trials = study.searches("adamw", 0)
    results = {t.id: Result(t, {"step": [1], "validation/accuracy": [v]}) for t, v in zip(trials, values, strict=True)}
    assert study.winner("adamw", 0, results) == 1


def test_several_seeds_of_a_point_are_averaged():
    study = studied(seeds=2)
    trials = study.searches("adamw", 0)
    losses = {0: (0.0, 1.0), 1: (0.4, 0.4), 2: (0.5, 0.5), 3: (0.6, 0.6)}
    results = {t.id: Result(t, {"step": [1], "validation/loss": [losses[t.point][t.repeat]]}) for t in trials}
    assert study.winner("adamw", 0, results) == 1


def test_a_finished_study_trains_nothing(tmp_path, untraced):
    assert len(asked(studied(), tmp_path)) == 2 * 2 * (4 + 1)
    assert asked(studied(), tmp_path) == []


def test_a_study_is_extended_without_repeating_anything(tmp_path, untraced):
    first = asked(studied(), tmp_path)
    more = asked(studied(studies=3), tmp_path)
    assert len(more) == 2 * 5
    assert all("/2/" in t for t in more)
    others = asked(studied(["adamw", "sgd", "lion"], studies=3), tmp_path)
    assert all(t.startswith("lion/") for t in others)
    assert len(others) == 3 * 5
    eight = asked(studied(trials=8), tmp_path)
    assert not set(eight) & set(first)
    assert sum("/search/" in t for t in eight) == 2 * 2 * 4
    assert sum("/final/" in t for t in eight) <= 2 * 2  # a winner that stays is not trained again


def test_a_killed_driver_goes_on_where_it_stood(tmp_path, untraced):
    whole = run_study(studied(), tmp_path / "whole")
    for stop in (1, 7, 17):
        Pretended.trained.clear()
        Pretended.stop_after = stop
        with pytest.raises(KeyboardInterrupt):
            run_study(studied(), tmp_path / str(stop))
        Pretended.stop_after = math.inf
        again = run_study(studied(), tmp_path / str(stop))
        assert again == whole
        assert sorted(Pretended.trained) == sorted(whole)  # each once


def test_a_log_that_was_cut_anywhere_is_completed_and_nothing_is_trained_twice(tmp_path, untraced):
    whole = run_study(studied(trials=2), tmp_path)
    file = tmp_path / "trials.jsonl"
    lines = file.read_text().splitlines(keepends=True)
    assert len(lines) == 2 * 2 * 3
    for kept in (0, 1, 6, 11):  # a tuning's first, another of it, the first of the next one, a winner
        for share in (0.0, 0.5, 1.0):  # of the next line: nothing, a half, all but its end
            part = lines[kept].rstrip("\n")[: int(share * len(lines[kept]))]
            file.write_text("".join(lines[:kept]) + part)
            Pretended.trained.clear()
            assert run_study(studied(trials=2), tmp_path) == whole
            assert len(Pretended.trained) == len(lines) - kept - (share == 1.0), (kept, share)
            assert sorted(json.loads(line)["id"] for line in file.read_text().splitlines()) == sorted(whole)


def test_what_is_there_already_is_not_counted_as_to_be_done(tmp_path, untraced, capsys):
    run_study(studied(), tmp_path)
    more, eight = studied(studies=3), studied(trials=8)
    assert make_plan(more, tmp_path).left == {"adamw": 5, "sgd": 5}
    run_study(more, tmp_path, progress=_Progress(more))
    assert "10 of 10 runs" in capsys.readouterr().err
    plan = make_plan(more, tmp_path)
    assert ": 30 runs, of which 30 are there already: 0 runs, 0 steps, about 0 s\n" in str(plan)
    assert "15 runs (0 left), about 0 s" in str(plan)
    run_study(eight, tmp_path, progress=_Progress(eight))  # whose winners aren't all the old ones
    done = re.search(r"(\d+) of (\d+) runs.* 0 s left\n$", capsys.readouterr().err)
    assert done.group(1) == done.group(2)
    with pytest.raises(StudyError, match="another study: steps"):
        make_plan(studied(steps=20), tmp_path)


def test_a_terminal_has_one_live_line_and_the_time_left_is_that_without_the_compilation(untraced, capsys, monkeypatch):
    now = iter([0.0, 60.0, 61.0, 63.0])
    monkeypatch.setattr(_face.time, "monotonic", lambda: next(now))
    monkeypatch.setattr(_face.sys.stderr, "isatty", lambda: True, raising=False)
    monkeypatch.setenv("COLUMNS", "60")
    result = pretended(studied().searches("sgd", 0)[0])
    with _Progress(studied()) as progress:
        for count in (2, 1, 2):
            progress("sgd", [result] * count)
    lines = [f"sgd, {n} of 20 runs, {t} s{left}" for n, t, left in ((2, 60, ""), (3, 61, ", 17 s left"))]
    lines.append("sgd, 5 of 20 runs, 63 s, 15 s left")
    assert capsys.readouterr().err == "".join(f"\roptlab: {line}\x1b[K" for line in lines) + "\n"


def test_a_study_of_another_length_is_refused(tmp_path, untraced):
    run_study(studied(), tmp_path)
    with pytest.raises(StudyError, match=r"another study: steps \(10 there, 20 here\)"):
        run_study(studied(steps=20), tmp_path)


def test_a_factory_that_computes_something_else_is_refused_wherever_in_its_space(tmp_path):
    import optax

    from optlab.compare import choice

    def again(middle, other):
        factory = lambda kind: optax.sgd({"a": other, "b": middle}[kind])
        space = {"kind": choice("a", "b")}
        return make_study({"mine": factory, "sgd": "sgd"}, WORKLOAD, steps=10, trials=2, spaces={"mine": space},
                          executor="runs")  # fmt: skip

    run_study(again(0.1, 0.2), tmp_path)
    measured = lambda *arguments: (lambda loss: (loss[0], (loss[1][0], {**loss[1][1], "more": loss[1][1]["loss"]})))(
        WORKLOAD.loss(*arguments)
    )
    other = dataclasses.replace(again(0.1, 0.2), workload=dataclasses.replace(WORKLOAD, loss=measured))
    with pytest.raises(StudyError, match=r"another study: programs.evaluation \("):
        run_study(other, tmp_path)
    with pytest.raises(StudyError, match=r"another study: mine.step \("):
        run_study(again(0.3, 0.2), tmp_path)
    with pytest.raises(StudyError, match=r"another study: mine.step, kind='a' \("):
        run_study(again(0.1, 0.3), tmp_path)


@pytest.mark.parametrize("asked", [None, "runs", "series"])
def test_an_optimizer_that_cannot_train_is_refused_before_anything_is_trained(asked):
    import optax

    def broken(learning_rate):
        def update(updates, state, params=None):
            raise RuntimeError("boom\nbang")

        return optax.GradientTransformation(lambda params: optax.EmptyState(), update)

    with pytest.raises(StudyError, match=r"contender 'mine' can't train MLP: RuntimeError: boom$"):
        studied({"sgd": "sgd", "mine": broken}, executor=asked)
    with pytest.raises(StudyError, match=r"MLP has no batches to train on: .*batch_size"):
        make_study(["adam", "sgd"], dataclasses.replace(WORKLOAD, batch_size=65), steps=10)


def test_two_drivers_do_not_write_to_one_folder(tmp_path, untraced):
    from optlab.runs import CheckpointError
    from optlab.runs._lock import WriterLock

    held = WriterLock(tmp_path).held()
    with held, pytest.raises(CheckpointError, match="is being written by process"):
        run_study(studied(), tmp_path)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"studies": 0}, "studies must be a whole number of at least 1, got 0"),
        ({"steps": 2.5}, "steps must be a whole number of at least 1, got 2.5"),
        ({"trials": 2.5}, "trials must be a whole number of at least 1, got 2.5"),
        ({"trials": 6}, "trials must be a power of two"),
        ({"trials": 1}, "trials must be at least 2 for the 1 hyperparameters of adamw"),
        ({"baseline": "adamv"}, "baseline='adamv' is no contender; did you mean 'adamw'"),
        ({"spaces": {"adamw": RATES["learning_rate"]}}, "the space of 'adamw' must be a dict by argument"),
        ({"spaces": {"adma": RATES}}, "spaces has 'adma', which is no contender"),
        ({"design": "random"}, "design must be one of 'sobol', 'grid', got 'random'"),
        ({"design": "grid", "trials": None}, "design=grid needs choices"),
        ({"executor": "dask"}, "executor must be one of 'population', 'series', 'runs', None, got 'dask'"),
        ({"evaluate_every": 11}, r"evaluate_every must be a whole number in \[1, 10\], got 11"),
        ({"evaluate_every": 2.5}, r"evaluate_every must be a whole number in \[1, 10\], got 2.5"),
        ({"paired": "no"}, "paired must be True or False, got 'no'"),
        ({"seed": "a"}, "seed must be a whole number, got 'a'"),
        ({"seed": -1}, r"seed must lie in \[0, 2\*\*32\), got -1"),
        ({"schedule": "cosine"}, "schedule must be a function .* got 'cosine'"),
        ({"before": "clip"}, "before must be an optax transformation, or None, got 'clip'"),
        ({"spaces": [RATES]}, "spaces must be a dict of search spaces by contender"),
        ({"baseline": 0}, "baseline=0 is no contender"),
        ({"baseline": ["sgd"]}, r"baseline=\['sgd'\] is no contender"),
        ({"contenders": "adam"}, "contenders must be a dict, or a list of names, got 'adam'"),
        ({"contenders": ["adam", "adam"]}, "contenders has 'adam' twice"),
        ({"contenders": ["adam", max]}, "contenders in a list must be names, got <built-in"),
        ({"contenders": ["adamw"]}, "needs at least two contenders, got adamw"),
    ],
)
def test_bad_input_is_refused_by_name(settings, message):
    with pytest.raises(StudyError, match=message) as error:
        studied(**settings)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("bad", [3, "", True])
def test_a_folder_of_another_kind_is_refused(bad):
    with pytest.raises(StudyError, match=f"folder must be a path, or None to keep nothing, got {bad!r}"):
        run_study(studied(), bad)


@pytest.mark.parametrize("name", ["quiet", "widen"])
@pytest.mark.parametrize("bad", ["no", 0, None])
def test_what_is_neither_true_nor_false_is_refused_before_anything_is_trained(name, bad):
    with pytest.raises(StudyError, match=f"{name} must be True or False, got {bad!r}"):
        conclude(studied(), **{name: bad})
    assert Pretended.trained == []


def test_a_comparison_needs_a_validation_split():
    without = dataclasses.replace(WORKLOAD, data=dataclasses.replace(WORKLOAD.data, validation=None))
    with pytest.raises(StudyError, match="chooses by the validation split"):
        make_study(["adam", "sgd"], without, steps=10)
    on_train = dataclasses.replace(WORKLOAD, target=Target(metric="train/loss"))
    with pytest.raises(StudyError, match=r"target\.metric is train/loss"):
        make_study(["adam", "sgd"], on_train, steps=10)
    misspelt = dataclasses.replace(WORKLOAD, target=Target(metric="validation/acuracy", mode="max"))
    with pytest.raises(StudyError, match=r"acuracy isn't measured; did you mean 'validation/accuracy'"):
        make_study(["adam", "sgd"], misspelt, steps=10)


def test_the_baseline_stands_first():
    assert list(studied(["sgd", "adam"], baseline="adam").contenders) == ["adam", "sgd"]


def test_a_plan_times_a_few_steps_of_every_contender_and_counts_all_runs():
    plan = make_plan(studied(seeds=2, finals=3, steps=100))
    assert plan.trials == {"adamw": 2 * (4 * 2 + 3), "sgd": 2 * (4 * 2 + 3)}
    assert len(Pretended.trained) == 2 * 2
    assert "44 runs, 4,400 steps, about " in str(plan)
    assert f"a difference of {plan.detectable:.1f} standard deviations" in str(plan)


def test_a_plan_of_one_study_says_that_nothing_can_be_found():
    assert "With one study there is no interval" in str(make_plan(studied(studies=1)))
