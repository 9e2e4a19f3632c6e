"""The course's experiments run at a size that takes seconds, and their pages are theirs."""

import importlib
from pathlib import Path

import matplotlib.pyplot as plt
import pytest

ROOT = Path(__file__).parent.parent
EXPERIMENTS = sorted((ROOT / "configs" / "experiments").glob("e*.py"))
PAGES = ROOT / "docs" / "experiments"


@pytest.mark.slow
@pytest.mark.parametrize("path", EXPERIMENTS, ids=lambda path: path.stem)
def test_it_runs_at_a_small_size(path, monkeypatch, tmp_path, capsys):
    monkeypatch.syspath_prepend(path.parent)
    monkeypatch.chdir(tmp_path)
    shared, experiment = importlib.import_module("shared"), importlib.import_module(path.stem)
    try:
        shared.main(experiment.measure, ["--smoke"])
        shown = capsys.readouterr().out
        assert "nan" not in shown
        assert shown.startswith("# E")
        assert f"`python configs/experiments/{path.name}`" in shown
        assert list(tmp_path.iterdir()) == []
    finally:
        plt.close("all")


def test_every_page_was_made_by_its_experiment_as_it_is():
    index = (PAGES / "index.md").read_text()
    assert {path.stem for path in EXPERIMENTS} == {path.stem for path in PAGES.glob("e*.md")}
    for path in EXPERIMENTS:
        title, _, text = path.read_text().split('"""')[1].partition("\n")
        page = (PAGES / f"{path.stem}.md").read_text()
        assert page.startswith(f"# {title.rstrip('.')}\n\n{text.strip()}\n\n`python configs/experiments/{path.name}`")
        assert (PAGES / f"{path.stem}.png").stat().st_size < 60_000
        assert f"({path.stem}.md)" in index
