"""The README and its guides are true: their Python runs, their names exist, their files are there."""

import importlib
import re
import shlex
from pathlib import Path

import pytest

import optlab
from optlab.commands import COMMANDS, main, parsed

ROOT = Path(__file__).parent.parent
CONTENTS = (ROOT / "docs" / "contents.md").read_text()
GUIDES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md")), ROOT / "CONTRIBUTING.md"]
BLOCKS = [
    (path.name, block) for path in GUIDES for block in re.findall(r"```python\n(.*?)```", path.read_text(), re.DOTALL)
]


LONG = re.compile(r"check_transform\(|measure=|optlab\.compare\(|batch_range\(")  # what takes more than ten seconds


@pytest.mark.parametrize(
    ("name", "block"),
    [pytest.param(*b, marks=pytest.mark.slow) if LONG.search(b[1]) else b for b in BLOCKS],
    ids=[f"{name}-{i}" for i, (name, _) in enumerate(BLOCKS)],
)
def test_python_runs_as_it_stands(name, block, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for library in re.findall(r"^import (equinox|haiku) as", block, re.MULTILINE):
        pytest.importorskip(library)  # the extra dev installs them
    exec(compile(block, name, "exec"), {})


@pytest.mark.parametrize("guide", GUIDES, ids=lambda path: path.name)
def test_configs_and_linked_files_are_there(guide):
    text = guide.read_text()
    for path in re.findall(r"configs/\w+\.py", text):
        assert (ROOT / path).is_file(), path
    for path in re.findall(r"\]\((?!http)(.*?)\)", text):
        assert (guide.parent / path).exists(), path


@pytest.mark.parametrize("guide", GUIDES, ids=lambda path: path.name)
def test_commands_are_those_of_the_command_line(guide):
    shell = "\n".join(re.findall(r"```bash\n(.*?)```", guide.read_text(), re.DOTALL))
    for line in re.findall(r"^(?:[A-Z_]+=\S+ )?(optlab .*)", shell, re.MULTILINE):
        words = shlex.split(line, comments=True)[1:]
        assert parsed(words).command == words[0], line


# What is left out of a page's commands, and why; what makes a command of minutes one of seconds.
LEFT_OUT = {
    "FOLDER": "CIFAR-10 isn't in the repository",
    "tinyshakespeare.txt": "nor is the text",
    "--scheduler": "needs Dask's scheduler; tests/compare has one",
    "launch": "starts processes of its own; tests/training/test_processes.py",
}
SHORTER = {"compare": ["steps=20", "trials=2"], "lr-range": ["steps=60"], "batch-range": ["steps=60"]}


@pytest.mark.slow
@pytest.mark.parametrize("guide", GUIDES, ids=lambda path: path.name)
def test_commands_run_one_after_another(guide, tmp_path, monkeypatch):
    """In a folder like a clone, in which the runs that the page doesn't make itself are there already."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "configs").symlink_to(ROOT / "configs")
    shell = "\n".join(re.findall(r"```bash\n(.*?)```", guide.read_text(), re.DOTALL))
    lines = re.findall(r"^(?:[A-Z_]+=\S+ )?(optlab .*)", shell, re.MULTILINE)
    made = set(re.findall(r"train.* --run (\S+)", shell))
    for folder in sorted({*re.findall(r" (runs/\w+)", shell)} - made):
        assert main(["train", "configs/digits.py", "steps=60", "--run", folder]) == 0
    for line in lines:
        words = shlex.split(line, comments=True)[1:]
        if any(name in word for word in words for name in LEFT_OUT):
            continue
        code = main([*words, *SHORTER.get(words[0], [])])
        assert code == 0 or (words[0] == "diagnose" and code == 1), line


def test_the_table_of_additions_names_files_that_are_there():
    text = (ROOT / "CONTRIBUTING.md").read_text()
    rows = [row for row in text.splitlines() if row.startswith("| ") and "`" in row]
    for path in re.findall(r"`([\w/]+\.py)`", "\n".join(rows)):
        if "NAME" not in path:
            assert any(
                (ROOT / home / path).is_file() for home in (".", "optlab", "optlab/optimizers", "tests/transforms")
            ), path


def test_the_table_of_names_is_complete():
    """Every function, command, block, optimizer, schedule and data set is named, and nothing that isn't there."""
    rows = {
        row.split("|")[1].strip(): set(re.findall(r"`([\w-]+)`", row.split("|")[2]))
        for row in CONTENTS.splitlines()
        if row.startswith("| ")
    }
    blocks = {*optlab.optimizers.__all__, *optlab.transforms.__all__}
    assert rows["functions"] == {*optlab.__all__} - {*optlab._SUBMODULES, *blocks, "__version__"} | {"compare"}
    assert rows["commands"] == set(COMMANDS)
    assert rows["optimizers"] == set(optlab.optimizers.__all__)
    assert rows["blocks"] == {*optlab.transforms.__all__, "by_role"}
    assert rows["`optlab.schedules`"] == set(optlab.schedules.__all__)
    assert rows["`optlab.data`"] >= {"digits", "fashion_mnist", "cifar10", "text", "arrays"}
    for module in ("models", "training", "compare", "testing", "report"):
        found = importlib.import_module(f"optlab.{module}")
        for name in rows[f"`optlab.{module}`"] - {"optlab"}:
            assert hasattr(found, name), name


def test_measured_md_has_the_figures_of_the_imports():
    """Of a table that the benchmark wrote."""
    table = (ROOT / "benchmarks" / "results" / "imports.md").read_text()
    row = next(row for row in (ROOT / "docs" / "measured.md").read_text().splitlines() if "`import optlab`" in row)
    ratios = re.findall(r"^\| `import optlab.*\| ([\d.]+) \|$", table, re.MULTILINE)
    assert len(ratios) == 3
    assert re.findall(r"\b\d[.]\d+", row) == ratios


def test_the_citation_is_that_of_citation_cff():
    cff = (ROOT / "CITATION.cff").read_text()
    page = (ROOT / "docs" / "cite.md").read_text()
    fields = dict(re.findall(r"^ *-? *([\w-]+): *\"?([^\"\n]+)\"?$", cff, re.MULTILINE))
    assert f"author  = {{{{{fields['name']}}}}}" in page
    assert f"title   = {{{fields['title']}}}" in page
    assert f"version = {{{fields['version']}}}" in page
    assert f"year    = {{{fields['date-released'][:4]}}}" in page
