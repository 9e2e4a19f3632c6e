"""Checkpoints: what is saved comes back bit for bit, and what doesn't fit is named."""

import dataclasses
import errno
import gc
import json
import logging
import shutil
import subprocess
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

from optlab.runs import _checkpoints as checkpoint
from optlab.runs import _storage as storage
from optlab.runs._listing import METADATA
from optlab.training import (
    CheckpointError,
    Checkpoints,
    DamagedError,
    TrainState,
    init_state,
    load_params,
)


class Moments(NamedTuple):
    mu: jax.Array
    nu: jax.Array


def state(seed=0, step=10):
    keys = jax.random.split(jax.random.key(seed), 4)
    params = {
        "dense": {"kernel": jax.random.normal(keys[0], (4, 3)), "bias": jnp.zeros(3, jnp.bfloat16)},
        "list": [jnp.ones(2, jnp.float16), jnp.arange(3)],
        "empty": jnp.zeros((0, 3)),
    }
    opt_state = (Moments(jax.random.normal(keys[1], (4,)), jnp.zeros(())), optax.EmptyState(), {"key": keys[2]})
    return TrainState(
        jnp.int32(step), params, {"mean": jnp.float32(3)}, opt_state, jax.random.key(seed, impl="rbg"), params
    )


def bits(tree):
    plain = jax.tree.map(lambda x: jax.random.key_data(x) if jnp.issubdtype(x.dtype, jax.dtypes.prng_key) else x, tree)
    return [(x.dtype, x.shape, np.asarray(x).tobytes()) for x in jax.tree.leaves(plain)]


def save(folder, *states, **kwargs):
    checkpoints = Checkpoints(folder, **kwargs)
    for s in states:
        checkpoints.save(s, {"best": None, "note": int(s.step)})
    checkpoints.wait()
    return checkpoints


def test_every_kind_of_leaf_comes_back_as_it_was(tmp_path):
    checkpoints = save(tmp_path, state())
    restored = checkpoints.restore(state(1), 10)
    assert bits(restored) == bits(state())
    assert jax.tree.structure(restored) == jax.tree.structure(state())
    assert str(jax.random.key_impl(restored.key)) == str(jax.random.key_impl(state().key))
    assert checkpoints.notes(10) == {"best": None, "note": 10}


def test_the_arrays_are_copied_before_the_next_step_overwrites_them(tmp_path):
    """Saving returns while it writes; a step then gives the state's buffers away."""
    big = init_state({"w": jnp.zeros((512, 512))}, {}, optax.adam(0.1), key=jax.random.key(0))
    step = jax.jit(lambda s: jax.tree.map(lambda x: x + 1 if x.dtype != s.key.dtype else x, s), donate_argnums=0)
    checkpoints = Checkpoints(tmp_path, keep=50)
    for _ in range(5):
        big = step(big)
        checkpoints.save(big, {})
        for _ in range(3):
            big = step(big)
    checkpoints.wait()
    for number in checkpoints.steps():
        assert (np.asarray(load_params(tmp_path, step=number)["w"]) == number).all()


def test_the_latest_and_the_best_are_kept(tmp_path):
    checkpoints = Checkpoints(tmp_path, keep=2)
    for step in (1, 2, 3, 4, 5):
        checkpoints.save(state(step=step), {}, best=2 if step >= 2 else 1)
    checkpoints.wait()
    assert checkpoints.steps() == [2, 4, 5]
    assert sorted(p.name for p in tmp_path.iterdir()) == ["2", "4", "5", "writer.lock"]


def test_a_folder_that_is_no_checkpoint_is_set_aside(tmp_path):
    save(tmp_path, state())
    (tmp_path / "20").mkdir()
    (tmp_path / "20" / "mine.txt").write_text("precious")
    (tmp_path / "notes").mkdir()
    checkpoints = Checkpoints(tmp_path)
    assert checkpoints.steps() == [10]
    save(tmp_path, state(step=20))
    assert Checkpoints(tmp_path).steps() == [10, 20]
    assert [p.read_text() for p in tmp_path.glob("incomplete-20-*/mine.txt")] == ["precious"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda s: {**s.params, "dense": {"kernel": jnp.zeros((4, 5)), "bias": s.params["dense"]["bias"]}},
         r"params/dense/kernel \(float32\[4, 3\] there, float32\[4, 5\] here\)"),
        (lambda s: {**s.params, "dense": {"kernel": jnp.zeros((4, 3), jnp.float16), "bias": s.params["dense"]["bias"]}},
         r"params/dense/kernel \(float32\[4, 3\] there, float16\[4, 3\] here\)"),
        (lambda s: {**s.params, "more": jnp.zeros(1)}, r"params/more \(absent there, float32\[1\] here\)"),
        (lambda s: {"dense": s.params["dense"], "list": s.params["list"]},
         r"params/empty \(float32\[0, 3\] there, absent here\)"),
    ],
)  # fmt: skip
def test_another_structure_shape_or_dtype_is_named(tmp_path, change, message):
    checkpoints = save(tmp_path, state())
    with pytest.raises(CheckpointError, match=message):
        checkpoints.restore(dataclasses.replace(state(), params=change(state())), 10)


def test_another_optimizer_is_named(tmp_path):
    save(tmp_path, init_state({"w": jnp.ones(3)}, {}, optax.adam(0.1), key=jax.random.key(0)))
    other = init_state({"w": jnp.ones(3)}, {}, optax.sgd(0.1, momentum=0.9), key=jax.random.key(0))
    with pytest.raises(CheckpointError, match=r"of another model or optimizer: opt_state/0/count .*another folder"):
        Checkpoints(tmp_path).restore(other, 0)


def test_names_that_collide_are_refused_at_save(tmp_path):
    params = {"a": {"b": jnp.ones(1)}, "a/b": jnp.zeros(1)}
    with pytest.raises(CheckpointError, match="two leaves of the state are named 'params/a/b'"):
        save(tmp_path, dataclasses.replace(state(), params=params))


def test_parameters_load_without_a_config(tmp_path):
    save(tmp_path / "checkpoints", state(0, 5), state(1, 6))
    params = load_params(tmp_path)
    assert bits(params) == bits(state(1).params)
    assert isinstance(params["list"], list)
    assert bits(load_params(tmp_path, step=5)) == bits(state(0).params)
    assert bits(load_params(tmp_path / "checkpoints", collection="ema")) == bits(state(1).params)
    assert load_params(tmp_path, collection="model_state")["mean"] == 3


def test_what_is_not_there_is_named(tmp_path):
    with pytest.raises(CheckpointError, match=r"no checkpoint in .*; saved are \[\]"):
        load_params(tmp_path)
    save(tmp_path, dataclasses.replace(state(), ema=None))
    with pytest.raises(CheckpointError, match=r"no checkpoint of step 3 in .*; saved are \[10\]"):
        load_params(tmp_path, step=3)
    with pytest.raises(CheckpointError, match="holds no ema"):
        load_params(tmp_path, collection="ema")
    with pytest.raises(CheckpointError, match=r"no checkpoint of step best in .*nowhere; saved are \[\]"):
        load_params(tmp_path / "nowhere", step="best")


def test_a_damaged_checkpoint_is_named(tmp_path):
    save(tmp_path, state())
    for path in (tmp_path / "10" / "state").rglob("*"):
        if path.is_file() and path.parent.name == "d":
            path.write_bytes(b"")
    with pytest.raises(CheckpointError, match="10 can't be read"):
        Checkpoints(tmp_path).restore(state(), 10)


def files_of(folder):
    return sorted(p for p in folder.rglob("*") if p.is_file())


@pytest.mark.parametrize("part", range(4))
def test_a_flipped_bit_is_never_restored_in_silence(part, tmp_path):
    """In whatever file: the same state comes back, or an error; never another value. What verifies can be restored."""
    save(tmp_path / "whole", state())
    want, rng = bits(state()), np.random.default_rng(part)
    silent = seen = 0
    for path in files_of(tmp_path / "whole" / "10")[part::4]:
        content = bytearray(path.read_bytes())
        for position in rng.integers(0, max(1, len(content)), 3 if content else 0):
            changed = bytearray(content)
            changed[position] ^= 1 << int(rng.integers(8))
            path.write_bytes(changed)
            checkpoints, is_verified = Checkpoints(tmp_path / "whole"), False
            try:
                checkpoints.verify(10)
                is_verified = True
                silent += bits(checkpoints.restore(state(1), 10)) != want
            except CheckpointError:
                assert not is_verified, path
                seen += 1
        path.write_bytes(content)
    assert silent == 0
    assert bits(Checkpoints(tmp_path / "whole").restore(state(1), 10)) == want


def test_a_changed_array_is_named_by_its_fingerprint(tmp_path, monkeypatch):
    """What the file format itself doesn't notice."""
    save(tmp_path, state())
    load = storage.ocp.load

    def damaged(*args):
        found = load(*args)
        kernel = "params/dense/kernel"
        sign = np.where(np.arange(found[kernel].size).reshape(found[kernel].shape) == 5, -1, 1)
        return {**found, kernel: found[kernel] * sign.astype(found[kernel].dtype)}

    monkeypatch.setattr(storage.ocp, "load", damaged)
    with pytest.raises(DamagedError, match="10 is damaged: params/dense/kernel isn't what was saved"):
        Checkpoints(tmp_path).restore(state(1), 10)
    with pytest.raises(DamagedError, match="params/dense/kernel"):
        Checkpoints(tmp_path).verify(10)
    with pytest.raises(DamagedError, match="params/dense/kernel"):
        load_params(tmp_path)


def damage(folder):
    for path in files_of(folder / "state"):
        if path.parent.name == "d":
            path.write_bytes(path.read_bytes()[:-7])


def test_the_newest_whole_checkpoint_is_taken_and_damaged_ones_are_set_aside(tmp_path, capsys):
    save(tmp_path, *(state(i, step=i) for i in (10, 20, 30)), keep=3)
    for step in ("20", "30"):
        damage(tmp_path / step)
    checkpoints = Checkpoints(tmp_path)
    restored, notes = checkpoints.restore_latest(state())
    assert bits(restored) == bits(state(10, step=10))
    assert notes["note"] == 10
    assert checkpoints.steps() == [10]
    assert [p.name[:14] for p in sorted(tmp_path.glob("quarantine-*"))] == ["quarantine-20-", "quarantine-30-"]
    assert capsys.readouterr().err.count("set aside as quarantine-") == 2


def test_where_none_is_whole_the_run_refuses_now_and_later(tmp_path):
    save(tmp_path, state())
    damage(tmp_path / "10")
    for _ in range(2):
        with pytest.raises(CheckpointError, match=r"doesn't start again from 0 by itself; set aside: quarantine-10-"):
            Checkpoints(tmp_path).restore_latest(state())
    assert Checkpoints(tmp_path / "other").restore_latest(state()) is None


def test_an_emptied_checkpoint_is_told_when_it_is_passed_over(tmp_path, capsys):
    save(tmp_path, state(), state(step=20))
    shutil.rmtree(tmp_path / "20")
    (tmp_path / "20").mkdir()
    assert int(Checkpoints(tmp_path).restore_latest(state())[0].step) == 10
    assert "20 holds no whole checkpoint: passed over" in capsys.readouterr().err


@pytest.mark.parametrize("name", ["commit_success.txt", "_CHECKPOINT_METADATA", "state"])
def test_one_that_lost_a_file_is_never_forgotten(name, tmp_path):
    save(tmp_path, state())
    lost = tmp_path / "10" / name
    shutil.rmtree(lost) if lost.is_dir() else lost.unlink()
    try:
        restored = Checkpoints(tmp_path).restore_latest(state(1))
    except CheckpointError:
        assert list(tmp_path.glob("quarantine-10-*"))
    else:
        assert bits(restored[0]) == bits(state())


def test_another_structure_sets_nothing_aside(tmp_path):
    save(tmp_path, state())
    with pytest.raises(CheckpointError, match="another model or optimizer"):
        Checkpoints(tmp_path).restore_latest(dataclasses.replace(state(), ema=None))
    assert Checkpoints(tmp_path).steps() == [10]


def test_an_average_may_come_and_go_where_it_is_asked_for(tmp_path):
    checkpoints = save(tmp_path, state(), dataclasses.replace(state(step=20), ema=None))
    assert checkpoints.restore(dataclasses.replace(state(), ema=None), 10, optional=("ema",)).ema is None
    restored = checkpoints.restore(state(1), 20, optional=("ema",))
    assert bits(restored.ema) == bits(restored.params) == bits(state().params)


@pytest.mark.parametrize("error", [OSError(errno.ESTALE, "Stale file handle"), OSError(errno.EMFILE, "Too many")])
def test_what_is_wrong_with_the_machine_sets_nothing_aside(error, tmp_path, monkeypatch):
    save(tmp_path, state())

    def failing(*_):
        raise error

    with monkeypatch.context() as patched:
        patched.setattr(Path, "read_bytes", failing)
        with pytest.raises(CheckpointError, match="could not be read: OSError"):
            Checkpoints(tmp_path).restore_latest(state(1))
    monkeypatch.setattr(storage.ocp, "load", failing)
    with pytest.raises(CheckpointError, match="could not be read: OSError"):
        Checkpoints(tmp_path).restore_latest(state(1))
    assert Checkpoints(tmp_path).steps() == [10]


@pytest.mark.parametrize("seal", ["null", "[]", "3", '"x"', '{"content": 3, "sha256": "x"}'])
def test_a_seal_that_is_none_is_damage(seal, tmp_path):
    save(tmp_path, state(), state(1, step=20))
    file = tmp_path / "20" / METADATA
    about = json.loads(file.read_text())
    file.write_text(json.dumps({**about, "custom_metadata": json.loads(seal)}))
    assert bits(Checkpoints(tmp_path).restore_latest(state(1))[0]) == bits(state())


def test_a_state_may_live_in_several_places(tmp_path):
    """Divided parameters beside scalars that are free to go to them, and beside an array of another device."""
    mesh = jax.make_mesh((8,), ("data",), axis_types=(AxisType.Auto,))
    params = {"w": jax.device_put(jnp.arange(16.0), NamedSharding(mesh, P("data")))}
    params["other"] = jax.device_put(jnp.ones(3), jax.devices()[3])
    s = TrainState(jnp.int32(1), params, {}, optax.adam(1e-3).init(params), jax.random.key(0))
    save(tmp_path, s)
    restored, _ = Checkpoints(tmp_path).restore_latest(s)
    assert bits(restored) == bits(s)
    assert restored.params["w"].sharding == s.params["w"].sharding
    np.testing.assert_array_equal(jax.jit(jnp.multiply)(restored.params["w"], restored.step), np.arange(16.0))
    np.testing.assert_array_equal(jax.jit(jnp.multiply)(restored.params["other"], restored.step), np.ones(3))


def test_an_average_that_begins_lives_where_it_is_wanted(tmp_path):
    mesh = jax.make_mesh((8,), ("data",), axis_types=(AxisType.Auto,))
    params = {"w": jax.device_put(jnp.arange(16.0), NamedSharding(mesh, P()))}
    s = TrainState(jnp.int32(1), params, {}, (), jax.random.key(0))
    save(tmp_path, s)
    divided = {"w": jax.device_put(params["w"], NamedSharding(mesh, P("data")))}
    restored = Checkpoints(tmp_path).restore(dataclasses.replace(s, ema=divided), 1, optional=("ema",))
    assert restored.ema["w"].sharding == divided["w"].sharding
    assert bits(restored.ema) == bits(params)


def test_what_may_not_be_read_is_told(tmp_path, monkeypatch):
    save(tmp_path, state())

    def refused(path):
        raise PermissionError(errno.EACCES, "Permission denied", str(path))

    with monkeypatch.context() as patched:
        patched.setattr(Path, "read_bytes", refused)
        exists = Path.exists
        patched.setattr(Path, "exists", lambda p: refused(p) if p.parent.name == "10" else exists(p))
        with pytest.raises(CheckpointError, match="could not be read: PermissionError"):
            Checkpoints(tmp_path).restore_latest(state(1))
    assert Checkpoints(tmp_path).steps() == [10]


def test_it_is_restored_by_shapes(tmp_path):
    save(tmp_path, state())
    restored = Checkpoints(tmp_path).restore(jax.eval_shape(lambda: state(1)), 10)
    assert bits(restored) == bits(state())
    assert jax.random.key_impl(restored.key) == jax.random.key_impl(state().key)


def test_another_kind_of_leaf_is_refused_by_name(tmp_path):
    with pytest.raises(CheckpointError, match="step is a int: a state holds JAX's arrays"):
        save(tmp_path, dataclasses.replace(state(), step=10))


@pytest.mark.parametrize(
    ("folder", "every", "named"),
    [("lr[1]", 1, r"\[, \], \*, \? or"), ("a\\b", 1, r"\[, \], \*, \? or"), ("run", 2.5, "every must be")],
)
def test_what_cant_work_is_refused_at_once(folder, every, named, tmp_path):
    with pytest.raises(ValueError, match=named):
        Checkpoints(tmp_path / folder, every=every)
    assert list(tmp_path.iterdir()) == []


def test_threads_save_to_folders_of_their_own(tmp_path):
    def work(name):
        save(tmp_path / name, *(state(step=i) for i in range(3)))

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(work, "abcd"))
    for name in "abcd":
        assert bits(Checkpoints(tmp_path / name).restore(state(1), 2)) == bits(state(step=2))


def test_what_one_process_cannot_write_it_tells_without_asking_the_others(tmp_path, monkeypatch):
    """They wait for its part."""
    checkpoints = Checkpoints(tmp_path)
    with monkeypatch.context() as patched:
        patched.setattr(storage._Save, "result", lambda save: (storage._TURN.release(), 1 / 0))
        checkpoints.save(state(), {})
        patched.setattr(checkpoint, "together", lambda kind: pytest.fail("asked"))
        with pytest.raises(CheckpointError, match=r"saving step 10 to .* failed: ZeroDivisionError"):
            checkpoints.wait()


def test_a_child_that_holds_the_lock_s_file_holds_no_lock(tmp_path):
    checkpoints = Checkpoints(tmp_path)
    with checkpoints.writing():
        child = subprocess.Popen(["sleep", "60"], pass_fds=[checkpoints._lock._file.fileno()])
    try:
        save(tmp_path, state())
    finally:
        child.kill()
        child.wait()


def test_a_reader_leaves_a_damaged_one_to_the_writer(tmp_path, capsys):
    save(tmp_path, state(), state(1, step=20))
    damage(tmp_path / "20")
    with Checkpoints(tmp_path).writing():
        restored, _ = Checkpoints(tmp_path).restore_latest(state(1))  # as if from another process: flock is the file's
    assert bits(restored) == bits(state())
    assert Checkpoints(tmp_path).steps() == [10, 20]
    assert "left where it is" in capsys.readouterr().err


def test_a_failed_save_is_an_error(tmp_path):
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(CheckpointError, match=r"file/checkpoints can't be written to: NotADirectoryError"):
        save(tmp_path / "file" / "checkpoints", state())


@pytest.mark.parametrize(("name", "value"), [("every", 0), ("keep", -1)])
def test_bad_arguments_are_named(tmp_path, name, value):
    with pytest.raises(ValueError, match=f"{name} must be a whole number of at least 1, got {value}"):
        Checkpoints(tmp_path, **{name: value})


def test_the_step_just_saved_is_kept_after_a_rollback(tmp_path):
    checkpoints = save(tmp_path, *(state(step=i) for i in (10, 20, 30, 11)), keep=2)
    assert checkpoints.steps() == [11, 20, 30]


def test_a_copy_under_another_step_is_set_aside(tmp_path):
    checkpoints = save(tmp_path, state(step=20), state(step=30))
    shutil.copytree(tmp_path / "20", tmp_path / "20000")
    with pytest.raises(DamagedError, match="20000 is a copy of step 20"):
        checkpoints.restore(state(), 20000)
    restored, _ = checkpoints.restore_latest(state())
    assert int(restored.step) == 30
    assert checkpoints.steps() == [20, 30]
    assert [p.name[:17] for p in tmp_path.glob("quarantine-*")] == ["quarantine-20000-"]


def test_only_a_step_as_it_is_written_is_one(tmp_path):
    save(tmp_path, state(step=20))
    shutil.copytree(tmp_path / "20", tmp_path / "020")
    shutil.copytree(tmp_path / "20", tmp_path / "²")
    assert Checkpoints(tmp_path).steps() == [20]
    assert save(tmp_path, state(step=30), keep=1).steps() == [30]


@pytest.mark.parametrize("where", ["params", "ema"])
def test_parameters_that_are_not_finite_are_refused_by_name(tmp_path, where):
    broken = {**state().params, "dense": {"kernel": jnp.full((4, 3), jnp.inf), "bias": jnp.zeros(3, jnp.bfloat16)}}
    with pytest.raises(CheckpointError, match=f"step 10: {where}/dense/kernel isn't finite"):
        save(tmp_path, dataclasses.replace(state(), **{where: broken}))
    assert Checkpoints(tmp_path).steps() == []


def test_notes_may_hold_what_is_not_a_number_and_tuples(tmp_path):
    checkpoints = Checkpoints(tmp_path)
    for _ in range(2):
        checkpoints.save(state(), {"best": (10, float("nan"))})
        checkpoints.wait()
    assert checkpoints.steps() == [10]


def test_what_holds_no_array_shifts_nothing_in_a_list(tmp_path):
    params = [{"w": jnp.ones(2)}, (), {}, (jnp.zeros(3), jnp.ones(3))]
    save(tmp_path, dataclasses.replace(state(), params=params, ema=None))
    found = load_params(tmp_path)
    assert found[1:3] == [{}, {}]
    assert bits(found[3]) == bits(params[3])


def test_nnx_takes_its_parameters_back(tmp_path):
    def make(seed):
        layers = [nnx.Linear(2, 2, rngs=nnx.Rngs(seed + i)) for i in range(2)]
        return nnx.Sequential(*layers)

    model, other = make(0), make(5)
    save(tmp_path, dataclasses.replace(state(), params=nnx.state(model, nnx.Param), ema=None))
    found = load_params(tmp_path)
    nnx.update(other, found)
    assert bits(nnx.state(other)) == bits(nnx.state(model))


def test_numbers_that_name_stay_numbers(tmp_path):
    params = {0: jnp.ones(2), 3: {"value": jnp.zeros(3)}}
    save(tmp_path, dataclasses.replace(state(), params=params, ema=None))
    assert jax.tree.structure(load_params(tmp_path)) == jax.tree.structure(params)


def test_double_precision_is_verified_where_jax_lacks_it_and_no_damage(tmp_path):
    with jax.enable_x64(True):
        params = {"w": jnp.asarray([1 / 3, 2.0]), "z": jnp.asarray([1 / 3 + 2j]), "n": jnp.asarray([2**40])}
        checkpoints = save(tmp_path, dataclasses.replace(state(), params=params, ema=None))
    checkpoints.verify(10)
    with pytest.raises(CheckpointError, match="params/n is int64, which needs JAX_ENABLE_X64=1") as raised:
        load_params(tmp_path)
    assert not isinstance(raised.value, DamagedError)
    damage(tmp_path / "10")
    with pytest.raises(DamagedError):
        checkpoints.verify(10)


def test_the_best_is_refused_where_none_is_noted(tmp_path):
    save(tmp_path, state())
    with pytest.raises(CheckpointError, match=r"10 notes no best step; saved are \[10\]"):
        load_params(tmp_path, step="best")


def test_of_a_damaged_checkpoint_our_error_alone_is_told(tmp_path, caplog):
    checkpoints = save(tmp_path, state())
    damage(tmp_path / "10")
    with pytest.raises(DamagedError):
        checkpoints.restore(state(), 10)
    gc.collect()
    assert caplog.messages == []
    logging.getLogger("absl").warning("another's")
    assert caplog.messages == ["another's"]
