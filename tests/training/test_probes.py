"""What probes measure is in the records of the steps in which they measured it, and in no other."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import optlab
from optlab import probe, read_probes
from optlab._probe_state import METRICS, NORMS
from optlab.data import Batches, arrays
from optlab.runs._metrics import COUNTS, without_seconds
from optlab.training import (
    Checkpoints,
    MetricsFile,
    NonFiniteError,
    TensorBoard,
    Workload,
    init_state,
    make_step,
    read_metrics,
    train,
)
from optlab.training.measures import PROBES
from optlab.training.packed import packed
from optlab.training.step import StepSettings, make_measured_step

RNG = np.random.default_rng(1)
X = RNG.normal(size=(100, 4)).astype(np.float32)
Y = (X @ RNG.normal(size=(4, 3)) + 0.1 * RNG.normal(size=(100, 3))).astype(np.float32)


def workload():
    """Linear regression to three outputs."""

    def init(key):
        return {"dense": {"kernel": 0.1 * jax.random.normal(key, (4, 3)), "bias": jnp.zeros(3)}}, {}

    def loss(params, model_state, batch, key, train):
        outputs = batch["inputs"] @ params["dense"]["kernel"] + params["dense"]["bias"][None]
        total, count = jnp.sum(jnp.square(outputs - batch["labels"])), jnp.float32(len(outputs))
        return total / count, (model_state, {"loss": (total, count)})

    return Workload("regression", arrays(X, Y, validation=0.2, test=0.2), init, loss, 16)


def probed(every=4, wrap=lambda tx: tx):
    return wrap(optax.chain(probe("gradient", every=None), optlab.adamw(0.05), probe("update", every=every)))


def probe_keys(record, name="update"):
    return {key.rpartition("/")[2] for key in record if key.startswith(f"probe/{name}/")}


def by_hand(tx, steps):
    """What the probes say after each step of a loop without `train`: {step: {name: {metric: value}}}."""
    key, init_key = jax.random.split(jax.random.key(0))
    state = init_state(*workload().init(init_key), tx, key=key)
    step, batches, found = jax.jit(make_step(workload().loss, tx)), Batches(workload().data.train, 16, seed=0), {}
    for t in range(1, steps + 1):
        state, _ = step(state, batches.batch(t - 1))
        found[t] = jax.tree.map(float, read_probes(state))
    return found


def test_records_hold_what_the_probes_held_after_that_step():
    history = train(workload(), probed(), steps=12, log_every=3, evaluate_every=6)
    expected = by_hand(probed(), 12)
    for record in history.records:
        held = expected[record["step"]]
        for name in ("gradient", "update"):
            for metric in probe_keys(record, name):
                assert record[f"probe/{name}/{metric}"] == pytest.approx(held[name][metric], rel=1e-4), metric
        assert probe_keys(record, "gradient") == set(NORMS)
        assert record["probe/gradient/update_norm"] == pytest.approx(record["train/gradient_norm"], rel=1e-5)


def test_singular_values_are_in_the_record_of_their_own_step_and_none_is_lost():
    history = train(workload(), probed(every=4), steps=12, log_every=3, evaluate_every=6)
    assert [r["step"] for r in history.records] == [1, 3, 4, 6, 8, 9, 12]
    for record in history.records:
        measured = record["step"] in (1, 4, 8, 12)
        assert probe_keys(record) == set(METRICS if measured else NORMS)
    assert history["probe/update/sigma_max"][0].tolist() == [1, 4, 8, 12]
    never = train(workload(), probed(every=None), steps=12, log_every=3, evaluate_every=6)
    assert [r["step"] for r in never.records] == [3, 6, 9, 12]


def test_schedules_are_logged_wherever_there_is_a_record():
    schedules = {"learning_rate": lambda t: 0.1 * t}
    history = train(workload(), probed(every=4), steps=9, log_every=3, evaluate_every=9, schedules=schedules)
    assert history["learning_rate"][0].tolist() == [1, 3, 4, 6, 8, 9]
    assert history["learning_rate"][1].tolist() == pytest.approx([0, 0.2, 0.3, 0.5, 0.7, 0.8])


def test_the_files_hold_them_too(tmp_path):
    observers = [MetricsFile(tmp_path / "metrics.jsonl"), TensorBoard(tmp_path)]
    history = train(workload(), probed(), steps=8, log_every=4, observers=observers)
    assert read_metrics(tmp_path) == history.records
    assert "NaN" not in (tmp_path / "metrics.jsonl").read_text()
    [events] = tmp_path.glob("events.out.tfevents.*")
    for metric in METRICS:
        assert f"probe/update/{metric}".encode() in events.read_bytes()


def test_a_probe_that_saw_no_update_in_a_step_is_not_in_its_record():
    twice = functools.partial(optax.MultiSteps, every_k_schedule=2)
    history = train(workload(), probed(every=None, wrap=twice), steps=8, log_every=1)
    assert [bool(probe_keys(r)) for r in history.records] == [False, True] * 4
    refusing = optax.conditionally_transform(probe("update", every=1), lambda step: step >= 2)
    history = train(workload(), optax.chain(refusing, optax.sgd(0.01)), steps=4, log_every=1)
    assert [len(probe_keys(r)) for r in history.records] == [0, 0, 8, 8]


def test_a_record_without_probes_is_what_it_was():
    plain = train(workload(), optlab.adamw(0.05), steps=6, log_every=2, evaluate_every=3)
    with_probes = train(workload(), probed(every=None), steps=6, log_every=2, evaluate_every=3)
    for record, expected in zip(with_probes.records, plain.records, strict=True):
        without = {k: v for k, v in record.items() if not k.startswith("probe/")}
        assert without == pytest.approx({**expected, "seconds": record["seconds"]}, rel=1e-5)
    assert {*COUNTS, "train/loss", "train/gradient_norm", "learning_rate"} == set(plain.records[0])


def test_a_metric_of_the_workloads_own_is_no_probe():
    own = Workload.from_model(
        optlab.models.mlp(outputs=3),
        arrays(X, Y, validation=0.2),
        loss=optlab.training.squared_error,
        metrics={"probe/update/sigma_max": lambda outputs, batch: jnp.zeros(())},
        batch_size=16,
    )
    history = train(own, probed(every=None), steps=5, log_every=2, evaluate_every=5)
    assert [r["step"] for r in history.records] == [2, 4, 5]
    assert history["train/probe/update/sigma_max"][1].tolist() == [0, 0, 0]


@pytest.mark.slow
def test_continuing_gives_the_records_of_a_run_that_never_stopped(tmp_path):
    def make(steps, folder):
        return train(
            workload(), probed(every=5), steps=steps, log_every=3, evaluate_every=6,
            checkpoints=Checkpoints(tmp_path / folder / "checkpoints"),
            observers=[MetricsFile(tmp_path / folder / "metrics.jsonl")],
        )  # fmt: skip

    make(24, "whole")
    for steps in (12, 24):
        make(steps, "parts")
    drop_test = lambda records: [
        {k: v for k, v in r.items() if not k.startswith("test/")} for r in without_seconds(records)
    ]
    ours, theirs = (drop_test(read_metrics(tmp_path / folder)) for folder in ("parts", "whole"))
    assert ours == theirs
    assert {r["step"] for r in ours if "probe/update/sigma_min" in r} == {1, 5, 10, 15, 20}


def test_the_host_reads_one_array_a_step():
    tx = probed()
    params, model_state = workload().init(jax.random.key(0))
    state = init_state(params, model_state, tx, key=jax.random.key(1))
    _, metrics = jax.eval_shape(
        packed(make_measured_step(workload().loss, tx, StepSettings(), measures=[PROBES])), state, workload().example()
    )
    assert len(jax.tree.leaves(metrics)) == 1


def test_those_of_single_parameters_are_logged_by_their_paths():
    tx = optax.chain(optlab.sgd(0.1), probe("update", per="parameter", every=2))
    first, second = train(workload(), tx, steps=2, log_every=1).records
    assert probe_keys(first, "update/dense/kernel") == probe_keys(second, "update/dense/kernel") == set(METRICS)
    assert probe_keys(first, "update/dense/bias") == set(NORMS)


def test_two_probes_of_one_name_are_refused_before_anything_runs():
    tx = optax.chain(probe("g"), optlab.by_role({"default": probe("g")}), optax.sgd(0.1))
    with pytest.raises(ValueError, match="two probes are named 'g', at '0' and '1/rules"):
        train(workload(), tx, steps=5)


def test_a_run_that_diverges_is_still_stopped():
    tx = optax.chain(optax.sgd(1e20), probe("update", every=1))
    with pytest.raises(NonFiniteError, match=r"step \d+: the (loss is|update made)"):
        train(workload(), tx, steps=50)


@pytest.mark.parametrize("accumulate", [1, 4])
def test_a_gradient_norm_that_ends_the_run_has_its_record(accumulate):
    stop = optlab.config.Stop(gradient_norm=1e9)
    history = train(workload(), probed(every=1), steps=9, stop=stop, accumulate=accumulate)
    assert [r["step"] for r in history.records] == [1]
    assert probe_keys(history.records[0]) == set(METRICS)
    assert "validation/loss" in history.records[0]
