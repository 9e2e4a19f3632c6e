"""The README is true: its Python runs, its names exist, its configs are there."""

import re
from pathlib import Path

import pytest

import optlab

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()


BLOCKS = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
LONG = [block for block in BLOCKS if "check_transform(" in block or "measure=" in block]


@pytest.mark.parametrize("block", [b if b not in LONG else pytest.param(b, marks=pytest.mark.slow) for b in BLOCKS])
def test_python_runs_as_it_stands(block):
    exec(compile(block, "README.md", "exec"), {})


def test_configs_are_there():
    for path in re.findall(r"configs/\w+\.py", README):
        assert (ROOT / path).is_file(), path


def test_the_table_of_names_is_complete():
    """Every public block, optimizer, schedule and data set is named, and nothing that isn't there."""
    rows = {
        row.split("|")[1].strip(): set(re.findall(r"`(\w+)`", row.split("|")[2]))
        for row in README.splitlines()
        if row.startswith("| ")
    }
    assert rows["optimizers"] == set(optlab.optimizers.__all__)
    assert rows["blocks"] == {*optlab.transforms.__all__, "by_role"}
    assert rows["`optlab.schedules`"] == set(optlab.schedules.__all__)
    assert rows["`optlab.data`"] >= {"digits", "fashion_mnist", "cifar10", "text", "arrays"}
    for name in rows["`optlab.models`"]:
        assert hasattr(optlab.models, name), name
    for name in rows["`optlab.training`"]:
        assert hasattr(optlab.training, name), name


def test_the_pictures_are_there():
    for path in re.findall(r"!\[.*?\]\((.*?)\)", README):
        assert (ROOT / path).is_file(), path
