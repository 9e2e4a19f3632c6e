"""`optlab devices` as a person meets it."""

import os
import re
import socket
import subprocess
import sys

import jax
import pytest

from optlab.commands import main
from optlab.commands.devices import _needed
from optlab.config import STRATEGIES, load, override
from optlab.data import as_batches
from optlab.experiment import _build, build
from optlab.training import StepSettings, check_memory, init_state, parallel, parallelize
from optlab.training.packed import packed
from optlab.training.step import make_measured_step
from optlab.training.strategies import _base

CONFIG = """
from optlab.config import Config, component

def get_config():
    return Config(
        data=component("digits"),
        model=component("mlp", widths=[16]),
        optimizer=component("adamw", learning_rate=1e-3),
        steps=40,
        batch_size=64,
    )
"""


def test_what_jax_sees_and_every_strategy(capsys):
    assert main(["devices"]) == 0
    out = capsys.readouterr().out
    assert re.search(rf"JAX {jax.__version__} sees 8 × cpu with \d+\.\d\d .iB each, in one process", out)
    assert re.findall(r"^ (\w+) +([18]) ", out, re.MULTILINE) == [
        (s, "1" if s == "single" else "8") for s in STRATEGIES
    ]
    assert "can be 8×1, 4×2, 2×4, 1×8 (pmap: 8×1)" in out


def test_on_one_device_it_says_how_eight_are_simulated(capsys, monkeypatch):
    monkeypatch.setattr(jax, "device_count", lambda: 1)
    assert main(["devices"]) == 0
    assert "XLA_FLAGS=--xla_force_host_platform_device_count=8 simulates eight" in capsys.readouterr().out


def test_each_strategy_of_a_config_without_a_step_or_a_state(here, capsys, monkeypatch):
    monkeypatch.setattr(_base.Bounded, "__call__", None)
    monkeypatch.setattr("optlab.training.strategies.single.make", None)  # imports it, before there is None to import
    monkeypatch.setattr(_base, "make", None)
    checks, check = [], _build._check_fit  # it traces the model, an evaluation and a step
    monkeypatch.setattr(_build, "_check_fit", lambda *parts: (checks.append(1), check(*parts)))
    assert main(["devices", "small.py", "strategy=zero1", "optimizer.weight_decay=0.1"]) == 0
    rows = re.findall(r"^ (\w+) +(\S+) +(\d+) +(\S+) KiB +(\S+) \S+ +yes", capsys.readouterr().out, re.MULTILINE)
    assert [row[:3] for row in rows] == [(s, *(("1×1", "64") if s == "single" else ("8×1", "8"))) for s in STRATEGIES]
    single, pmap, jit, zero1, fsdp = (float(row[3]) for row in rows)
    assert single == pmap == jit > zero1 > fsdp
    assert len(checks) == 1


@pytest.mark.parametrize("command", ["explain", "devices"])
def test_the_data_need_not_be_here(here, capsys, monkeypatch, command):
    monkeypatch.setattr("optlab.data._images._find_cifar", None)
    assert main([command, "small.py", "data=cifar10", "strategy=single", "model.widths=[4]"]) == 0
    assert ("3072×4" if command == "explain" else "single") in capsys.readouterr().out


@pytest.mark.parametrize("strategy", ["pmap", "fsdp"])
def test_the_figures_are_those_of_a_placed_state(here, strategy):
    experiment = build(override(load("small.py"), [f"strategy={strategy}"]))
    workload, tx, found = experiment.workload, experiment.tx, _needed(experiment)
    step = make_measured_step(workload.loss, tx, StepSettings(), axis_name="data" if strategy == "pmap" else None)
    run = parallelize(packed(step), strategy)
    state = run.place_state(lambda k: init_state(*workload.init(k), tx, key=k), jax.random.key(0))
    batch = run.place_batch(as_batches(workload.data.train, 64).batch(0))
    assert found.step == check_memory(run, state, batch) > 0
    assert found.state == sum(x.addressable_shards[0].data.nbytes for x in jax.tree.leaves(state))


@pytest.mark.parametrize(
    ("words", "fitting", "reason"),
    [
        (["batch_size=130"], ["single"], r"pmap, jit, zero1, fsdp: batch_size must be .* of 8 .*say batch_size=128"),
        (["batch_size=3"], ["single"], r"got 3: say batch_size=8,"),
        (["strategy=jit", "mesh.data=16"], ["single"], "pmap, jit, zero1, fsdp: mesh.data=16 times"),
        (["mesh.model=2"], ["single", "jit", "zero1", "fsdp"], "pmap: mesh.model=2 needs strategy=jit"),
    ],
)
def test_what_does_not_fit_is_said_beside_what_does(here, capsys, words, fitting, reason):
    assert main(["devices", "small.py", *words]) == 0
    out = capsys.readouterr().out
    assert re.findall(r"^ (\w+) .* yes", out, re.MULTILINE) == fitting
    assert re.search(reason, out)


def test_too_little_memory_is_said_with_what_takes_less(here, capsys, monkeypatch):
    monkeypatch.setattr(parallel, "memory_of", lambda device: 1000)
    assert main(["devices", "small.py", "batch_size=3"]) == 0
    out = capsys.readouterr().out
    assert re.search(r"^ single +1×1 +3 .*iB +no", out, re.MULTILINE)
    assert "accumulate=4" in out


@pytest.mark.slow
def test_of_several_processes_the_first_one_says_it(here):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        where = f"127.0.0.1:{free.getsockname()[1]},2"
    program = "import sys; from optlab.commands import main; sys.exit(main())"
    command = [sys.executable, "-c", program, "devices", "small.py", "--processes"]
    cache = {"JAX_COMPILATION_CACHE_DIR": jax.config.jax_compilation_cache_dir}
    environment = {**os.environ, **cache, "JAX_NUM_CPU_DEVICES": "2", "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0"}
    both = [subprocess.Popen([*command, f"{where},{i}"], env=environment, stdout=subprocess.PIPE) for i in range(2)]
    first, second = (process.communicate(timeout=120)[0].decode() for process in both)
    assert [process.returncode for process in both] == [0, 0]
    assert "sees 4 × cpu" in first
    assert "in 2 processes, 2 of them in this one" in first
    assert re.findall(r"^ (\w+) .* yes", first, re.MULTILINE) == ["pmap", "jit", "zero1", "fsdp"]
    assert "single: strategy=single is one process, here are 2" in first
    assert second == ""


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["small.py", "stepz=1"], "optlab: unknown key 'stepz'; did you mean 'steps'?"),
        (["smal.py"], "optlab: no config file 'smal.py'; did you mean 'small.py'?"),
        (["small.py", "optimizer.weight_decay=no"], "weight_decay"),
        (["batch_size=64"], "optlab: no config file 'batch_size=64'"),
    ],
)
def test_bad_input_is_two_lines_at_most_and_exit_2(here, capsys, words, message):
    assert main(["devices", *words]) == 2
    out, error = capsys.readouterr()
    assert message in error
    assert out == ""
    assert error.count("\n") <= 2
