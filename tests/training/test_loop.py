"""The loop: what is logged when, how a run ends, and that continuing one changes nothing."""

import dataclasses
import itertools
import os
import signal
import threading
import time
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import linen as nn

from optlab.config import Stop, Target
from optlab.data import Batches, arrays
from optlab.models.resnet import ResNet
from optlab.training import (
    CheckpointError,
    Checkpoints,
    DeviceMemoryError,
    MetricsFile,
    NonFiniteError,
    Workload,
    init_state,
    load_params,
    make_mesh,
    parallel,
    read_metrics,
    signals,
    train,
)
from optlab.training.clock import Clock
from optlab.training.judge import Judge, norm_bound
from optlab.training.losses import squared_error
from optlab.training.packed import PackedMetrics, unless_small

RNG = np.random.default_rng(1)
X = RNG.normal(size=(100, 4)).astype(np.float32)
Y = X @ np.array([1.0, -2.0, 0.5, 3.0], np.float32) + 0.1 * RNG.normal(size=100).astype(np.float32)


def workload(*, target=None, poison_after=None, noise=0.0):
    """Linear regression with optional dropout-like noise, and a loss that can stop being a number."""

    def init(key):
        return {"w": 0.1 * jax.random.normal(key, (4,))}, {}

    def loss(params, model_state, batch, key, train):
        outputs = batch["inputs"] @ params["w"] + noise * jax.random.normal(key, batch["inputs"].shape[:1])
        errors = jnp.square(outputs - batch["labels"])
        total, count = errors.sum(), jnp.float32(errors.size)
        return total / count, (model_state, {"loss": (total, count)})

    source = arrays(X, Y, validation=0.2, test=0.2)
    return Workload("regression", source, init, loss, 16, target or Target())


def bits(tree):
    return [np.asarray(x).tobytes() for x in jax.tree.leaves(tree)]


class Watcher:
    """An observer that writes down what it is told, and can act at a step."""

    def __init__(self, act=None, at=None):
        self.told, self.act, self.at = [], act, at

    def begin(self, start, steps):
        self.told.append(("begin", start, steps))

    def record(self, record):
        self.told.append(record["step"])
        if record["step"] == self.at:
            self.act()

    def end(self, outcome):
        self.told.append(("end", outcome))


def test_records_are_unique_ascending_and_joined_with_evaluations():
    watcher = Watcher()
    history = train(workload(), optax.sgd(0.05), steps=50, log_every=4, evaluate_every=10, observers=[watcher])
    steps = [r["step"] for r in history.records]
    assert steps == sorted({*range(4, 51, 4), *range(10, 51, 10)})
    assert watcher.told == [("begin", 0, 50), *steps, ("end", "finished")]
    evaluated = [r["step"] for r in history.records if "validation/loss" in r]
    assert evaluated == [10, 20, 30, 40, 50]
    assert [r["step"] for r in history.records if "test/loss" in r] == [50]
    assert all("train/loss" in r and "train/gradient_norm" in r for r in history.records)


def test_the_logged_loss_is_that_of_the_steps_own_batch():
    history = train(workload(), optax.sgd(0.0), steps=3, log_every=1)
    w = np.asarray(history.state.params["w"])
    batches = Batches(workload().data.train, 16, seed=0)
    for record in history.records:
        batch = batches.batch(record["step"] - 1)
        expected = np.mean((batch["inputs"] @ w - batch["labels"]) ** 2)
        assert record["train/loss"] == pytest.approx(expected, rel=1e-5)


def test_schedules_are_logged_at_the_step_they_moved():
    schedule = optax.linear_schedule(1.0, 0.0, 10)
    history = train(workload(), optax.sgd(0.01), steps=10, log_every=1, schedules={"learning_rate": schedule})
    assert history["learning_rate"][1].tolist() == pytest.approx([float(schedule(t)) for t in range(10)])


def test_continuing_gives_the_bits_of_a_run_that_never_stopped(tmp_path):
    make = lambda steps, folder: train(
        workload(noise=0.1),
        optax.adamw(0.01),
        steps=steps,
        ema=0.9,
        log_every=3,
        checkpoints=Checkpoints(tmp_path / folder / "checkpoints", every=7),
        evaluate_every=5,
        observers=[MetricsFile(tmp_path / folder / "metrics.jsonl")],
    )
    whole = make(40, "whole")
    for steps in (11, 25, 40):
        parts = make(steps, "parts")
    assert bits(parts.state.params) == bits(whole.state.params)
    assert bits(parts.state.ema) == bits(whole.state.ema)
    assert bits(parts.state.opt_state) == bits(whole.state.opt_state)
    assert parts.best == whole.best
    ours, theirs = (read_metrics(tmp_path / name) for name in ("parts", "whole"))
    assert [r["step"] for r in ours] == sorted({r["step"] for r in ours})
    shared = {r["step"]: r for r in theirs}
    assert all(shared[r["step"]]["train/loss"] == r["train/loss"] for r in ours if r["step"] in shared)


def test_a_record_says_how_many_examples_and_epochs_and_how_much_time_it_took(tmp_path, monkeypatch):
    """Evaluations and saves aren't counted; what passes between them is, once, however often the run is continued."""
    now = SimpleNamespace(passed=0.0)
    monkeypatch.setattr("optlab.training.clock.time", SimpleNamespace(monotonic=lambda: now.passed))
    save = Checkpoints.save
    wait = lambda seconds: setattr(now, "passed", now.passed + seconds)
    monkeypatch.setattr(Checkpoints, "save", lambda *args, **kwargs: (wait(1000), save(*args, **kwargs)))
    evaluated = SimpleNamespace(begin=lambda *_: None, end=lambda *_: wait(10), evaluated=lambda *_: wait(100))
    evaluated.record = lambda record: wait(1) if "validation/loss" not in record else None
    make = lambda steps: train(
        workload(),
        optax.sgd(0.01),
        steps=steps,
        log_every=1,
        evaluate_every=2,
        checkpoints=Checkpoints(tmp_path, every=3),
        observers=[evaluated],
    )
    for steps in (2, 3, 7):
        make(steps)
    records = read_metrics(tmp_path)
    assert [r["examples"] for r in records] == [16 * t for t in range(1, 8)]
    assert [r["epoch"] for r in records] == [round(16 * t / 60, 4) for t in range(1, 8)]
    assert [r["seconds"] for r in records] == [0, 1, 1, 1, 1, 2, 2]  # when its metrics were read


def test_a_part_of_the_validation_split_is_judged_and_the_last_record_has_all_of_it():
    data = workload().data
    assert len(data.validation) == 20
    half = data.validation.take(np.arange(16))
    part = SimpleNamespace(
        train=data.train, validation=arrays(half["inputs"], half["labels"], validation=0, test=0).train, test=None
    )
    judged = lambda work, **settings: train(work, optax.sgd(0.05), steps=4, evaluate_every=2, **settings)
    some = judged(workload(), evaluate_batches=1)
    first = judged(dataclasses.replace(workload(), data=part))
    whole = judged(workload())
    expected = [first["validation/loss"][1][0], whole["validation/loss"][1][-1]]
    assert some["validation/loss"][1].tolist() == pytest.approx(expected, rel=1e-5)
    assert some.best == pytest.approx(first.best, rel=1e-5)
    assert some.best != pytest.approx(whole.best, rel=1e-3)


def test_another_part_is_another_run_and_its_best_is_not_taken_over(tmp_path):
    go = lambda steps, **settings: train(
        workload(), optax.sgd(0.05), steps=steps, evaluate_every=1, checkpoints=Checkpoints(tmp_path), **settings
    )
    go(2, evaluate_batches=1)
    with pytest.raises(CheckpointError, match=r"evaluate_batches \(1 there, None here\)"):
        go(3)
    assert go(3, allow_change=("evaluate_batches",)).best[0] == 3


def test_data_that_makes_its_own_batches_has_no_epochs():
    own = Batches(workload().data.train, 16, seed=0)
    batches = SimpleNamespace(train=SimpleNamespace(batch=own.batch), validation=None, test=None)
    history = train(dataclasses.replace(workload(), data=batches), optax.sgd(0.01), steps=1)
    assert {"step", "seconds"} <= set(history.records[0]).difference({"examples", "epoch"}) == set(history.records[0])


def test_a_clock_that_is_stopped_does_not_count(monkeypatch):
    times = iter([1.0, 3.0, 10.0, 12.5])
    monkeypatch.setattr("optlab.training.clock.time", SimpleNamespace(monotonic=lambda: next(times)))
    clock = Clock()
    clock.start()
    with clock.stopped():
        assert clock.seconds == 2.0
    assert clock.seconds == 4.5


def test_continuing_a_finished_run_does_nothing(tmp_path):
    make = lambda: train(workload(), optax.sgd(0.1), steps=5, checkpoints=Checkpoints(tmp_path))
    first, second = make(), make()
    assert second.records == first.records
    assert second.outcome == "finished"
    assert bits(first.state.params) == bits(second.state.params)
    with pytest.raises(ValueError, match="steps must be at least 5, which the run has behind it, got 3"):
        train(workload(), optax.sgd(0.1), steps=3, checkpoints=Checkpoints(tmp_path))


slow = lambda *values: pytest.param(*values, marks=pytest.mark.slow)


@pytest.mark.parametrize("number", [signal.SIGTERM, *map(slow, (signal.SIGINT, signal.SIGUSR1, signal.SIGHUP))])
def test_a_signal_saves_and_the_next_call_continues(tmp_path, number):
    if signal.getsignal(number) is signal.SIG_IGN:
        pytest.skip("the signal is ignored here, as under nohup")
    watcher = Watcher(lambda: os.kill(os.getpid(), number), at=20)
    make = lambda observers: train(
        workload(),
        optax.sgd(0.01),
        steps=200,
        log_every=5,
        checkpoints=Checkpoints(tmp_path / "a"),
        observers=observers,
    )
    before = signal.getsignal(number)
    history = make([watcher])
    assert history.outcome == f"interrupted by {signal.Signals(number).name}"
    assert signal.getsignal(number) == before
    stopped = int(history.state.step)
    assert 20 <= stopped < 60
    assert Checkpoints(tmp_path / "a").steps()[-1] == stopped
    again = make([])
    assert again.outcome == "finished"
    assert bits(again.state.params) == bits(train(workload(), optax.sgd(0.01), steps=200).state.params)


@pytest.mark.parametrize("where", ["batch", "rate"])
def test_a_loss_that_is_not_finite_stops_the_run_and_is_never_saved(tmp_path, where):
    tx = optax.sgd(lambda t: jnp.where(t < 29, 0.01, jnp.inf)) if where == "rate" else optax.sgd(1e3)
    with pytest.raises(NonFiniteError, match=r"step \d+: the (loss is|update made) .*Lower the learning rate"):
        train(workload(), tx, steps=100, checkpoints=Checkpoints(tmp_path, every=10, keep=20), log_every=7)
    for step in Checkpoints(tmp_path).steps():
        assert np.isfinite(load_params(tmp_path, step=step)["w"]).all()


def test_without_a_guard_the_run_goes_on():
    history = train(workload(), optax.sgd(1e3), steps=60, guard=None)
    assert not np.isfinite(history.records[-1]["train/loss"])
    assert history.best is None or np.isfinite(history.best[1])


def test_patience_stops_a_run_that_no_longer_gains():
    history = train(workload(), optax.sgd(0.0), steps=100, evaluate_every=5, stop=Stop(patience=3))
    assert history.outcome == "stopped early"
    assert int(history.state.step) == 5 + 3 * 5
    assert "test/loss" in history.records[-1]
    gaining = train(workload(), optax.sgd(0.001), steps=40, evaluate_every=5, stop=Stop(patience=3))
    assert gaining.outcome == "finished"
    lazy = train(workload(), optax.sgd(0.001), steps=40, evaluate_every=5, stop=Stop(patience=3, min_gain=100.0))
    assert lazy.outcome == "stopped early"


@pytest.mark.parametrize("stop", [Stop(patience=2), Stop(gradient_norm=1e9)])
def test_a_run_that_stopped_stays_stopped(tmp_path, stop):
    make = lambda: train(
        workload(), optax.sgd(0.0), steps=100, evaluate_every=5, stop=stop, checkpoints=Checkpoints(tmp_path)
    )
    first, again = make(), make()
    assert first.outcome == again.outcome != "finished"
    assert int(first.state.step) == int(again.state.step)
    assert again.records == first.records
    assert again.best == first.best is not None


def test_small_gains_add_up():
    """min_gain counts from the last value that was a gain, not from the evaluation before."""
    judge = Judge(Target(), Stop(patience=3, min_gain=0.1))
    assert [judge({"step": t, "validation/loss": v}) for t, v in enumerate([1, 0.94, 0.88, 0.82])] == [None] * 4
    assert judge.best == (3, 0.82)


@pytest.mark.parametrize("guard", ["stop", None])
def test_an_interrupted_run_has_no_gap_in_its_metrics(tmp_path, guard):
    watcher = Watcher(lambda: os.kill(os.getpid(), signal.SIGINT), at=20)
    for observers in ([watcher], []):
        metrics = MetricsFile(tmp_path / "metrics.jsonl")
        train(
            workload(), optax.sgd(0.01), steps=60, log_every=1, guard=guard,
            checkpoints=Checkpoints(tmp_path / "checkpoints"), observers=[metrics, *observers],
        )  # fmt: skip
    assert [r["step"] for r in read_metrics(tmp_path)] == list(range(1, 61))


def test_a_last_update_that_is_not_finite_is_no_success():
    with pytest.raises(NonFiniteError, match="step 1: the update made parameters that aren't finite"):
        train(workload(), optax.sgd(float("nan")), steps=1)


def test_gradient_descent_stops_at_a_small_gradient():
    full = dataclasses.replace(workload(), batch_size=60)
    history = train(full, optax.sgd(0.1), steps=2000, stop=Stop(gradient_norm=1e-3), log_every=1)
    assert history.outcome == "gradient norm reached"
    steps, norms = history["train/gradient_norm"]
    assert norms[-1] <= 1e-3 < norms[-2]
    assert int(history.state.step) == steps[-1] - 1  # the last step tested the gradient and made no update


@pytest.mark.parametrize("tolerance", [0.1, 0.7, 1e50])
def test_device_and_host_agree_on_what_a_small_gradient_is(tolerance):
    """Also at the float32 nearest to the tolerance, which is above 0.1 and below 0.7."""
    stop, unchanged = Stop(gradient_norm=tolerance), lambda state, batch: (state + 1, PackedMetrics.pack(batch))
    step = unless_small(unchanged, norm_bound(stop))
    with np.errstate(over="ignore"):
        nearest = np.float32(tolerance)
    for norm in (np.nextafter(nearest, np.float32(0)), nearest, np.nextafter(nearest, np.float32(np.inf))):
        state, _ = step(jnp.zeros(()), {"train/gradient_norm": (jnp.float32(norm), jnp.ones(()))})
        assert bool(state == 0) == (norm <= nearest)
        assert Judge(Target(), stop).converged({"train/gradient_norm": float(norm)}) == (norm <= nearest)


@pytest.mark.thinned
@pytest.mark.parametrize("tolerance", [1e9, 1.0, 1e-2])
@pytest.mark.parametrize("log_every", [1, 7])
def test_no_update_is_made_once_the_gradient_is_small(tolerance, log_every):
    """As many updates, and the same parameters, as the definition makes; none where the start is good enough."""
    full = dataclasses.replace(workload(), batch_size=60)
    params, model_state = full.init(jax.random.split(jax.random.key(0))[1])
    batch = full.data.train.take(np.arange(60))
    gradient = jax.grad(lambda p: full.loss(p, model_state, batch, jax.random.key(0), True)[0])
    updates = 0
    while optax.tree.norm(gradient(params)) > tolerance:
        params, updates = jax.tree.map(lambda p, g: p - 0.1 * g, params, gradient(params)), updates + 1
    history = train(full, optax.sgd(0.1), steps=2000, stop=Stop(gradient_norm=tolerance), log_every=log_every)
    assert int(history.state.step) == updates
    assert (updates == 0) == (tolerance == 1e9)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6), history.params, params)
    assert history.best[0] <= updates


def test_the_best_checkpoint_is_kept_and_can_be_loaded(tmp_path):
    schedule = lambda t: jnp.where(t < 20, 0.05, -0.05)  # downhill, then up again
    history = train(
        workload(), optax.sgd(schedule), steps=40, evaluate_every=5, checkpoints=Checkpoints(tmp_path, every=10, keep=1)
    )
    best, value = history.best
    assert best == 20
    assert Checkpoints(tmp_path).steps() == [20, 40]
    w, test = load_params(tmp_path, step="best")["w"], workload().data.validation.take(np.arange(20))
    assert np.mean((test["inputs"] @ w - test["labels"]) ** 2) == pytest.approx(value, rel=1e-5)


def test_the_target_names_the_first_step_that_reached_it():
    history = train(workload(target=Target(value=1.0)), optax.sgd(0.05), steps=50, evaluate_every=5)
    steps, losses = history["validation/loss"]
    assert history.reached == steps[np.argmax(losses <= 1.0)]


def test_a_target_that_is_never_measured_is_refused():
    target = Target(metric="validation/accuracy", mode="max")
    with pytest.raises(
        ValueError, match=r"target.metric must be one of train/loss, validation/loss, got 'validation/accuracy'"
    ):
        train(workload(target=target), optax.sgd(0.1), steps=5)


class Some:
    """A split of so many examples, of a weight."""

    def __init__(self, count, weight=1.0):
        self.count, self.weight = count, weight

    def __len__(self):
        return self.count

    def take(self, indices, epoch=None, seed=0):
        return {"inputs": X[indices], "labels": Y[indices], "weight": np.full(len(indices), self.weight)}


@pytest.mark.parametrize("setting", [{"stop": Stop(patience=2)}, {"target": Target(value=0.1)}])
def test_nothing_waits_for_a_validation_split_without_examples(setting):
    base = workload(target=setting.pop("target", None))
    empty = dataclasses.replace(base, data=dataclasses.replace(base.data, validation=Some(0)))
    with pytest.raises(ValueError, match="got 'validation/loss': the validation split holds no examples"):
        train(empty, optax.sgd(0.1), steps=60, evaluate_every=3, **setting)
    assert train(dataclasses.replace(empty, target=Target()), optax.sgd(0.1), steps=2).outcome == "finished"


def test_patience_does_not_count_what_was_not_measured():
    def loss(params, model_state, batch, key, train):
        value, (model_state, metrics) = base.loss(params, model_state, batch, key, train)
        total, count = metrics["loss"]
        weight = batch.get("weight", jnp.ones(1))[0]
        return value, (model_state, {"loss": (total * weight, count * weight)})

    base = workload()
    data = dataclasses.replace(base.data, validation=Some(20, 0.0))
    work = dataclasses.replace(base, data=data, loss=loss)
    with pytest.raises(ValueError, match="patience=2 waits for validation/loss, which wasn't measured after step 3"):
        train(work, optax.sgd(0.1), steps=60, evaluate_every=3, stop=Stop(patience=2))
    judge = Judge(Target(metric="train/loss"), Stop(patience=1))
    assert [judge({"step": i, **r}) for i, r in enumerate([{"train/loss": 1.0}, {"skipped": 1.0}])] == [None, None]


def test_a_metric_that_is_nan_now_and_then_costs_one_look_and_no_batch():
    """The look for labels that are no classes takes a batch again, which a loader may fill into its one buffer."""

    class Loader:
        takers, calls, together = 0, 0, False

        def batch(self, step):
            self.calls, self.takers = self.calls + 1, self.takers + 1
            time.sleep(0.02)
            self.together |= self.takers > 1
            self.takers -= 1
            return {"inputs": X[:20], "labels": Y[:20]}

    loader, traced = Loader(), []

    def never(outputs, batch):
        traced.append(batch)
        return 0.0 / jnp.zeros(len(batch["inputs"]))

    data = SimpleNamespace(train=loader, validation=arrays(X, Y).train, test=None)
    work = Workload.from_model(nn.Dense(1), data, loss=squared_error, metrics={"never": never}, batch_size=20)
    history = train(work, optax.sgd(0.01), steps=12, evaluate_every=2, log_every=1)
    assert np.isnan(history["train/never"][1]).all()
    assert not loader.together
    assert loader.calls <= 12 + 5  # the first batch's shapes, and the look
    assert len(traced) <= 12  # step, evaluation, their shapes; and a look at one batch and at one split


def test_an_error_in_the_data_is_raised_and_observers_are_told():
    class Broken:
        def batch(self, step):
            if step == 7:
                raise OSError("disk on fire")
            return {"inputs": X[:16], "labels": Y[:16]}

    data = dataclasses.replace(workload().data, train=Broken(), validation=None, test=None)
    watcher = Watcher()
    with pytest.raises(OSError, match="disk on fire"):
        train(dataclasses.replace(workload(), data=data), optax.sgd(0.1), steps=20, observers=[watcher])
    assert watcher.told[-1] == ("end", "OSError")
    time.sleep(0.05)
    assert not [t for t in threading.enumerate() if "prefetch" in t.name]


def test_a_profile_is_written(tmp_path):
    train(workload(), optax.sgd(0.1), steps=30, profile=tmp_path / "profile")
    assert list((tmp_path / "profile").rglob("*.xplane.pb"))


def test_initial_parameters_are_where_the_run_starts():
    history = train(workload(), optax.sgd(0.0), steps=1, initial=({"w": jnp.arange(4.0)}, {}))
    assert history.state.params["w"].tolist() == [0, 1, 2, 3]


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"steps": 0}, "steps must be at least 1, got 0"),
        ({"steps": 5, "log_every": 0}, "log_every must be at least 1"),
        ({"steps": 5, "evaluate_every": 0}, "evaluate_every must be at least 1, got 0"),
        ({"steps": 5, "strategy": "pmapp"}, "strategy must be one of .*, got 'pmapp'"),
        ({"steps": 5, "stop": Stop(patience=0)}, "stop.patience must be at least 1, got 0"),
    ],
)
def test_bad_arguments_are_named(kwargs, message):
    with pytest.raises(ValueError, match=message):
        train(workload(), optax.sgd(0.1), **kwargs)


def test_an_unknown_metric_names_those_there_are():
    with pytest.raises(KeyError, match="no metric 'loss' was logged; there are epoch, examples, seconds, test/loss"):
        train(workload(), optax.sgd(0.1), steps=1)["loss"]


STRATEGIES = [("pmap", (4, 1)), slow("fsdp", (2, 1)), slow("single", None), slow("jit", (8, 1)), slow("zero1", (4, 1))]


@pytest.mark.parametrize(("strategy", "shape"), STRATEGIES)
def test_a_run_goes_on_under_another_strategy(strategy, shape, tmp_path):
    """From one device to many and back: one state, one checkpoint format, the same records."""
    settings = {"steps": 30, "ema": 0.9, "log_every": 1}
    arranged = lambda shape: {"mesh": make_mesh(*shape)} if shape else {}
    tx = lambda: optax.adam(0.05)
    whole = train(workload(), tx(), **settings)
    first = {**settings, "checkpoints": Checkpoints(tmp_path), "steps": 10}
    train(workload(), tx(), strategy=strategy, **first, **arranged(shape))
    back = {"single": ("zero1", (8, 1))}.get(strategy, ("single", None))
    history = train(
        workload(), tx(), strategy=back[0], checkpoints=Checkpoints(tmp_path), **settings, **arranged(back[1])
    )
    assert [r["step"] for r in history.records] == list(range(11, 31))
    for name in ("params", "ema", "opt_state"):
        one, other = jax.tree.leaves(getattr(whole.state, name)), jax.tree.leaves(getattr(history.state, name))
        for a, b in zip(one, other, strict=True):
            np.testing.assert_allclose(np.asarray(a), np.asarray(b), rtol=1e-4, atol=1e-6)
    assert jax.tree.leaves(history.state.params)[0].sharding.is_fully_replicated


def test_what_a_device_has_no_memory_for_is_refused_before_it_is_made(monkeypatch):
    made, ours = [], workload()
    init = dataclasses.replace(ours, init=lambda key: made.append(key) or ours.init(key))
    monkeypatch.setattr(parallel, "memory_of", lambda device: 1)
    with pytest.raises(DeviceMemoryError, match=r"the state alone needs 0.00 GiB on every device.*strategy='fsdp'"):
        train(init, optax.sgd(0.1), steps=3)
    assert all(isinstance(key, jax.core.Tracer) for key in made)
    held = parallel.memory_held(init_state(*workload().init(jax.random.key(0)), optax.sgd(0.1), key=jax.random.key(0)))
    monkeypatch.setattr(parallel, "memory_of", lambda device: held)
    with pytest.raises(DeviceMemoryError, match=r"needs 0.00 GiB on every device.*accumulate=4.*strategy='fsdp'"):
        train(workload(), optax.sgd(0.1), steps=3)


@pytest.mark.slow
def test_a_short_batch_is_evaluated_alike_where_parameters_are_divided_by_three_and_two():
    rng = np.random.default_rng(0)
    data = arrays(rng.normal(size=(32, 8, 8, 3)), rng.integers(0, 3, 32), validation=10 / 32, test=0)
    resnet = Workload.from_model(ResNet(3, stages=(1,), width=4), data, batch_size=12)
    settings = {"steps": 1, "evaluate_every": 1}
    losses = [
        train(resnet, optax.sgd(0.1), **settings, **how).records[-1]["validation/loss"]
        for how in ({}, {"strategy": "fsdp", "mesh": make_mesh(3, 2)})
    ]
    np.testing.assert_allclose(*losses, rtol=1e-5)
    with pytest.raises(ValueError, match="needs a batch that the 3 devices which share it divide, got 10"):
        train(
            dataclasses.replace(resnet, batch_size=10), optax.sgd(0.1), strategy="fsdp", mesh=make_mesh(3, 2), steps=1
        )


def test_calls_for_a_sync_point_are_counted_from_one_whatever_the_step(monkeypatch):
    """JAX waits for the number of a call to come: a run that begins at step 50 would never reach call 1."""
    told = []
    monkeypatch.setattr(signals, "_calls", itertools.count(1))
    monkeypatch.setattr(jax, "process_count", lambda: 2)
    monkeypatch.setattr(signals.multihost_utils, "reached_preemption_sync_point", lambda n: told.append(n) or n == 3)
    with signals.catch_signals(listen=False) as asked:
        answers = [asked(), asked()]
    with signals.catch_signals(listen=False) as asked:
        answers.append(asked())
    assert told == [1, 2, 3]
    assert answers == [None, None, "SIGTERM"]
