"""Rules on curves made by hand, and the diagnosis of real runs."""

import dataclasses
import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import optlab
from optlab.commands import main
from optlab.config import Component, Config, to_json
from optlab.diagnosis import Diagnosis, Evidence, Watch, examine
from optlab.diagnosis._layers import Layer, ModelProbe
from optlab.diagnosis._rules import CURVE_RULES as RULES
from optlab.training import Workload, train

T = np.arange(5, 305, 5)
RNG = np.random.default_rng(0)


def curves(
    loss, norm, *, held_out=None, rate=None, scale=1.0, outcome="finished", settings=None, accuracy=False, skipped=()
):
    """Evidence of sixty records; the held-out loss in every third one."""
    metrics = {"step": T, "train/loss": scale * loss, "train/gradient_norm": norm * np.ones(len(T))}
    if held_out is not None:
        metrics["validation/loss"] = np.where(np.arange(len(T)) % 3 == 2, scale * held_out, np.nan)
    if rate is not None:
        metrics["learning_rate"] = rate
    if accuracy:
        metrics["train/accuracy"] = 0.1 * np.ones(len(T))
    return Evidence("made", metrics, settings or {}, outcome, skipped)


FALL = 2.4 * np.exp(-T / 60) + 0.02  # a healthy loss
COSINE = 0.5 * (1 + np.cos(np.pi * T / 300))
WARM = np.minimum(T / 20, 1) * COSINE
WAY = np.cumsum(WARM) / np.sum(WARM)
SCATTER = RNG.normal(0, 0.1, len(T))
HEALTHY = {"loss": FALL * (1 + SCATTER / 2), "norm": 2 * np.sqrt(FALL), "held_out": FALL + 0.1, "rate": WARM}
FLAT = 2.4 + SCATTER / 2

ILL = {
    "diverged": {**HEALTHY, "loss": 2.4 * np.exp(T / 100)},
    "diverged ": {**HEALTHY, "outcome": "NonFiniteError"},
    "nothing moves": {**HEALTHY, "loss": FLAT, "norm": 2.0, "held_out": 2.4 * np.ones(len(T))},
    "starts far off": {**HEALTHY, "loss": FALL + 400 * np.exp(-T / 5), "accuracy": True},
    "weight decay too strong": {
        **HEALTHY,
        "loss": FLAT,
        "settings": {"optimizer.weight_decay": 100.0, "optimizer.learning_rate": 3e-3},
    },
    "warm-up too short": {**HEALTHY, "loss": FALL + 20 * np.exp(-(((T - 60) / 20) ** 2)), "rate": np.ones(len(T))},
    "learning rate too high": {**HEALTHY, "loss": FALL + 20 * np.exp(-(((T - 120) / 60) ** 2))},
    "learning rate too high  ": {**HEALTHY, "loss": 2.4 + T / 150 + SCATTER, "norm": 2.0, "held_out": 2.4 + T / 150},
    "learning rate too high ": {"loss": FLAT, "norm": 2 * np.exp(-T / 10) + 0.1, "held_out": FLAT},
    "schedule ended too early": {**HEALTHY, "rate": np.where(T < 100, 1.0, 0.0)},
    "warm-up too long": {**HEALTHY, "rate": np.where(T < 280, T / 280, 0.5)},
    "clipped nearly always": {"loss": FLAT - T / 1000, "norm": 2.0, "rate": WARM, "settings": {"clip_norm": 1e-3}},
    "splits differ": {**HEALTHY, "held_out": 20 * FALL + 1},
    "learns nothing": {"loss": FLAT - 0.02 * (T > 5), "norm": 2.0, "held_out": FLAT - 0.02 * (T > 20), "rate": WARM},
    "nothing moves ": {"loss": FLAT, "norm": 2.0, "rate": np.zeros(len(T))},
    "memorizing": {**HEALTHY, "held_out": 2.4 + T / 600},
    "memorizing ": {"loss": 2.4 - T / 1500 + SCATTER / 5, "norm": 2.0, "held_out": 2.4 + T / 1500, "rate": WARM},
    "learning rate too low": {"loss": FLAT - T / 1000, "norm": 2.0, "held_out": 2.4 - WAY / 4, "rate": WARM},
    "noisy": {
        "loss": FALL + 4 + 9 * SCATTER,
        "norm": 2.0,
        "held_out": 1 + 0.8 * FALL + 4 * SCATTER,
        "rate": np.ones(len(T)),
    },
    "overfitting": {**HEALTHY, "held_out": FALL + 0.1 + 2 * (T / 300) ** 3},
}


def names(evidence):
    return [finding.name for rule in RULES if (finding := rule(evidence)) is not None]


@pytest.mark.parametrize("name", ILL)
def test_each_ill_is_named_first(name):
    assert names(curves(**ILL[name]))[:1] == [name.strip()]


NOTES = {
    "spikes": {**HEALTHY, "loss": HEALTHY["loss"] + 4.0 * (T == 200)},
    "still improving": {**HEALTHY, "loss": 2.4 - T / 200, "held_out": 2.4 - T / 200, "rate": np.ones(len(T))},
    "data in order": {**HEALTHY, "settings": {"draw": "ordered"}},
    "steps skipped": {**HEALTHY, "skipped": (7,)},
}


@pytest.mark.parametrize("name", NOTES)
def test_each_note_stands_alone(name):
    found = [finding for rule in RULES if (finding := rule(curves(**NOTES[name]))) is not None]
    assert [(finding.name, finding.severity) for finding in found] == [(name, "note")]


def test_every_rule_has_a_curve():
    made = [curves(**kwargs) for kwargs in (*ILL.values(), *NOTES.values())]
    assert [rule.__name__ for rule in RULES if all(rule(evidence) is None for evidence in made)] == []


@given(st.floats(0.01, 3), st.floats(0.005, 0.1), st.integers(0, 99), st.floats(30, 90))
def test_a_loss_that_falls_is_healthy(first, floor, seed, time):
    scatter = 1 + np.random.default_rng(seed).normal(0, 0.05, len(T))
    fall = first * np.exp(-T / time) + floor * first
    assert names(curves(fall * scatter, np.sqrt(fall / first), held_out=1.2 * fall, rate=WARM)) == []


@pytest.mark.parametrize("name", sorted({*ILL} - {"starts far off"}))
@pytest.mark.parametrize("scale", [1e-3, 1e3])
def test_the_unit_of_the_loss_does_not_matter(name, scale):
    assert names(curves(**ILL[name], scale=scale)) == names(curves(**ILL[name]))


def test_a_nan_that_was_logged_names_its_step():
    made = curves(**HEALTHY)
    loss = np.where(T == 150, np.inf, made.metrics["train/loss"])
    (finding, *_) = [f for rule in RULES if (f := rule(Evidence("made", {**made.metrics, "train/loss": loss})))]
    assert "wasn't finite at step 150" in finding.because


def test_a_batch_is_judged_by_the_spread_of_batches_about_the_held_out_loss():
    scattered = (1 + FALL) * np.random.default_rng(3).chisquare(1, len(T))  # of single examples
    scattered[0] = 1e-3
    made = curves(scattered, 2.0, held_out=1 + FALL)
    assert not {"diverged", "learning rate too high", "warm-up too short", "overfitting"} & set(names(made))
    rising = curves(scattered * np.exp(T / 60), 2.0, held_out=(1 + FALL) * np.exp(T / 60))
    assert names(rising)[0] == "diverged"


def test_losses_below_0_are_judged_by_their_differences():
    assert names(curves(FALL * (1 + SCATTER / 2) - 5, 2.0, held_out=FALL - 4.9, rate=WARM)) == []
    assert names(curves(FALL * (1 + SCATTER / 2) - 2.4, 2.0, held_out=FALL - 2.3, rate=WARM)) == []
    without_bound = -2 * np.exp(T / 30)
    (found, *_) = examine(curves(without_bound, 2.0, held_out=without_bound, accuracy=True))
    assert (found.name, "sign" in found.try_) == ("diverged", True)


def test_a_model_that_was_trained_before_knows_its_training_examples_better():
    fine = {"loss": 0.016 * np.exp(-T / 900) * (1 + SCATTER), "norm": 0.1, "held_out": 0.13 + 0.01 * np.exp(-T / 50)}
    assert {"splits differ", "noisy"} & set(names(curves(**fine))) == set()


def test_what_was_learned_and_lost_again_is_overfitting():
    fall = 1 - 0.2 * np.minimum(T / 60, 1)
    made = curves(np.exp(-T / 40), 2.0, held_out=np.where(T < 60, fall, fall + (T - 60) / 900))
    assert names(made) == ["overfitting"]


@pytest.mark.parametrize("ending", [{"settings": {"steps": 3000}}, {"outcome": None}])
def test_a_run_that_goes_on_is_not_judged_by_the_length_of_its_schedule(ending):
    rises = {**HEALTHY, "rate": T / 300}
    assert "warm-up too long" in names(curves(**rises))
    assert "warm-up too long" not in names(curves(**{**rises, **ending}))


def test_a_loss_that_rose_is_not_said_to_have_fallen():
    decay = {"optimizer.weight_decay": 100.0, "optimizer.learning_rate": 3e-3}
    (found, *_) = examine(curves(2.2 + T / 3000, 2.0, settings=decay))
    assert (found.name, "train/loss rose from 2.2" in found.because) == ("weight decay too strong", True)


def test_what_is_far_off_after_some_updates_needs_a_probe_and_what_rises_then_is_a_high_rate():
    (found, *_) = examine(curves(30 * np.exp(-T / 300), 1.0, accuracy=True))
    assert (found.name, found.needs_probe) == ("starts far off", True)
    rising = curves(FALL + 20 * (1 + np.sin(T / 100)), 1.0, accuracy=True)
    assert names(rising)[0] == "learning rate too high"


def folder(path, loss=FALL, **summary):
    path.mkdir()
    lines = [{"step": int(t), "train/loss": float(x), "train/gradient_norm": 2.0} for t, x in zip(T, loss, strict=True)]
    (path / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    (path / "summary.json").write_text(json.dumps({"outcome": "finished", "skipped": [], **summary}))
    return path


def test_the_command_says_it_writes_it_and_its_exit_code_is_the_verdict(tmp_path, capsys):
    well, ill = folder(tmp_path / "well"), folder(tmp_path / "ill", loss=2.4 * np.exp(T / 100), skipped=[7])
    assert main(["diagnose", str(well)]) == 0
    out = capsys.readouterr().out
    assert f"{well}, 300 steps: healthy by its curves\nCurves don't show leaks" in out
    assert f'next: print(optlab.diagnose("{well}", probe=True, workload=workload, tx=tx))  # in Python' in out
    assert main(["diagnose", str(well), str(ill)]) == 1
    out = capsys.readouterr().out
    assert f"{ill}, 300 steps: diverged" in out
    assert "left out 1 steps, the first at 7" in out
    assert "## diverged (ill)" in (ill / "diagnosis.md").read_text()
    assert (ill / "diagnosis.png").stat().st_size > 10_000


@pytest.mark.parametrize(
    ("name", "message"), [("none", "is no folder"), ("empty", "nothing was logged"), ("other", "has no train/loss")]
)
def test_what_is_no_run_is_one_line(tmp_path, capsys, name, message):
    (tmp_path / "empty").mkdir()
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "metrics.jsonl").write_text('{"step": 1, "loss": 2.0}\n')
    assert main(["diagnose", str(tmp_path / name)]) == 2
    err = capsys.readouterr().err
    assert message in err
    assert len(err.splitlines()) == 1


def test_runs_that_can_be_read_are_diagnosed_beside_one_that_cannot(tmp_path, capsys):
    well, later = folder(tmp_path / "well"), folder(tmp_path / "later", outcome=None)
    assert main(["diagnose", str(well), str(tmp_path / "none"), str(later), str(tmp_path / "gone")]) == 2
    out, err = capsys.readouterr()
    assert f"{well}, 300 steps: healthy by its curves" in out
    assert f"{later}, 300 steps: healthy by its curves" in out
    assert out.count("The run hasn't ended") == 1
    assert [line.split(" is ")[0] for line in err.splitlines()] == [f"optlab: {tmp_path / n}" for n in ("none", "gone")]


def test_the_next_command_is_the_cure_in_a_folder_of_its_own(tmp_path):
    path = folder(tmp_path / "a", loss=2.4 - T / 3000)
    rate = Component("adamw", {"learning_rate": 1e-7})
    config = Config(data=Component("digits"), model=Component("mlp"), optimizer=rate, steps=300)
    (path / "config.json").write_text(json.dumps({"config": to_json(config)}))
    found = optlab.diagnose(path)
    assert found.findings[0].name == "learning rate too low"
    assert found.command == f"optlab train {path}/config.json optimizer.learning_rate=3e-07 --run {path}-next"
    (path / "metrics.jsonl").write_text((folder(tmp_path / "b") / "metrics.jsonl").read_text())
    assert optlab.diagnose(path).command == f"optlab diagnose {path} --probe"


@pytest.mark.parametrize("name", ["probe", "twins"])
def test_of_a_run_of_python_what_is_needed_is_named(tmp_path, capsys, name):
    path = folder(tmp_path / "a")
    (path / "config.json").write_text(json.dumps({"train": {"workload": "mine", "steps": 300, "seed": 3}}))
    assert main(["diagnose", str(path), f"--{name}"]) == 2
    way = f'print(optlab.diagnose("{path}", {name}=True, workload=workload, tx=tx))'
    assert capsys.readouterr().err == (
        f"optlab: {path} has no config, which holds what was trained; in its script say {way}\n"
    )
    if name == "probe":
        assert optlab.diagnose(path).command == f"{way}  # in Python, with what was trained"


ENDS = {  # outcome, error, step -> first name, its evidence, whether a config's next command is the probe
    "soon": ("NonFiniteError", "step 5: the loss is nan. Lower it", 5, "diverged", "step 5: the loss is nan", True),
    "late": ("NonFiniteError", "step 300: the loss is nan. Lower it", 300, "diverged", "step 300: the loss is", False),
    "spike": ("LossSpikeError", "step 300: the loss is 9. Lower it", 300, "spikes", "step 300: the loss is 9", False),
    "labels": ("LabelError", "step 5: needs labels from 0 to 9. Say", 5, "labels out of range", "step 5: needs", True),
    "data": ("DataError", "example 7 is torn", 300, "data refused", "example 7 is torn", True),
}


@pytest.mark.parametrize("name", ENDS)
def test_a_run_that_an_error_ended_is_named_by_it(name):
    outcome, error, end, ill, because, is_probe = ENDS[name]
    count = list(T).index(end) + 1
    metrics = {"step": T[:count], "train/loss": np.array([*FALL[: count - 1], np.nan])}
    evidence = Evidence("made", metrics, {"optimizer.learning_rate": 0.1}, outcome, error=error)
    found = Diagnosis(evidence, examine(evidence))
    assert found.verdict == ill
    assert found.findings[0].because.startswith(because)
    assert "Lower" not in found.findings[0].because
    assert (found.command == "optlab diagnose made --probe") is is_probe


def test_what_is_neither_a_run_nor_a_history_is_refused():
    with pytest.raises(TypeError, match="a run's folder, a Run or the History that train returned, got 3"):
        optlab.diagnose(3)


def test_a_history_is_diagnosed():
    work = Workload.digits()
    history = train(work, optlab.sgd(0.0), steps=12, log_every=1, evaluate_every=3)
    found = optlab.diagnose(history)
    assert (found.name, found.steps, found.findings[0].name) == ("history", 12, "nothing moves")
    assert found.command.startswith("print(optlab.diagnose(history, probe=True, workload=workload, tx=tx))")


def watched(loss, start=0, held_out=FALL, settings=None, accuracy=False, reported=None):
    made, said = curves(loss, 1.0, held_out=held_out, accuracy=accuracy), []
    watch = Watch(settings or {}, said.append)
    watch.begin(start, 300)
    for i in range(len(T)):
        if i == reported:
            watch.reported()
        watch.record({name: values[i] for name, values in made.metrics.items() if np.isfinite(values[i])})
    watch.end("finished")
    return said


def test_a_watched_run_says_what_is_sure_once_and_early():
    (line,) = watched(2.4 * np.exp(T / 40))
    assert line.startswith("optlab: step 60: diverged: ")
    assert watched(2.4 * np.exp(T / 40), reported=9) == []  # the run itself has said something
    (line,) = watched(FLAT + 400, accuracy=True)
    assert line.startswith("optlab: step 5: starts far off: ")
    (line,) = watched(FLAT, settings={"optimizer.weight_decay": 100.0, "optimizer.learning_rate": 3e-3})
    assert line.startswith("optlab: step 15: weight decay too strong: ")
    assert watched(FALL * (1 + SCATTER / 2)) == []
    assert watched(2.4 * np.exp(T / 40), start=5) == []  # what it began with isn't known


def test_a_model_that_knows_something_has_learned_before_the_first_record():
    made = curves(**ILL["learns nothing"], accuracy=True)
    assert names(made) == ["learns nothing"]  # a tenth is right: a guess among ten
    known = {**made.metrics, "train/accuracy": np.full(len(T), 0.4)}
    assert names(dataclasses.replace(made, metrics=known)) == []
    assert names(dataclasses.replace(made, model=ModelProbe(300, (), 2.4, 5.0), metrics=known)) == []


def test_a_rate_under_which_a_model_learned_something_is_low_in_a_note():
    made = curves(**ILL["learning rate too low"])
    known = {**made.metrics, "train/accuracy": np.full(len(T), 0.4)}
    assert [f.severity for f in examine(dataclasses.replace(made, metrics=known))] == ["note"]
    assert [f.severity for f in examine(made)] == ["note"]  # a guess may be anywhere
    guesses = {**made.metrics, "train/accuracy": np.full(len(T), 0.1)}
    assert [f.severity for f in examine(dataclasses.replace(made, metrics=guesses))] == ["ill"]


def test_a_rate_under_which_a_matrix_became_another_one_is_not_too_low():
    made = curves(**ILL["learning rate too low"])
    for turned, found in ((0.3, ["learning rate too low"]), (0.8, [])):
        layer = Layer("a", "matrix", (9, 9), 1.0, 1.0, turned=turned)
        assert names(dataclasses.replace(made, model=ModelProbe(300, (layer,), 2.1, 2.4))) == found


def test_a_flat_loss_that_goes_up_and_down_is_noisy_where_a_probe_finds_no_other_cause():
    walk = 2.4 + 0.06 * np.sin(T / 8)
    made = curves(FLAT, 2.0, held_out=walk, rate=np.ones(len(T)))
    assert names(made) == ["learns nothing"]  # labels without a meaning look alike
    assert [f.name for f in examine(dataclasses.replace(made, model=ModelProbe(300, (), 2.4, 2.4)))] == ["noisy"]


def test_a_probe_separates_a_high_rate_from_a_bad_start():
    made = curves(**ILL["starts far off"])
    usual, large = (ModelProbe(300, (), 0.1, loss) for loss in (2.3, 300.0))
    assert names(dataclasses.replace(made, model=usual))[0] == "learning rate too high"
    assert names(dataclasses.replace(made, model=large))[0] == "starts far off"


def test_one_evaluation_alone_is_not_noisy():
    made = curves(**{**HEALTHY, "rate": np.ones(len(T))})
    when = np.flatnonzero(np.isfinite(made.metrics["validation/loss"]))
    for outliers in ([14], [14, 17]):
        lone = made.metrics["validation/loss"].copy()
        lone[when[outliers]] += 1.5
        found = names(dataclasses.replace(made, metrics={**made.metrics, "validation/loss": lone}))
        assert ("noisy" in found) == (len(outliers) > 1)


def test_a_schedule_that_ended_before_the_first_evaluation_is_why_nothing_moves():
    still = {**HEALTHY, "loss": FLAT, "held_out": 2.4 * np.ones(len(T)), "rate": np.where(T < 10, 1.0, 0.0)}
    assert names(curves(**still))[0] == "schedule ended too early"


def test_a_gradient_that_is_gone_with_the_training_loss_is_no_collapse():
    made = curves(FALL, 2 * FALL, held_out=2.4 + T / 600, rate=WARM)
    assert names(made) == ["memorizing"]


def test_what_was_learned_before_the_first_evaluation_is_not_memorized():
    assert "memorizing" not in names(curves(**{**HEALTHY, "held_out": 1.7 + 0 * T}))
    high = curves(**{**HEALTHY, "held_out": 2.3 + 0 * T})
    assert "memorizing" in names(high)
    knows = ModelProbe(300, (), 0.1, 2.4, association=9.0)
    assert "memorizing" not in names(dataclasses.replace(high, model=knows))


def test_a_loss_far_above_the_first_one_shows_no_knowledge():
    made = curves(2.4 + T / 3, 2.0, accuracy=True)
    assert made.knows is None


def test_what_is_best_at_the_first_evaluation_is_overfitting_where_a_probe_saw_that_something_held():
    high = curves(**{**HEALTHY, "held_out": 2.3 + T / 300})
    assert names(high)[0] == "memorizing"
    assert names(dataclasses.replace(high, model=ModelProbe(300, (), 0.1, 2.4, association=9.0))) == ["overfitting"]


def test_a_loss_that_stays_is_a_note_where_no_figure_says_what_a_guess_has():
    made = curves(**ILL["learns nothing"])
    assert [f.severity for f in examine(made)] == ["note"]
    assert [f.severity for f in examine(curves(**ILL["learns nothing"], accuracy=True))] == ["ill"]
