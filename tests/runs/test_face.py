"""The run folder's face needs no JAX."""

import subprocess
import sys
from pathlib import Path

SAVED = Path(__file__).with_name("saved")  # by optlab 0.1.0 before its release, commit 25ec54a, jax 0.10.2
HEAVY = {"jax", "jaxlib", "orbax", "flax", "optax", "matplotlib", "tensorboardX", "wandb"}


def modules_after(code):
    """The packages that a fresh Python has imported after the code."""
    code = f"{code}\nimport sys\nprint(*sys.modules, sep='\\n')"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return {name.partition(".")[0] for name in done.stdout.split()}


def test_a_run_is_looked_at_without_jax():
    code = f"""
from optlab.runs import Run
run = Run({str(SAVED)!r})
assert run.config.steps == 4
assert len(run.metrics()["step"]) == 4
assert run.summary is None
assert run.checkpoints == [2, 4]
dir(run)
"""
    assert not HEAVY & modules_after(code)


def test_whatever_is_listed_is_there():
    import optlab.runs

    assert all(getattr(optlab.runs, name) is not None for name in optlab.runs.__all__)
