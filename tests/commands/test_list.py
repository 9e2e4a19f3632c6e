"""`optlab`, `optlab list` and `optlab show NAME`."""

import pytest

from optlab import optimizers
from optlab.commands import main
from optlab.commands._pages import wrapped
from optlab.commands.list import KINDS
from optlab.experiment import find, names_of_kind


def test_the_bare_command_is_its_help(capsys):
    assert main([]) == 0
    assert "train as a config describes" in capsys.readouterr().out


@pytest.fixture(autouse=True)
def pipe(monkeypatch):
    """Lines are whole, unless a test says how many columns there are."""
    monkeypatch.delenv("COLUMNS", raising=False)


def test_every_name_of_every_kind_can_be_found(capsys):
    assert main(["list"]) == 0
    lines = [line.split(maxsplit=1) for line in capsys.readouterr().out.splitlines()]
    assert [kind for kind, _ in lines] == list(KINDS)
    for kind, names in lines:
        assert all(callable(find(KINDS[kind], name)) for name in names.split(", "))
    assert set(dict(lines)["optimizers"].split(", ")) == {n for n in optimizers.__all__ if n.islower()}


def test_a_kind_is_listed_with_a_line_each(capsys):
    assert main(["list", "losses"]) == 0
    names = dict(line.split(maxsplit=1) for line in capsys.readouterr().out.splitlines())
    assert names.keys() == {"cross_entropy", "squared_error"}


def test_a_component_is_shown_with_its_arguments(capsys):
    assert main(["show", "muon"]) == 0
    out = capsys.readouterr().out
    assert out.startswith("muon(learning_rate, ")
    assert "weight_decay=0.1" in out
    assert "In a config: optimizer=muon" in out


@pytest.mark.parametrize("columns", [80, 100, 140])
def test_a_config_is_shown_without_breaking_words(here, capsys, monkeypatch, columns):
    monkeypatch.setenv("COLUMNS", str(columns))
    assert main(["show", "small.py"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert max(map(len, lines)) <= columns
    words = {word for line in lines for word in line.split()}
    assert {"activation:", "computation:", "checkpoints;"} <= {w.replace("activation.", "activation:") for w in words}


@pytest.mark.parametrize("columns", [80, 100])
def test_what_is_listed_and_shown_fits_the_terminal(here, capsys, monkeypatch, columns):
    pages = [["list"], *(["list", kind] for kind in KINDS)]
    pages += [["show", name] for kind in KINDS.values() for name in names_of_kind(kind)]
    monkeypatch.setenv("COLUMNS", "10000")
    whole = [_printed(page, capsys) for page in pages]
    monkeypatch.setenv("COLUMNS", str(columns))
    for page, unwrapped in zip(pages, whole, strict=True):
        out = _printed(page, capsys)
        assert max(map(len, out.splitlines())) <= columns, page
        assert out.split() == unwrapped.split()


def _printed(words, capsys):
    assert main(words) == 0
    return capsys.readouterr().out


def test_only_what_is_too_long_is_wrapped():
    formula, long = "    m ← βm + g\n    θ ← θ − ηm", "many words " * 3
    text = f"A.\n\n{formula}\n\nArgs:\n    a: {long}\n        {long}\n    b: short,\n        and more."
    assert wrapped(text, None) == text
    lines = wrapped(text, 30).splitlines()
    assert lines[:6] == ["A.", "", *formula.splitlines(), "", "Args:"]
    assert lines[6:9] == [
        "    a: many words many words",
        "        many words many words",
        "        many words many words",
    ]
    assert lines[-2:] == ["    b: short,", "        and more."]


@pytest.mark.slow
def test_a_smoke_run_tries_everything_and_leaves_nothing(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "small.py").write_text(
        "from optlab.config import Config, component\n"
        "def get_config():\n"
        "    parts = dict(data=component('digits'), model=component('mlp', widths=[8]))\n"
        "    return Config(**parts, optimizer=component('sgd', learning_rate=0.1), steps=9)\n"
    )
    assert main(["train", "small.py", "--smoke"]) == 0
    out = capsys.readouterr().out
    assert "continuing after step 2" in out
    assert out.endswith("smoke: trained, evaluated, saved and continued; nothing is left behind\n")
    assert [path.name for path in tmp_path.iterdir() if path.name != "__pycache__"] == ["small.py"]


def test_a_smoke_run_has_a_folder_of_its_own(capsys):
    assert main(["train", "configs/digits.py", "--smoke", "--run", "runs/x"]) == 2
    assert "leave --processes and --run away" in capsys.readouterr().err
