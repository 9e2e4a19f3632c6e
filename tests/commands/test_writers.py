"""`optlab train` and who else writes to its folder: one at a time, and what a kill left doesn't stop the next."""

from pathlib import Path

import pytest

from optlab.commands import main
from optlab.training import Checkpoints, read_metrics


def test_a_second_run_on_the_folder_is_refused_and_changes_nothing(here, capsys):
    words = ["train", "small.py", "log.every=1", "--run", "run"]
    with Checkpoints("run/checkpoints").writing():  # before the first has written its config
        assert main(words) == 1
        assert sorted(p.name for p in Path("run").rglob("*")) == ["checkpoints", "writer.lock"]
    assert main(words) == 0
    before = {p: p.read_bytes() for p in Path("run").rglob("*") if p.is_file()}
    capsys.readouterr()
    with Checkpoints("run/checkpoints").writing():
        assert main([*words, "steps=8"]) == 1
    error = capsys.readouterr().err
    assert error.startswith(f"optlab: {Path('run/checkpoints').absolute()} is being written by process ")
    assert error.count("\n") == 1
    assert {p: p.read_bytes() for p in Path("run").rglob("*") if p.is_file()} == before
    assert [r["step"] for r in read_metrics("run")] == [1, 2, 3, 4]


@pytest.mark.parametrize("left", ["config.part", "checkpoints/writer.lock"])
def test_what_a_kill_left_of_a_beginning_is_begun_again(here, left):
    path = Path("run") / left
    path.parent.mkdir(parents=True)
    path.write_text("half")
    assert main(["train", "small.py", "--run", "run"]) == 0


def test_anything_else_in_the_folder_is_somebodys(here, capsys):
    path = Path("run/checkpoints/thesis.tex")
    path.parent.mkdir(parents=True)
    path.write_text("precious")
    assert main(["train", "small.py", "--run", "run"]) == 2
    assert "isn't empty and isn't a run" in capsys.readouterr().err
