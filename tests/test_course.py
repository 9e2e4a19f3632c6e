"""The course's experiments run at a size that takes seconds, and their pages are theirs."""

import ast
import importlib
import re
from pathlib import Path

import matplotlib.pyplot as plt
import pytest
from PIL import Image

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


@pytest.fixture
def shared(monkeypatch):
    monkeypatch.syspath_prepend(ROOT / "configs" / "experiments")
    return importlib.import_module("shared")


def test_every_experiment_has_a_page_and_a_row():
    index = (PAGES / "index.md").read_text()
    assert {path.stem for path in EXPERIMENTS} == {path.stem for path in PAGES.glob("e*.md")}
    assert all(f"({path.stem}.md)" in index for path in EXPERIMENTS)


@pytest.mark.parametrize("path", EXPERIMENTS, ids=lambda path: path.stem)
def test_a_page_was_made_by_its_experiment_as_it_is(path, shared):
    title, _, text = path.read_text().split('"""')[1].partition("\n")
    page, figure = (PAGES / f"{path.stem}.md").read_text(), PAGES / f"{path.stem}.png"
    assert page.startswith(f"# {title.rstrip('.')}\n\n{text.strip()}\n\n`python configs/experiments/{path.name}`")
    assert figure.stat().st_size < 60_000
    again = f"{path.stem} was changed since its page was made: python configs/experiments/{path.name}"
    made = shared.code(path)
    assert page.endswith(f"\n\n<!-- made by code {made} -->\n"), again
    assert Image.open(figure).text["code"] == made, again
    words, _ = shared.finding(ast.parse(path.read_text()))
    _, _, said = page.rpartition("<!--")[0].partition("## What it says")
    assert_in_order(pieces(words), spaced(said), f"{path.stem}'s page has other words than its script; {again}")


def pieces(words):
    """The words of a finding, an f-string, between the numbers that are put in."""
    parts = words.values if isinstance(words, ast.JoinedStr) else [words]
    text = "".join(x.value if isinstance(x, ast.Constant) else "\0" for x in parts)
    return [spaced(piece) for piece in text.split("\0")]


def spaced(text):
    return " ".join(text.split())


def assert_in_order(pieces, text, message):
    first, *_, last = pieces
    assert text.startswith(first), message
    assert text.endswith(last), message
    for piece in pieces:
        assert piece in text, f"{message}: {piece!r}"
        text = text.partition(piece)[2] if piece else text


def test_a_page_of_other_code_or_words_is_found(shared, tmp_path):
    script = tmp_path / "e00_none.py"
    text = '''"""E0."""\nfrom shared import Page, estimate, main\nx = 1  # one\n\ndef measure(smoke):
    """It."""\n    return Page("", [], None, f"So {x} it is.")\n'''

    def code(old="", new=""):
        script.write_text(text.replace(old, new))
        return shared.code(script)

    assert code() == code("  # one") == code("So {x}", "Thus {x}") == code("It.", "This.") == code("E0.", "E1.")
    assert len({code(), code("x = 1", "x = 2"), code("[]", "[3]"), code(", estimate")}) == 4
    words, _ = shared.finding(ast.parse(text))
    assert_in_order(pieces(words), "So 1 it is.", "")
    with pytest.raises(AssertionError, match="other"):
        assert_in_order(pieces(words), "So 1 it was.", "other")


def test_the_words_of_a_finding_may_stand_in_a_function(shared, tmp_path):
    script = tmp_path / "e00_none.py"
    text = """from shared import Page, main
def measure(smoke): return Page("", [], None, said(1))
def said(x):
    y = x
    return f"So {y} it is."
"""
    script.write_text(text)
    made = shared.code(script)
    script.write_text(text.replace("So {y}", "Thus {x}"))
    assert shared.code(script) == made
    assert pieces(shared.finding(ast.parse(text))[0]) == ["So", "it is."]


def test_the_optimizers_pages_have_the_numbers_of_the_comparison():
    from optlab import optimizers

    lines = (PAGES / "e19_optimizers.md").read_text().splitlines()
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines if "±" in line and line[0] == "|"]
    assert {row[0].partition(",")[0] for row in rows} == set(optimizers.__all__)
    for name, loss, beside, *_ in rows:
        page = (PAGES.parent / "optimizers" / f"{name.partition(',')[0]}.md").read_text()
        missing = [x for x in (loss, *beside.partition(": ")[::2]) if x not in page and x != "–"]
        assert not missing, f"{name}'s page lacks {missing} of docs/experiments/e19_optimizers.md"


INTERVAL = re.compile(r"([-+]?\d+(?:\.\d+)?) ± (\d+(?:\.\d+)?)")
QUOTING = [PAGES / "index.md", *sorted((PAGES.parent / "optimizers").glob("*.md"))]


@pytest.mark.parametrize("path", QUOTING, ids=lambda path: path.stem)
def test_an_interval_that_is_quoted_is_on_a_page_that_is_linked(path):
    parts = path.read_text().splitlines() if path.stem == "index" else [path.read_text()]  # a row each
    for part in parts:
        linked = [path.parent / link for link in re.findall(r"\(([^()]*\.md)\)", part)]
        missing = unquoted(part, "\n".join(page.read_text() for page in linked if page.is_file()))
        assert not missing, f"{path.stem} quotes {missing}, which no page that it links to has"


def unquoted(text, pages):
    """A text's intervals that are not among those of the pages, rounded as they are quoted, whatever the sign."""
    found = [[abs(float(x)) for x in pair] for pair in INTERVAL.findall(pages)]
    half = lambda x: 0.5 * 10.0 ** -len(x.partition(".")[2]) + 1e-9
    is_near = lambda x, y: abs(abs(float(x)) - y) <= half(x)
    return [
        f"{x} ± {y}" for x, y in INTERVAL.findall(text) if not any(is_near(x, a) and is_near(y, b) for a, b in found)
    ]


def test_an_interval_of_another_run_is_found():
    assert unquoted("by 0.8 ± 0.2 and -0.105 ± 0.084", "0.84 ± 0.21 | 0.105 ± 0.084 |") == []
    assert unquoted("by 0.9 ± 0.2", "0.84 ± 0.21") == ["0.9 ± 0.2"]
