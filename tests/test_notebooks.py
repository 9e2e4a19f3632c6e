"""The notebooks are true: their code runs from top to bottom, and what they show was computed."""

import json
import os
import resource
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))


MOST = 240  # seconds of the processor, what all are meant to take together: one that takes as much hangs


def code_cells(path):
    return [cell for cell in json.loads(path.read_text())["cells"] if cell["cell_type"] == "code"]


def test_the_courses_notebooks_are_there():
    assert [path.name[:2] for path in NOTEBOOKS] == [f"{i:02}" for i in range(1, 14)]


@pytest.mark.slow
@pytest.mark.usefixtures("processor_seconds")
@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_the_code_runs_from_top_to_bottom(path, tmp_path):
    code = "\n".join("".join(cell["source"]) for cell in code_cells(path))
    environment = {**os.environ, "MPLBACKEND": "Agg", "XLA_FLAGS": ""}  # as for users: here running takes longest
    found = subprocess.run(
        [sys.executable, "-c", code],
        cwd=tmp_path,
        env=environment,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_CPU, (MOST, MOST)),
        capture_output=True,
        text=True,
    )
    assert found.returncode == 0, found.stderr or f"ended by signal {-found.returncode}"
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_it_was_executed_in_order_without_an_error(path):
    cells = code_cells(path)
    assert [cell["execution_count"] for cell in cells] == list(range(1, len(cells) + 1))
    kinds = {output["output_type"] for cell in cells for output in cell["outputs"]}
    assert "stream" in kinds
    assert "error" not in kinds
    assert not [o for cell in cells for o in cell["outputs"] if o.get("name") == "stderr"]
