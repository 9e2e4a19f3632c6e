"""A run's place: one function reads it wherever a run is named."""

from pathlib import Path

import pytest

from optlab.commands import main
from optlab.runs import Checkpoints, PlaceError, Run
from optlab.runs._listing import checkpoint_folder

EVERYWHERE = [Run, Checkpoints, checkpoint_folder]


@pytest.mark.parametrize("where", EVERYWHERE)
def test_the_home_folder_is_meant(tmp_path, monkeypatch, where):
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "x").mkdir()
    found = where("~/x")
    assert Path(getattr(found, "folder", found)) == tmp_path / "x"


@pytest.mark.parametrize("where", EVERYWHERE)
@pytest.mark.parametrize(("place", "says"), [("gs://bucket/x", "on this machine"), ("é" * 128, "255 bytes, got 256")])
def test_what_is_no_folder_here_is_named(where, place, says):
    with pytest.raises(PlaceError, match=says):
        where(place)


@pytest.mark.parametrize("place", ["gs://bucket/x", "C:\\runs\\a", "é" * 128])
def test_the_command_makes_nothing_of_them(tmp_path, monkeypatch, capsys, place):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "small.py").write_text(
        "from optlab.config import Config, component\n"
        "def get_config():\n"
        "    return Config(data=component('digits'), model=component('mlp', widths=[8]),\n"
        "        optimizer=component('sgd', learning_rate=0.05), steps=4)\n"
    )
    assert main(["train", "small.py", "--run", place]) == 2
    assert len(capsys.readouterr().err.splitlines()) == 1
    assert {path.name for path in tmp_path.iterdir()} <= {"small.py", "__pycache__"}
