"""The library speaks Python to Python callers; the command line adds its own words, in one place."""

import re
from pathlib import Path

import pytest

import optlab
from optlab.commands._dialect import in_words

LIBRARY = Path(optlab.__file__).parent


@pytest.mark.parametrize(
    ("python", "command_line"),
    [
        ("go on all the same: allow_change=('seed',)", "go on all the same: --allow-change seed"),
        ("allow_change=('data', 'optimizer.b1')", "--allow-change data --allow-change optimizer.b1"),
        (
            "unknown key 'sed' in allow_change; did you mean 'seed'?",
            "unknown key 'sed' in --allow-change; did you mean 'seed'?",
        ),
        (
            "is of another run; name another folder, or go on",
            "is of another run; name another folder: --run DIR, or go on",
        ),
        ("is no run; name another folder: --run DIR", "is no run; name another folder: --run DIR"),
        ("guard='skip' would leave it out", "guard=skip would leave it out"),
        ("are never saved (guard=None)", "are never saved (guard=none)"),
        ("compute activations twice (a model with remat=True)", "compute activations twice (model.remat=true)"),
        ("give path='FOLDER', or put it there", "give path=FOLDER, or put it there"),
    ],
)
def test_an_error_is_reworded_for_the_command_line(python, command_line):
    assert in_words(ValueError(python)) == command_line


def test_no_module_but_the_commands_knows_the_command_line():
    options = re.compile(r"--allow-change|--run DIR|optlab devices")
    keys = re.compile(r"data\.path=|mesh\.data|mesh\.model")
    for path in LIBRARY.rglob("*.py"):
        home, text = path.relative_to(LIBRARY).parts[0], path.read_text()
        assert home in ("commands", "config") or not options.search(text), path  # a key's help is for optlab show
        assert home in ("commands", "config", "experiment") or not keys.search(text), path
