"""The same command twice gives the same bits; for GPUs XLA is told so before JAX has its devices."""

import os
import subprocess
import sys

import jax
import pytest

from optlab.commands import main
from optlab.runs._metrics import without_seconds
from optlab.training import Checkpoints, read_metrics

FLAG = "--xla_gpu_deterministic_ops=true"
CONFIG = """
from optlab.config import Config, Log, component

def get_config():
    return Config(
        data=component("digits"),
        model=component("mlp", widths=[16], dropout=0.1),
        optimizer=component("adamw", learning_rate=0.01),
        steps=10,
        evaluate_every=5,
        ema=0.9,
        log=Log(every=1, tensorboard=False),
        deterministic=True,
    )
"""
FLAGS = """
import os
from jax._src.xla_bridge import backends_are_initialized

def data():
    raise ValueError(f"XLA_FLAGS is {os.environ['XLA_FLAGS']}, devices are there: {backends_are_initialized()}")
"""
STRATEGIES = {"single": [], "fsdp": ["strategy=fsdp", "mesh.data=8"]}


def python(program, *words, flags="--xla_force_host_platform_device_count=8"):
    environment = {**os.environ, "XLA_FLAGS": flags}
    command = [sys.executable, "-c", program, *words]
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=200)


@pytest.mark.slow
def test_the_same_command_twice_gives_the_same_bits(here):
    for strategy, words in STRATEGIES.items():
        assert main(["train", "small.py", *words, "--run", f"{strategy}-here"]) == 0
    runs = [["train", "small.py", *words, "--run", f"{strategy}-there"] for strategy, words in STRATEGIES.items()]
    flags = f"{os.environ['XLA_FLAGS']} --xla_force_host_platform_device_count=8"
    there = python(f"from optlab.commands import main\nfor words in {runs}:\n    assert main(words) == 0", flags=flags)
    assert there.returncode == 0, there.stderr
    for strategy in STRATEGIES:
        one, two = (here / f"{strategy}-{place}" for place in ("here", "there"))
        assert Checkpoints.of(one).contents(10) == Checkpoints.of(two).contents(10)
        assert without_seconds(read_metrics(one)) == without_seconds(read_metrics(two))
    assert Checkpoints.of("single-here").contents(10) != Checkpoints.of("fsdp-here").contents(10)  # other sums


def test_xla_is_told_before_jax_is_imported(here):
    program = (
        "import os, sys\n"
        "class Spy:\n"
        "    def find_spec(self, name, *rest):\n"
        "        if name == 'jax':\n"
        "            print(os.environ['XLA_FLAGS'])\n"
        "            os._exit(7)\n"
        "sys.meta_path.insert(0, Spy())\n"
        "print = __import__('functools').partial(print, flush=True)\n"
        "from optlab.commands import main\n"
        "main(sys.argv[1:])"
    )
    told = python(program, "train", "small.py")
    assert (told.returncode, told.stdout) == (7, f"--xla_force_host_platform_device_count=8 {FLAG}\n"), told.stderr
    assert python(program, "train", "small.py", "deterministic=false", flags="").stdout == "\n"


@pytest.mark.slow
def test_every_process_of_a_launch_is_told_before_it_has_devices(here):
    (here / "flags.py").write_text(FLAGS)
    program = "import sys; from optlab.commands import main; sys.exit(main())"
    told = python(program, "launch", "-n", "1", "--", "train", "small.py", "data=flags:data", flags="")
    assert f"XLA_FLAGS is {FLAG}, devices are there: False" in told.stderr


def test_where_gpus_are_there_already_it_comes_too_late(here, monkeypatch, capsys):
    monkeypatch.delenv("XLA_FLAGS", raising=False)
    jax.devices()
    with monkeypatch.context() as patch:
        patch.setattr(jax, "default_backend", lambda: "gpu")
        assert main(["train", "small.py"]) == 2
    assert (
        f"deterministic=true comes too late: JAX has its devices already; set XLA_FLAGS={FLAG}"
        in capsys.readouterr().err
    )
