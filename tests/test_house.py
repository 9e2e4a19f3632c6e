"""The house is in order: formatted, linted, typed, and nobody imports whom they may not."""

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent


@pytest.mark.parametrize(
    "command",
    [
        ["ruff", "format", "--check", "."],
        ["ruff", "check", "."],
        pytest.param(["mypy"], marks=pytest.mark.slow),
        ["lint-imports", "--no-cache"],
    ],
    ids=" ".join,
)
def test_the_house_is_in_order(command):
    tool = Path(sys.executable).parent / command[0]
    found = subprocess.run([tool, *command[1:]], cwd=ROOT, capture_output=True, text=True)
    assert found.returncode == 0, found.stdout + found.stderr
