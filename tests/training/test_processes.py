"""Several processes as one: the same result as one device's, one checkpoint, one end, and a start after a death."""

import contextlib
import os
import pickle
import re
import shutil
import socket
import subprocess
import sys
import time
from pathlib import Path

import jax
import numpy as np
import pytest

from optlab._processes import connect
from optlab.commands import launch as launcher
from optlab.commands import main
from optlab.config import ConfigError
from optlab.runs._metrics import without_seconds
from optlab.training import Checkpoints, load_params, read_metrics

WORKER = Path(__file__).with_name("two_processes.py")
STRATEGIES = ["jit", "jit:2", "pmap", "zero1", "fsdp"]
ENVIRONMENT = {
    **os.environ,
    "JAX_PLATFORMS": "cpu",
    "XLA_FLAGS": "--xla_force_host_platform_device_count=2 --xla_backend_optimization_level=0",  # quick to compile
    "PYTHONPATH": str(WORKER.parents[2]),
}


def start(where, out, *strategies):
    command = [sys.executable, str(WORKER), where, str(out), *strategies]
    return subprocess.Popen(command, env=ENVIRONMENT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def finish(*started):
    for process in started:
        said, _ = process.communicate(timeout=200)
        assert process.returncode == 0, said


def results(out, index=0):
    return pickle.loads(Path(f"{out}.{index}").read_bytes())


def pair(out, *strategies):
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    finish(*(start(f"127.0.0.1:{port},2,{index}", out, *strategies) for index in range(2)))
    return results(out, 0), results(out, 1)


@pytest.fixture(scope="module")
def ran(tmp_path_factory):
    """What one process came to, in float64; two; and one that continued from the two's checkpoint; their folder."""
    here = tmp_path_factory.mktemp("processes")
    finish(start("alone", here / "alone", f"single@{here / 'by-one'}"))
    shutil.rmtree(here / "by-one" / "checkpoints" / "6")  # as if it had been stopped before
    strategies = ["jit", "jit:2", "pmap", f"zero1@{here / 'by-two'}", f"fsdp@{here / 'by-one'}"]
    first, second = pair(here / "pair", *strategies)
    shutil.rmtree(here / "by-two" / "checkpoints" / "6")
    finish(start("alone", here / "rest", f"single@{here / 'by-two'}"))
    return results(here / "alone")["single"], first, second, results(here / "rest")["single"], here


def difference(found, wanted):
    """The largest, relative to the leaf's largest value."""
    pairs = zip(found["leaves"], wanted["leaves"], strict=True)
    return np.max([np.abs(x - y).max() / max(np.abs(y).max(), 1e-30) for x, y in pairs])  # NaN if one is


@pytest.mark.slow
@pytest.mark.parametrize("strategy", STRATEGIES)
def test_two_processes_come_to_what_one_device_does(ran, strategy):
    alone, first, *_ = ran
    found = first[strategy]
    assert found["leaves"][0].dtype == np.float64
    assert difference(found, alone) < 1e-9
    for mine, theirs in zip(found["records"], alone["records"][-len(found["records"]) :], strict=True):
        assert {**mine, "seconds": 0} == pytest.approx({**theirs, "seconds": 0}, rel=1e-5)  # metrics are float32


@pytest.mark.slow
@pytest.mark.parametrize("strategy", STRATEGIES)
def test_every_process_reads_its_share_alone_and_has_the_same_metrics(ran, strategy):
    alone, first, second, *_ = ran
    mine, theirs = first[strategy], second[strategy]
    assert without_seconds(mine["records"]) == without_seconds(theirs["records"])
    assert alone["read"] == 6 * 24
    assert mine["read"] == theirs["read"] == len(mine["records"]) * 24 // 2


@pytest.mark.slow
@pytest.mark.parametrize("strategy", STRATEGIES)
def test_the_first_process_alone_tells_the_observers(ran, strategy):
    _, first, second, *_ = ran
    assert first[strategy]["told"] == [r["step"] for r in first[strategy]["records"]]
    assert second[strategy]["told"] == []


@pytest.mark.slow
def test_one_process_continues_from_two_and_two_from_one(ran):
    alone, first, _, rest, here = ran
    assert [r["step"] for r in first["fsdp"]["records"]] == [r["step"] for r in rest["records"]] == [4, 5, 6]
    assert difference(first["fsdp"], alone) < 1e-9
    assert difference(rest, alone) < 1e-9
    for folder in ("by-one", "by-two"):
        assert [r["step"] for r in read_metrics(here / folder)] == [1, 2, 3, 4, 5, 6]
        assert sorted(p.name for p in (here / folder / "checkpoints").iterdir()) == ["3", "6", "writer.lock"]


@pytest.mark.slow
def test_a_damaged_example_is_left_out_by_whichever_process_reads_it_and_logged_by_the_first(ran):
    alone, first, *_ = ran
    assert [(e["split"], e["examples"], e["why"]) for e in alone["skipped"]][:3] == [("train", [7], "torn")] * 3
    for strategy in STRATEGIES:
        mine = first[strategy]
        assert mine["skipped"] == [e for e in alone["skipped"] if e["step"] > 6 - len(mine["records"])]


@pytest.mark.parametrize(
    ("where", "message"),
    [
        ("banana", "processes must be auto .* or HOST:PORT,COUNT,INDEX, got 'banana'"),
        ("10.0.0.1:1234,2", "processes must be auto"),
        ("10.0.0.1:1234,2,2", r"the index must lie in \[0, 2\), got 2"),
        ("10.0.0.1:123456,2,1", r"the port must lie in \[1, 65535\], got 123456"),
    ],
)
def test_a_wrong_address_is_refused_before_anything_starts(where, message):
    with pytest.raises(ValueError, match=message):
        connect(where)


def test_connecting_after_the_first_device_is_refused():
    jax.devices()
    with pytest.raises(RuntimeError, match="comes too late: JAX has its devices already"):
        connect("127.0.0.1:1234,2,0")


CONFIG = """
from optlab.config import Config, component

def get_config():
    return Config(
        data=component("deadly:data"),
        model=component("mlp", widths=[8]),
        optimizer=component("sgd", learning_rate=0.05),
        batch_size=64,
        steps=40,
        evaluate_every=20,
        strategy="jit",
    )
"""
DEADLY = """
import dataclasses, os, signal, time
from pathlib import Path
from optlab.data import digits

AM_LAST = os.environ.get("OPTLAB_PROCESSES", "").endswith((",2,1", ",1,0"))

class Deadly:
    '''A split whose last process sends itself a signal, once.'''

    def __init__(self, split, number):
        self.split, self.number, self.taken = split, number, 0
        self.mark = Path(signal.Signals(number).name)

    def __len__(self):
        return len(self.split)

    def take(self, indices, *rest):
        self.taken += len(indices) > 2  # not those for shapes and checks
        if AM_LAST and self.taken == 18 and not self.mark.exists():
            self.mark.touch()
            os.kill(os.getpid(), self.number)
        if self.number == signal.SIGTERM and self.mark.exists():
            time.sleep(0.2)  # JAX looks every second
        return self.split.take(indices, *rest)

def data(*, number: int = 0):
    if number == -1 and AM_LAST:
        raise ValueError("the file is on the first machine alone")
    if number == -2:  # says where it is, and stays there
        Path(f"asleep-{os.getpid()}").touch()
        time.sleep(600)
    source = digits()
    return dataclasses.replace(source, train=Deadly(source.train, number)) if number > 0 else source
"""


@pytest.fixture
def here(tmp_path, monkeypatch):
    """A directory with a config in it."""
    (tmp_path / "small.py").write_text(CONFIG)
    (tmp_path / "deadly.py").write_text(DEADLY)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    return tmp_path


MAIN = "import sys; from optlab.commands import main; sys.exit(main())"


def launch(*words):
    command = [sys.executable, "-c", MAIN, "launch", *words]
    return subprocess.run(command, env=ENVIRONMENT, capture_output=True, text=True, timeout=200)


@pytest.mark.slow
def test_a_dead_process_takes_the_run_back_to_its_last_checkpoint_and_no_further(here):
    words = ["train", "small.py", "log.every=5"]
    assert main([*words, "mesh.data=4", "--run", "undisturbed"]) == 0
    done = launch("-n", "2", "--restarts", "1", "--", *words, "data.number=9", "checkpoint.every=5", "--run", "killed")
    assert done.returncode == 0, done.stderr
    told = r"process 1 of 2 was killed by SIGKILL; all start again from step (\d+) \(restart 1 of 1\)"
    (step,) = re.findall(told, done.stderr)
    assert step in ("5", "10", "15")
    assert f"continuing after step {step}\n" in done.stdout
    wanted, found = (read_metrics(run) for run in ("undisturbed", "killed"))
    assert [r["step"] for r in found] == [r["step"] for r in wanted] == list(range(5, 41, 5))
    for x, y in zip(*(jax.tree.leaves(load_params(run)) for run in ("killed", "undisturbed")), strict=True):
        assert np.abs(x - y).max() < 2e-6 * np.abs(y).max()


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="reads /proc")
def test_the_processes_dont_outlive_a_launcher_that_is_killed(here):
    """Both sleep long; they are found by their run's name."""
    words = ["launch", "-n", "2", "--", "train", "small.py", "data.number=-2", "--run", f"{here}/orphans"]
    launcher = subprocess.Popen([sys.executable, "-c", MAIN, *words], env=ENVIRONMENT, stderr=subprocess.PIPE)
    try:
        await_that(lambda: len(list(here.glob("asleep-*"))) == 2)
        assert len(running(f"{here}/orphans")) == 3
    finally:
        launcher.kill()
        launcher.wait()
    await_that(lambda: not running(f"{here}/orphans"))


def running(word):
    """The processes that were started with this word."""
    found = []
    for folder in Path("/proc").iterdir():
        with contextlib.suppress(OSError):
            if folder.name.isdigit() and word in (folder / "cmdline").read_text().split("\0"):
                found.append(int(folder.name))
    return found


def await_that(holds, seconds=60):
    until = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < until
        time.sleep(0.1)


@pytest.mark.slow
def test_too_many_deaths_end_the_launch(here):
    done = launch("-n", "1", "--restarts", "0", "--", "train", "small.py", "data.number=9", "--run", "killed")
    assert done.returncode == 1
    assert "killed by SIGKILL; given up after 0 restarts; the same command goes on from the beginning" in done.stderr


@pytest.mark.slow
def test_a_signal_to_one_process_ends_all_at_one_step_saved(here):
    done = launch("-n", "2", "--", "train", "small.py", "data.number=15", "--run", "ended")
    assert done.returncode == 75, done.stderr
    (step,) = re.findall(r"interrupted by SIGTERM after step (\d+)", done.stdout)
    assert str(max(Checkpoints("ended/checkpoints").steps())) == step
    assert 10 < int(step) < 40


@pytest.mark.slow
def test_what_one_process_alone_finds_wrong_is_told_and_nobody_waits(here):
    done = launch("-n", "2", "--", "train", "small.py", "data.number=-1")
    assert done.returncode == 2
    assert done.stderr.strip().splitlines()[-1] == (
        "optlab: process 1: data=deadly:data: the file is on the first machine alone"
    )
    assert not Path("runs").exists()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["-n", "0", "--", "train", "small.py"], "-n must be at least 1"),
        (["-n", "2", "--", "show", "small.py"], "launch starts optlab train"),
        (["-n", "2", "--", "train", "small.py", "--processes", "auto"], "launch starts optlab train"),
    ],
)
def test_what_launch_can_not_start_is_refused(here, capsys, words, message):
    assert main(["launch", *words]) == 2
    assert message in capsys.readouterr().err


def test_the_processes_share_the_machines_gpus(monkeypatch):
    monkeypatch.setattr(launcher.importlib.util, "find_spec", lambda name: object())  # as if JAX could use them
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "4,5,6,7")
    monkeypatch.delenv("JAX_PLATFORMS", raising=False)
    assert launcher._gpus_each(2) == ["4,5", "6,7"]
    with pytest.raises(ConfigError, match=r"-n must divide the GPUs here \(4\), got 3"):
        launcher._gpus_each(3)
    monkeypatch.setenv("JAX_PLATFORMS", "cpu")
    assert launcher._gpus_each(3) is None


def test_the_launcher_needs_no_jax():
    code = "import sys, optlab.commands.launch; raise SystemExit('jax' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0
