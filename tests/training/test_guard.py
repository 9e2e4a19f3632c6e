"""The guard: a bad step is told, and stops the run or leaves no trace; what isn't finite is never saved."""

import dataclasses
import functools
import json

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from optlab.config import Config, ConfigError, Stop, component
from optlab.data import Batches, arrays
from optlab.training import (
    Checkpoints,
    LossSpikeError,
    MetricsFile,
    NonFiniteError,
    StepLog,
    Workload,
    init_state,
    load_params,
    make_mesh,
    make_step,
    train,
)
from optlab.training.guard import WARMUP, Skips
from optlab.training.judge import Judge

RNG = np.random.default_rng(1)
X = RNG.normal(size=(96, 4)).astype(np.float32)
Y = X @ np.array([1.0, -2.0, 0.5, 3.0], np.float32) + 0.5 * RNG.normal(size=96).astype(np.float32)
STEPS, BAD = WARMUP + 8, WARMUP + 4

# What a batch can do to the step that gets it.
NAN_LOSS, NAN_GRADIENT, HUGE_GRADIENT, INFINITE_UPDATE, NAN_STATISTICS, SPIKE = range(1, 7)
REASONS = {
    NAN_LOSS: "the loss is nan",
    NAN_GRADIENT: "the gradient's norm is nan and the loss [0-9]",
    HUGE_GRADIENT: "the gradient's norm is inf, by an infinite entry or one whose square overflows",
    INFINITE_UPDATE: "the update made parameters that aren't finite",
    NAN_STATISTICS: "the model's state .* isn't finite",
    SPIKE: r"the loss is 80\d.*, which is \d+ standard deviations above the mean",
}


class Faulty(Batches):
    """The batches of a split, those of some steps (counted from 1) with a fault in their first example alone."""

    def __init__(self, faults, split, batch_size):
        super().__init__(split, batch_size)
        self.faults = faults

    def batch(self, step, rows=slice(None)):
        fault = np.zeros(self.batch_size, np.float32)
        fault[0] = self.faults.get(step + 1, 0)
        return super().batch(step, rows) | {"fault": fault[rows]}


@dataclasses.dataclass
class Without:
    """The same batches as if one had never been."""

    batches: Batches
    missing: int

    def batch(self, step):
        return self.batches.batch(step + (step + 1 >= self.missing))


def workload(faults):
    def init(key):
        state = {"mean": jnp.zeros(4), "seen": jnp.zeros((), jnp.int32), "key": jax.random.key(7)}
        return {"w": 0.1 * jax.random.normal(key, (4,)), "b": jnp.zeros((2, 2))}, state

    def loss(params, model_state, batch, key, train):
        w, fault = params["w"], jnp.max(batch.get("fault", jnp.zeros(1)))
        on = lambda kind, size: jnp.where(fault == kind, size, 0.0)
        value = jnp.mean(jnp.square(batch["inputs"] @ w - batch["labels"])) + jnp.sum(jnp.square(params["b"] - 1))
        value += on(NAN_LOSS, jnp.nan) + on(SPIKE, 800.0)
        slope = w[0] - jax.lax.stop_gradient(w[0])  # which is 0
        value += (on(HUGE_GRADIENT, 1e20) + on(INFINITE_UPDATE, 1e7)) * slope
        value += 0.01 * jnp.sqrt((1 - on(NAN_GRADIENT, 1.0)) * jnp.sum(jnp.square(w)))  # its slope at 0 is 0 · inf
        if train:
            mean = jnp.mean(batch["inputs"], axis=0) + on(NAN_STATISTICS, jnp.nan)
            model_state = {
                "mean": 0.9 * model_state["mean"] + 0.1 * mean,
                "seen": model_state["seen"] + 1,
                "key": jax.random.fold_in(model_state["key"], 1),
            }
        count = jnp.float32(len(batch["labels"]))
        return value, (model_state, {"loss": (value * count, count)})

    source = arrays(X, Y, validation=0.2)
    return Workload("faulty", dataclasses.replace(source, train=Faulty(faults, source.train, 8)), init, loss, 8)


def explosive(tx):
    """The rule, which overflows at updates beyond 1e6, large as their gradients may be in another chain."""
    overflow = lambda updates, params: jax.tree.map(lambda u: jnp.where(jnp.abs(u) > 1e6, u * jnp.inf, u), updates)
    return optax.chain(optax.stateless(overflow), tx)


def adam():
    return explosive(optax.adam(optax.linear_schedule(0.1, 0.0, STEPS)))


SETTINGS = {"guard": "skip", "ema": 0.9, "spike": 6.0, "log_every": 1, "evaluate_every": STEPS}
RATE = {"schedules": {"rate": optax.linear_schedule(0.1, 0.0, STEPS)}}


def bits(tree):
    data = lambda x: jax.random.key_data(x) if jnp.issubdtype(x.dtype, jax.dtypes.prng_key) else x
    return [np.asarray(data(x)).tobytes() for x in jax.tree.leaves(tree)]


def lines(path):
    """The entries of a file of strict JSON."""

    def refuse(name):
        raise ValueError(f"{name} isn't JSON")

    return [json.loads(line, parse_constant=refuse) for line in path.read_text().splitlines()]


def assert_no_trace(faulty, clean):
    for name in ("params", "model_state", "opt_state", "ema", "losses"):
        assert bits(getattr(faulty.state, name)) == bits(getattr(clean.state, name)), name


@functools.cache
def clean_but_for_the_bad_step():
    work = workload({})
    data = dataclasses.replace(work.data, train=Without(work.data.train, BAD))
    return train(dataclasses.replace(work, data=data), adam(), steps=STEPS - 1, **SETTINGS, **RATE)


@pytest.mark.parametrize("kind", REASONS)
def test_a_skipped_step_leaves_no_trace_but_its_lines(kind, tmp_path, capsys):
    work = workload({BAD: kind})
    files = {"skip_log": StepLog(tmp_path / "skipped.jsonl"), "observers": [MetricsFile(tmp_path / "metrics.jsonl")]}
    faulty = train(work, adam(), steps=STEPS, **SETTINGS, **files, **RATE)
    clean = clean_but_for_the_bad_step()
    assert_no_trace(faulty, clean)
    assert (faulty.skipped, clean.skipped) == ([BAD], [])
    assert int(faulty.state.step) == STEPS

    records = lines(tmp_path / "metrics.jsonl")
    assert [r["step"] for r in records] == list(range(1, STEPS + 1))
    assert [r["step"] for r in records if "skipped" in r] == [BAD]
    assert ("train/loss" in records[BAD - 1]) == (kind != NAN_LOSS)
    assert [r["rate"] for r in records if "skipped" not in r] == [r["rate"] for r in clean.records]

    [entry] = lines(tmp_path / "skipped.jsonl")
    assert entry["step"] == BAD
    assert entry["examples"] == work.data.train.indices(BAD - 1)[0].tolist()
    assert float(entry["gradient_norm"]) >= 0 or kind in (NAN_LOSS, NAN_GRADIENT)
    assert capsys.readouterr().err.splitlines() == [f"optlab: step {BAD} is skipped, 1 of at most 10: {entry['why']}"]

    error = LossSpikeError if kind == SPIKE else NonFiniteError
    with pytest.raises(
        error, match=f"step {BAD}: {REASONS[kind]}.*guard=.skip. would leave it out. Lower the learning"
    ):
        train(work, adam(), steps=STEPS, **{**SETTINGS, "guard": "stop"})


@pytest.mark.parametrize(
    "make",
    [
        lambda: optax.MultiSteps(optax.sgd(0.05), 3),
        lambda: optax.apply_if_finite(optax.sgd(0.05), 2),
        optax.lbfgs,
        pytest.param(
            lambda: optax.chain(optax.clip_by_global_norm(1.0), optax.add_noise(0.1, 0.5, 0), optax.sgd(0.05)),
            marks=pytest.mark.slow,
        ),
    ],
    ids=["MultiSteps", "apply_if_finite", "lbfgs", "add_noise"],
)
def test_a_skipped_step_leaves_no_trace_in_any_rules_state(make):
    work = workload({5: NAN_GRADIENT})
    data = dataclasses.replace(work.data, train=Without(work.data.train, 5))
    faulty, clean = (
        train(w, make(), steps=n, guard="skip") for w, n in ((work, 9), (dataclasses.replace(work, data=data), 8))
    )
    assert faulty.skipped == [5]
    assert_no_trace(faulty, clean)


@pytest.mark.parametrize(
    "how",
    [
        {"strategy": "pmap"},
        *(pytest.param(h, marks=pytest.mark.slow) for h in ({"strategy": "fsdp"}, {"accumulate": 2})),
    ],
    ids=str,
)
def test_every_strategy_skips_the_same_steps(how):
    """Though one device, or one microbatch, alone has the fault."""
    faults = {3: NAN_LOSS, 9: NAN_STATISTICS, 12: HUGE_GRADIENT, BAD: SPIKE}
    single = train(workload(faults), adam(), steps=STEPS, **SETTINGS)
    many = train(
        workload(faults), adam(), steps=STEPS, mesh=make_mesh(4) if "strategy" in how else None, **SETTINGS, **how
    )
    assert many.skipped == single.skipped == sorted(faults)
    for name in ("params", "opt_state", "ema", "losses"):
        ours, theirs = (jax.tree.leaves(getattr(h.state, name)) for h in (many, single))
        for a, b in zip(ours, theirs, strict=True):
            np.testing.assert_allclose(np.asarray(a), np.asarray(b), rtol=1e-3, atol=1e-5)


class Dies:
    """An observer that ends the run with an error at a step."""

    def __init__(self, at):
        self.at = at

    def begin(self, start, steps):
        pass

    def record(self, record):
        if record["step"] == self.at:
            raise OSError("pulled the plug")

    def end(self, outcome):
        pass


@pytest.mark.slow
def test_a_run_killed_between_two_skips_counts_and_logs_each_once(tmp_path):
    def run(folder, observers=(), faults=None, **settings):
        return train(
            workload(faults or {3: NAN_LOSS, 8: INFINITE_UPDATE}), adam(), steps=14,
            checkpoints=Checkpoints(tmp_path / folder / "checkpoints", every=5),
            skip_log=StepLog(tmp_path / folder / "skipped.jsonl"), observers=observers, **{**SETTINGS, **settings},
        )  # fmt: skip

    whole = run("whole")
    with pytest.raises(OSError, match="pulled the plug"):
        run("killed", [Dies(9)])
    assert [e["step"] for e in lines(tmp_path / "killed" / "skipped.jsonl")] == [3, 8]
    assert Checkpoints.of(tmp_path / "killed").notes(5)["skipped"] == [3]
    continued = run("killed", skip_limit=2)
    assert continued.skipped == whole.skipped == [3, 8]
    assert bits(continued.state) == bits(whole.state)
    assert lines(tmp_path / "killed" / "skipped.jsonl") == lines(tmp_path / "whole" / "skipped.jsonl")
    assert run("killed").skipped == [3, 8]  # there is nothing left to do, and nothing is forgotten
    assert run("killed", spike=None).state.losses is None

    more = {3: NAN_LOSS, 8: NAN_LOSS, 11: SPIKE, 12: NAN_GRADIENT}
    with pytest.raises(OSError, match="pulled the plug"):
        run("bound", [Dies(9)], more, skip_limit=2)
    message = r"more than skip_limit=2 steps were skipped, 3, 8, 12; at the last one the gradient's norm is nan"
    with pytest.raises(NonFiniteError, match=message):
        run("bound", (), more, skip_limit=2)
    assert [e["step"] for e in lines(tmp_path / "bound" / "skipped.jsonl")] == [3, 8, 12]
    assert Checkpoints.of(tmp_path / "bound").steps() == [5, 10]


@pytest.mark.parametrize("guard", ["stop", "skip", None])
def test_no_checkpoint_holds_what_is_not_finite(guard, tmp_path, capsys):
    faults = dict.fromkeys(range(10, 21), INFINITE_UPDATE)
    settings = {**SETTINGS, "steps": 20, "guard": guard, "spike": None, "evaluate_every": 20}
    settings["checkpoints"] = Checkpoints(tmp_path, every=4, keep=9)
    if guard is None:
        history = train(workload(faults), adam(), **settings)
        assert history.outcome == "finished"
        assert not np.isfinite(history.state.params["w"]).all()
        assert (
            capsys.readouterr().err == "optlab: step 12: parameters that aren't finite are never saved (guard=None)\n"
        )
    else:
        with pytest.raises(NonFiniteError):
            train(workload(faults), adam(), **settings)
    saved = Checkpoints(tmp_path).steps()
    assert saved == ([4, 8, 12, 16] if guard == "skip" else [4, 8])
    for step in saved:
        for kind in ("params", "ema"):
            assert all(np.isfinite(x).all() for x in jax.tree.leaves(load_params(tmp_path, step=step, collection=kind)))


def test_parameters_that_never_were_finite_are_never_saved(tmp_path):
    params, model_state = workload({}).init(jax.random.key(0))
    params["w"] = params["w"].at[1].set(jnp.inf)
    saved = Checkpoints(tmp_path, every=1)
    with pytest.raises(NonFiniteError, match="step 1: the parameters aren't finite"):
        train(workload({}), adam(), steps=3, guard="skip", initial=(params, model_state), checkpoints=saved)
    assert saved.steps() == []


def statistics(values, guard="skip"):
    """Takes a state through steps of these losses; (its statistics, the z of each step)."""

    def loss(params, model_state, batch, key, train):
        value = batch["loss"][0] + 0 * params["w"].sum()
        return value, (model_state, {"loss": (value, jnp.ones(()))})

    tx = optax.sgd(0.1)
    step = make_step(loss, tx, guard=guard, spike=4.0)
    state = init_state({"w": jnp.ones(2)}, {}, tx, key=jax.random.key(0), spike=True)
    state, metrics = jax.lax.scan(step, state, {"loss": jnp.asarray(values, jnp.float32)[:, None]})
    return state.losses, np.asarray(metrics["loss_z"][0]), np.asarray(metrics["fault"][0])


@pytest.mark.parametrize("guard", ["stop", "skip"])
def test_a_spike_is_told_by_the_mean_and_deviation_of_the_accepted_losses(guard):
    values = np.float32(5 + RNG.normal(size=3 * WARMUP))
    values[[10, 70, 100]] = 50, 50, np.nan if guard == "skip" else 60  # in the warm-up all that is finite counts
    losses, z, fault = statistics(values, guard)
    assert (np.flatnonzero(fault) == [70, 100]).all()
    start = values[:WARMUP].astype(np.float64)
    mean, variance = start.mean(), start.var()
    for t in range(WARMUP, len(values)):
        if t in (70, 100):
            continue
        assert z[t] == pytest.approx((values[t] - mean) / (variance**0.5 + 1e-5 * mean), rel=2e-3, abs=1e-3)
        distance = values[t] - mean
        mean, variance = mean + 0.02 * distance, 0.98 * (variance + 0.02 * distance**2)
    assert (losses.mean, losses.variance) == (pytest.approx(mean, rel=1e-4), pytest.approx(variance, rel=1e-3))
    assert int(losses.accepted) == len(values) - 2


def test_a_loss_that_stands_still_may_be_rounded():
    still = np.full(2 * WARMUP, 0.3, np.float32)
    still[-1] = np.nextafter(still[-1], np.float32(1))
    assert not statistics(still)[2].any()
    still[-1] = 0.301
    assert statistics(still)[2][-1]


def test_a_small_gradient_of_a_skipped_step_ends_no_run():
    judge = Judge(workload({}).target, Stop(gradient_norm=1.0))
    assert judge.converged({"step": 1, "train/gradient_norm": 0.5})
    assert not judge.converged({"step": 1, "train/gradient_norm": 0.5, "skipped": 1.0})
    assert not judge.converged({"step": 1, "skipped": 1.0})
    faults = dict.fromkeys(range(1, 4), NAN_GRADIENT)
    history = train(workload(faults), adam(), steps=9, guard="skip", stop=Stop(gradient_norm=1e9))
    assert (history.outcome, int(history.state.step)) == ("gradient norm reached", 3)  # step 4 made no update


def test_a_moving_average_that_is_not_finite_is_a_fault():
    decay = lambda t: jnp.where(t == 3, jnp.nan, 0.9)
    with pytest.raises(NonFiniteError, match="step 4: the weights' moving average isn't finite any more"):
        train(workload({}), adam(), steps=9, ema=decay)


def test_a_models_own_infinities_are_no_fault():
    work = workload({})
    init = lambda key: (work.init(key)[0], {"best": jnp.full(2, jnp.inf)})
    loss = lambda params, model_state, *rest: (
        work.loss(params, model_state, *rest[:-1], False)[0],
        (model_state, {"loss": (0.0, 1.0)}),
    )
    assert train(dataclasses.replace(work, init=init, loss=loss), adam(), steps=3).outcome == "finished"


def test_the_loss_that_is_differentiated_counts_not_the_metric():
    values = {"step": 3, "train/fault": 1.0, "train/loss": 2.0, "train/gradient_norm": 1.0}
    with pytest.raises(
        NonFiniteError, match=r"step 3: the loss that is differentiated isn't finite \(the metric is 2\)"
    ):
        Skips("stop", 10)(values)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"skip_limit": 0}, "skip_limit must be at least 1, got 0"),
        ({"spike": 5.0, "guard": None}, "spike=5.0 has no effect without a guard: say guard=stop or guard=skip"),
        ({"spike": 0.0}, "spike must be above 0, got 0.0; to do without it, say spike=none"),
    ],
)
def test_a_config_that_can_do_nothing_is_refused(changes, message):
    parts = {"data": component("digits"), "model": component("mlp"), "optimizer": component("adamw"), "steps": 5}
    with pytest.raises(ConfigError, match=message):
        Config(**parts, **changes)
