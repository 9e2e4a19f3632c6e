"""The notebooks are true: their code runs from top to bottom, and prints what is stored in them."""

import json
import os
import re
import resource
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))


MOST = 240  # seconds of the processor, what all are meant to take together: one that takes as much hangs
NUMBER = re.compile(r"[-+−]?\d[\d,]*(?:\.\d+)?(?:e[-+]?\d+)?")


def code_cells(path):
    return [cell for cell in json.loads(path.read_text())["cells"] if cell["cell_type"] == "code"]


def test_the_courses_notebooks_are_there():
    assert [path.name[:2] for path in NOTEBOOKS] == [f"{i:02}" for i in range(1, 14)]


@pytest.mark.slow
@pytest.mark.usefixtures("processor_seconds")
@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_the_code_runs_from_top_to_bottom(path, tmp_path):
    cells = code_cells(path)
    code = "\nprint('\\0')\n".join("".join(cell["source"]) for cell in cells)
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
    for cell, shown in zip(cells, found.stdout.split("\0\n"), strict=True):
        stored = "".join("".join(out["text"]) for out in cell["outputs"] if out["output_type"] == "stream")
        assert_alike(shown, stored, cell["metadata"].get("tags", []))


def assert_alike(shown, stored, tags):
    """The same words; and numbers to 5 %, but in cells tagged "rough", such as those that take times.

    Cells tagged "varies" have other words on another machine, or beside a notebook's front end.
    """
    if "varies" in tags:
        return
    words = lambda text: " ".join(NUMBER.sub("#", text).split())
    assert words(shown) == words(stored), "execute the notebook again"
    numbers = lambda text: [float(x.replace(",", "").replace("−", "-")) for x in NUMBER.findall(text)]
    if "rough" not in tags:
        assert numbers(shown) == pytest.approx(numbers(stored), rel=0.05, abs=1e-6), "execute the notebook again"


def test_what_is_stale_is_found():
    assert_alike("a  1.02 b\n", "a 1.00 b", [])
    for shown, tags in (("a 1.1 b", []), ("a 1.00 c", ["rough"]), ("a 1 b, 2", ["rough"])):
        with pytest.raises(AssertionError, match="again"):
            assert_alike(shown, "a 1.00 b", tags)
        assert_alike(shown, "a 1.00 b", ["varies"])
    assert_alike("a 1.1 b", "a 1.00 b", ["rough"])


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_it_was_executed_in_order_without_an_error(path):
    cells = code_cells(path)
    assert [cell["execution_count"] for cell in cells] == list(range(1, len(cells) + 1))
    kinds = {output["output_type"] for cell in cells for output in cell["outputs"]}
    assert "stream" in kinds
    assert "error" not in kinds
    assert not [o for cell in cells for o in cell["outputs"] if o.get("name") == "stderr"]
