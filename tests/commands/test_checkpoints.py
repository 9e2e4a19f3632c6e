"""`optlab checkpoints`: what it says of whole and of damaged ones."""

import dataclasses
import shutil

import jax
import jax.numpy as jnp
import optax
import pytest

from optlab.commands import main
from optlab.training import Checkpoints, init_state


@pytest.fixture
def run(tmp_path):
    state = init_state({"w": jnp.ones((4, 3))}, {}, optax.adam(0.1), key=jax.random.key(0))
    checkpoints = Checkpoints(tmp_path / "run" / "checkpoints")
    for step in (10, 20):
        checkpoints.save(dataclasses.replace(state, step=jnp.int32(step)), {"best": [10, 0.5]})
    checkpoints.wait()
    return tmp_path / "run"


def test_each_is_listed_with_what_it_holds(run, capsys):
    assert main(["checkpoints", str(run)]) == 0
    out = capsys.readouterr().out
    assert "params 12, opt_state 25, the best" in out
    assert out.count("whole") == 2


def test_a_damaged_one_is_named_and_left_where_it_is(run, capsys):
    for path in (run / "checkpoints" / "20" / "state").rglob("d/*"):
        path.write_bytes(path.read_bytes()[:-5])
    assert main(["checkpoints", str(run)]) == 1
    out = " ".join(capsys.readouterr().out.split())
    assert out.count("whole") == 1
    assert "can't be" in out or "damaged" in out
    assert (run / "checkpoints" / "20").is_dir()


def test_a_folder_without_any_is_refused(tmp_path, capsys):
    assert main(["checkpoints", str(tmp_path / "none")]) == 2
    assert "none is no folder" in capsys.readouterr().err
    assert main(["checkpoints", str(tmp_path)]) == 2
    assert "no checkpoint in" in capsys.readouterr().err


def test_what_the_run_removes_meanwhile_is_passed_over(run, capsys, monkeypatch):
    verify = Checkpoints.verify

    def removing(self, step):
        if step == 10:
            shutil.rmtree(self.folder / "10")
        verify(self, step)

    monkeypatch.setattr(Checkpoints, "verify", removing)
    assert main(["checkpoints", str(run)]) == 0
    assert capsys.readouterr().out.count("whole") == 1


def test_where_all_are_set_aside_they_are_listed(run, capsys):
    for step in ("10", "20"):
        (run / "checkpoints" / step).rename(run / "checkpoints" / f"quarantine-{step}-1")
    assert main(["checkpoints", str(run)]) == 1
    out = capsys.readouterr().out
    assert "beside them: quarantine-10-1" in out
    assert "beside them: quarantine-20-1" in out
