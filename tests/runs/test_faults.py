"""Faults, injected for real: what was acknowledged is there, what isn't whole is set aside, and nothing is silent."""

import dataclasses
import json
import os
import resource
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from optlab.data import DamagedRecordError, DataError, Source
from optlab.models import mlp
from optlab.runs import _storage as storage
from optlab.runs._metrics import without_seconds
from optlab.training import (
    CheckpointError,
    Checkpoints,
    MetricsFile,
    StepLog,
    Workload,
    init_state,
    load_params,
    read_metrics,
    squared_error,
    train,
)


def state(step, value=None):
    params = {"w": jnp.full((64, 64), float(step) if value is None else value)}
    made = init_state(params, {}, optax.adam(0.1), key=jax.random.key(0))
    return dataclasses.replace(made, step=jnp.int32(step))


def saved(folder, *steps, keep=2):
    checkpoints = Checkpoints(folder, keep=keep)
    for step in steps:
        checkpoints.save(state(step), {"best": None})
    checkpoints.wait()
    return checkpoints


def data_files(folder):
    return sorted(p for p in folder.rglob("d/*") if p.is_file())


def flip(folder):
    """Another value, in the middle of the largest file."""
    path = max(data_files(folder), key=lambda p: p.stat().st_size)
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 0x10
    path.write_bytes(content)


DAMAGE = {
    "flipped": flip,
    "truncated": lambda folder: [os.truncate(p, p.stat().st_size // 2) for p in data_files(folder)],
    "zeroed": lambda folder: [p.write_bytes(bytes(p.stat().st_size)) for p in data_files(folder)],
    "deleted": lambda folder: [p.unlink() for p in data_files(folder)],
    "unlisted": lambda folder: (folder / "_CHECKPOINT_METADATA").write_bytes(b"{}"),
}


@pytest.mark.parametrize("damage", DAMAGE.values(), ids=DAMAGE)
def test_a_save_that_is_damaged_on_the_disk_fails_and_older_ones_stay(tmp_path, monkeypatch, damage):
    saved(tmp_path, 10, 20)
    with monkeypatch.context() as patched:
        verify = storage.verify_share
        patched.setattr(storage, "verify_share", lambda path, saved: (damage(path), verify(path, saved)))
        checkpoints = Checkpoints(tmp_path, keep=1)
        checkpoints.save(state(30), {"best": None})
        with pytest.raises(CheckpointError, match=r"saving step 30 to .* failed: DamagedError"):
            checkpoints.save(state(40), {"best": None})
    assert checkpoints.steps() == [10, 20]
    assert [p.name[:14] for p in tmp_path.glob("quarantine-*")] == ["quarantine-30-"]
    checkpoints.save(state(30), {"best": None})  # computed again after the rollback
    checkpoints.wait()
    assert checkpoints.steps() == [30]


@pytest.mark.parametrize("damage", DAMAGE.values(), ids=DAMAGE)
def test_a_checkpoint_that_is_damaged_later_is_passed_over(tmp_path, capsys, damage):
    checkpoints = saved(tmp_path, 10, 20)
    damage(tmp_path / "20")
    restored, _ = checkpoints.restore_latest(state(0))
    assert int(restored.step) == 10
    assert (np.asarray(restored.params["w"]) == 10).all()
    assert capsys.readouterr().err.count("set aside as quarantine-20-") == 1


def test_other_values_or_notes_under_a_saved_step_are_refused(tmp_path):
    checkpoints = saved(tmp_path, 10)
    checkpoints.save(state(10), {"best": None})
    with pytest.raises(CheckpointError, match="10 holds this state with other notes"):
        checkpoints.save(state(10), {"best": [10, 0.5]})
    with pytest.raises(CheckpointError, match="10 holds a state of other values"):
        checkpoints.save(state(10, value=11.0), {"best": None})
    assert (np.asarray(load_params(tmp_path)["w"]) == 10).all()


@pytest.mark.parametrize("damage", ["unlisted", "zeroed"])
def test_what_is_damaged_under_a_step_makes_room_for_it(tmp_path, damage):
    checkpoints = saved(tmp_path, 10, 20)
    DAMAGE[damage](tmp_path / "20")
    saved(tmp_path, 20)
    checkpoints.verify(20)
    assert [p.name[:14] for p in tmp_path.glob("quarantine-*")] == ["quarantine-20-"]


def test_what_a_kill_left_is_cleared_and_what_may_be_somebodys_stays(tmp_path):
    saved(tmp_path, 10)
    left = ["30.orbax-checkpoint-tmp", "30.orbax-checkpoint-tmp-123", "removing-5-77"]
    theirs = ["notes", "30", "removing-me", "quarantine-3-1", "incomplete-4-1", "my.orbax-checkpoint-tmp", "10-backup"]
    for name in left + theirs:
        (tmp_path / name).mkdir()
        (tmp_path / name / "file").write_text("precious")
    saved(tmp_path, 20)
    assert sorted(p.name for p in tmp_path.iterdir()) == sorted(["10", "20", "writer.lock", *theirs])
    assert all((tmp_path / name / "file").read_text() == "precious" for name in theirs)


def test_a_best_that_is_not_a_number_never_costs_the_best(tmp_path):
    """The judge's best stays where it was; a metric of NaN moves nothing."""
    checkpoints = Checkpoints(tmp_path, keep=1)
    for step in (10, 20, 30):
        checkpoints.save(state(step), {"best": [10, 0.5]}, best=10)
    checkpoints.wait()
    assert checkpoints.steps() == [10, 30]


HOLDER = """
import sys, time
from optlab.training import Checkpoints
with Checkpoints(sys.argv[1]).writing():
    print("held", flush=True)
    time.sleep(100)
"""


def test_one_writer_at_a_time_and_a_kill_frees_the_folder(tmp_path):
    saved(tmp_path, 10)
    before = {p: p.stat().st_mtime_ns for p in tmp_path.rglob("*") if p.name != "writer.lock"}
    environment = {**os.environ, "JAX_PLATFORMS": "cpu"}
    command = [sys.executable, "-c", HOLDER, str(tmp_path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment) as holder:
        try:
            assert holder.stdout.readline() == "held\n"
            checkpoints = Checkpoints(tmp_path)
            told = rf"{tmp_path} is being written by process {holder.pid} on \S+: wait for its end, or name another"
            with pytest.raises(CheckpointError, match=told), checkpoints.writing():
                pass
            with pytest.raises(CheckpointError, match=told):
                checkpoints.save(state(20), {"best": None})
            assert checkpoints.restore_latest(state(0))  # reading needs no lock
            assert {p: p.stat().st_mtime_ns for p in before} == before
        finally:
            holder.send_signal(signal.SIGKILL)
    saved(tmp_path, 20)
    assert checkpoints.steps() == [10, 20]


def test_who_holds_the_folder_may_enter_again(tmp_path):
    checkpoints = Checkpoints(tmp_path)
    with checkpoints.writing():
        with checkpoints.writing():
            checkpoints.save(state(10), {"best": None})
        assert checkpoints.steps() == [10]
        with pytest.raises(CheckpointError, match="is being written by"):
            saved(tmp_path, 20)
    saved(tmp_path, 20)


def test_a_folder_that_goes_away_under_the_run_is_an_error(tmp_path):
    checkpoints = Checkpoints(tmp_path / "run")
    with pytest.raises(CheckpointError, match="was deleted or replaced"), checkpoints.writing():  # noqa: PT012
        checkpoints.save(state(10), {"best": None})
        checkpoints.wait()
        shutil.rmtree(tmp_path / "run")
        checkpoints.save(state(20), {"best": None})


CHILD = """
import os, resource, shutil, signal, sys
from tests_training_faults import state
from optlab.runs import Checkpoints
from optlab.runs import _storage as storage

folder, way = sys.argv[1:]
kill = lambda *_, **__: os.kill(os.getpid(), signal.SIGKILL)
checkpoints = Checkpoints(folder, keep=1)
for step in (10, 20):
    checkpoints.save(state(step), {"best": None})
    checkpoints.wait()
if way == "verifying":
    storage.verify_share = kill
if way == "removing":
    shutil.rmtree = kill
if way == "failing":
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))
checkpoints.save(state(30), {"best": None})
if way == "writing":
    kill()
if way == "failing":
    checkpoints._pending.finished.exception()  # over before Python's end
elif way != "exiting":
    checkpoints.wait()
"""


@pytest.fixture(scope="module")
def ended(tmp_path_factory):
    """Folders whose writers were killed, or went away, in the middle of something; and how they ended."""
    here = tmp_path_factory.mktemp("ended")
    shutil.copyfile(__file__, here / "tests_training_faults.py")
    root = Path(__file__).parents[2]
    uncached = {"JAX_ENABLE_COMPILATION_CACHE": "false"}  # a program would be cut short there, too
    environment = {**os.environ, **uncached, "JAX_PLATFORMS": "cpu", "PYTHONPATH": f"{root}:{here}"}
    ways = ["writing", "verifying", "removing", "exiting", "failing"]
    children = [
        subprocess.Popen([sys.executable, "-c", CHILD, here / way, way], env=environment, stderr=subprocess.PIPE)
        for way in ways
    ]
    return {way: (here / way, *c.communicate()[1:], c.returncode) for way, c in zip(ways, children, strict=True)}


@pytest.mark.parametrize("way", ["writing", "verifying", "removing"])
def test_a_kill_loses_nothing_that_was_acknowledged_and_leaves_no_litter(ended, way):
    folder, _, code = ended[way]
    assert code == -signal.SIGKILL
    restored, _ = Checkpoints(folder).restore_latest(state(0))
    step = int(restored.step)
    assert step in {"writing": (20, 30), "verifying": (30,), "removing": (30,)}[way]
    assert (np.asarray(restored.params["w"]) == step).all()
    saved(folder, 40, keep=1)
    assert sorted(p.name for p in folder.iterdir()) == ["40", "writer.lock"]


def test_an_exit_that_waits_for_no_save_finishes_it_or_fails(ended):
    folder, error, code = ended["exiting"]
    if sys.version_info < (3, 12):
        assert code == 0, error
        assert Checkpoints(folder).steps() == [20, 30]
    else:
        assert code == 70, error
        assert b"Checkpoints.wait() has to come before Python's end" in error
        assert Checkpoints(folder).steps() == [20]


def test_an_exit_after_a_save_that_failed_and_that_nobody_waited_for_is_no_success(ended):
    folder, error, code = ended["failing"]
    assert code == 70, error
    assert b"saving step 30 to" in error
    assert Checkpoints(folder).steps() == [20]


# Whole runs: regression on 40 examples in batches of 8.

RNG = np.random.default_rng(0)
X = RNG.normal(size=(40, 4)).astype(np.float32)


class Examples:
    """A split whose reading can go wrong: `fault(indices, epoch)` raises."""

    def __init__(self, fault=lambda indices, epoch: None):
        self.fault, self.seen = fault, []

    def __len__(self):
        return len(X)

    def take(self, indices, epoch=None, seed=0):
        self.fault(indices, epoch)
        self.seen += [(epoch, i) for i in indices.tolist()]
        x = X[indices]
        return {"inputs": x, "labels": x[:, :1] - 2 * x[:, 1:2], "weight": np.ones(len(x), np.float32)}


def run(folder, *, fault=lambda indices, epoch: None, steps=10, observers=(), loss=squared_error, **settings):
    split = Examples(fault)
    source = Source("examples", split, Examples(fault), None, {})
    workload = Workload.from_model(mlp(1, widths=[4]), source, loss=loss, batch_size=8)
    return train(
        workload,
        optax.adam(0.01),
        steps=steps,
        log_every=1,
        evaluate_every=5,
        checkpoints=Checkpoints(folder / "checkpoints", every=2),
        observers=[MetricsFile(folder / "metrics.jsonl"), *observers],
        skip_log=StepLog(folder / "skipped.jsonl"),
        **settings,
    )


def lines(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def logged(folder):
    return without_seconds(read_metrics(folder))


def bits(history):
    return [np.asarray(x).tobytes() for x in jax.tree.leaves((history.state.params, history.state.opt_state))]


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    folder = tmp_path_factory.mktemp("undisturbed")
    return run(folder), logged(folder)


class At:
    """An observer that does something at a step."""

    def __init__(self, step, act):
        self.step, self.act, self.outcome = step, act, None

    def begin(self, start, steps):
        pass

    def record(self, record):
        if record["step"] == self.step:
            self.act()

    def end(self, outcome):
        self.outcome = outcome


def test_a_failed_save_ends_the_run_and_the_same_command_comes_to_the_same(tmp_path, monkeypatch, undisturbed):
    with monkeypatch.context() as patched:
        verify = storage.verify_share
        hurt = lambda path, saved: (flip(path) if path.name == "6" else None, verify(path, saved))
        patched.setattr(storage, "verify_share", hurt)
        with pytest.raises(CheckpointError, match=r"saving step 6 to .* failed"):
            run(tmp_path)
    history = run(tmp_path)
    assert [r["step"] for r in history.records] == [6, 7, 8, 9, 10]  # the best, of step 5, is saved too
    assert bits(history) == bits(undisturbed[0])
    assert logged(tmp_path) == undisturbed[1]


def test_a_run_without_its_checkpoints_starts_again_and_keeps_what_it_had_told(tmp_path, capsys, undisturbed):
    run(tmp_path)
    before = (tmp_path / "metrics.jsonl").read_bytes()
    for step in (8, 10):
        shutil.rmtree(tmp_path / "checkpoints" / str(step))
        (tmp_path / "checkpoints" / str(step)).mkdir()  # emptied
    capsys.readouterr()
    assert bits(run(tmp_path)) == bits(undisturbed[0])
    assert logged(tmp_path) == undisturbed[1]
    [aside] = tmp_path.glob("earlier-*-metrics.jsonl")
    assert aside.read_bytes() == before
    said = capsys.readouterr().err
    assert "no checkpoint to continue from" in said
    assert f"starts again from step 0, without its 10 lines up to step 10; {aside.name} is a copy with them" in said
    assert "10 is no whole checkpoint; set aside as incomplete-10-" in said


@pytest.mark.slow
def test_lines_that_went_away_between_two_calls_are_told(tmp_path, capsys):
    run(tmp_path, steps=6, fault=torn)
    capsys.readouterr()
    run(tmp_path, steps=8, fault=torn)
    assert " lines up to here" not in capsys.readouterr().err
    metrics, skipped = tmp_path / "metrics.jsonl", tmp_path / "skipped.jsonl"
    count = len(lines(skipped))
    metrics.write_text("".join(metrics.read_text().splitlines(keepends=True)[:5]))
    skipped.unlink()
    run(tmp_path, steps=10, fault=torn)
    said = capsys.readouterr().err
    assert f"{metrics} has 5 lines up to here, and had 8" in said
    assert f"{skipped} has 0 lines up to here, and had {count}" in said
    run(tmp_path, steps=12, fault=torn)
    assert " lines up to here" not in capsys.readouterr().err  # once


def test_an_error_of_the_run_leaves_the_save_under_way_whole(tmp_path, undisturbed):
    def fail():
        raise RuntimeError("a bug")

    watcher = At(5, fail)
    with pytest.raises(RuntimeError, match="a bug"):
        run(tmp_path, observers=[watcher])
    assert watcher.outcome == "RuntimeError"
    assert Checkpoints(tmp_path / "checkpoints").steps() == [2, 4]
    assert bits(run(tmp_path)) == bits(undisturbed[0])
    assert logged(tmp_path) == undisturbed[1]


@pytest.mark.parametrize("number", [signal.SIGTERM, pytest.param(signal.SIGINT, marks=pytest.mark.slow)])
def test_a_second_signal_during_the_save_does_not_break_it(tmp_path, monkeypatch, undisturbed, number):
    send = lambda: os.kill(os.getpid(), number)
    with monkeypatch.context() as patched:
        verify = storage.verify_share
        again = lambda path, saved: (send() if path.name == "5" else None, verify(path, saved))
        patched.setattr(storage, "verify_share", again)
        history = run(tmp_path, observers=[At(5, send)])  # step 5 is the last: the first steps are read at once
    assert history.outcome == f"interrupted by {number.name}"
    assert Checkpoints(tmp_path / "checkpoints").steps() == [4, 5]
    assert bits(run(tmp_path)) == bits(undisturbed[0])
    assert logged(tmp_path) == undisturbed[1]


def test_an_error_in_the_prefetch_thread_is_raised_in_the_step_that_needed_the_batch(tmp_path):
    def fault(indices, epoch):
        if epoch == 1:
            raise OSError("the disk is gone")

    watcher = At(0, None)
    with pytest.raises(OSError, match="the disk is gone"):
        run(tmp_path, fault=fault, observers=[watcher])
    assert watcher.outcome == "OSError"
    assert [r["step"] for r in read_metrics(tmp_path)] == [1, 2, 3, 4, 5]  # 40 examples in batches of 8


def torn(indices, epoch):
    for i in {3, 17} & set(indices.tolist()):
        raise DamagedRecordError([i], "torn")


def test_damaged_examples_are_named_and_the_run_goes_on_without_them(tmp_path, capsys):
    history = run(tmp_path, fault=torn, skip_limit=4)
    entries = lines(tmp_path / "skipped.jsonl")
    assert {e["why"] for e in entries} == {"torn"}
    named = [(e["split"], *e["examples"]) for e in entries]
    assert sorted(named) == [("train", 3)] * 2 + [("train", 17)] * 2 + [("validation", 3), ("validation", 17)]
    assert sorted({e["step"] for e in entries if e["split"] == "validation"}) == [5]
    assert history.outcome == "finished"
    assert capsys.readouterr().err.count("is left out: torn") == 4
    shutil.rmtree(tmp_path / "checkpoints" / "10")
    assert bits(run(tmp_path, fault=torn, skip_limit=4)) == bits(history)  # from step 8
    assert lines(tmp_path / "skipped.jsonl") == entries


@pytest.mark.parametrize("settings", [{}, {"accumulate": 2}, {"strategy": "pmap"}], ids=str)
def test_a_batch_of_damaged_examples_alone_measures_nothing_and_the_run_goes_on(tmp_path, settings):
    def fault(indices, epoch):
        if epoch == 1 and 3 in indices:
            raise DamagedRecordError(indices.tolist(), "torn")

    history = run(tmp_path, fault=fault, skip_limit=8, **settings)
    assert history.outcome == "finished"
    assert [r["step"] for r in history.records if "train/loss" not in r] == [
        lines(tmp_path / "skipped.jsonl")[0]["step"]
    ]
    assert all(np.isfinite(list(r.values())).all() for r in history.records)


@pytest.mark.parametrize("split", ["train", "validation"])
def test_a_loss_that_would_count_what_stands_in_for_a_damaged_example_is_refused(tmp_path, split):
    def fault(indices, epoch):
        if (epoch is None) == (split == "validation"):
            torn(indices, epoch)

    mean = lambda outputs, batch: squared_error(outputs, batch).mean()
    with pytest.raises(DataError, match=rf"{split} example \d+ is damaged \(torn\) .*: loss counts examples"):
        run(tmp_path, fault=fault, loss=mean)
    assert lines(tmp_path / "skipped.jsonl") == []
    assert Checkpoints(tmp_path / "checkpoints").steps() == ([2] if split == "train" else [2, 4])


def test_more_damaged_examples_than_allowed_end_the_run(tmp_path):
    with pytest.raises(DataError, match=r"2 examples are damaged, more than skip_limit=1: train 3, train 17"):
        run(tmp_path, fault=torn, skip_limit=1)


def test_a_full_disk_is_an_error_and_the_older_checkpoint_stays(tmp_path, uncached):
    checkpoints = saved(tmp_path, 10)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, hard))
    try:
        with pytest.raises(CheckpointError, match=r"saving step 20 to .* failed"), checkpoints.writing():
            checkpoints.save(state(20), {"best": None})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert checkpoints.steps() == [10]
    saved(tmp_path, 20)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["10", "20", "writer.lock"]


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_a_folder_that_may_not_be_written_to_is_an_error(tmp_path):
    checkpoints = saved(tmp_path, 10)
    tmp_path.chmod(0o500)
    with pytest.raises(CheckpointError, match=r"PermissionError"), checkpoints.writing():
        checkpoints.save(state(20), {"best": None})
    tmp_path.chmod(0o700)
    assert checkpoints.steps() == [10]
