"""The documentation: every public name has a page, every page a place, and the site builds without a warning."""

import doctest
import importlib
import json
import re
import subprocess
import sys
from pathlib import Path
from urllib.parse import unquote

import jax.numpy as jnp
import numpy as np
import pytest

import optlab
from optlab.commands import main
from optlab.theory import landscapes
from optlab.training import Workload

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT / "docs"))

import _pages  # noqa: E402


def test_every_public_module_is_in_the_reference():
    """Those that `optlab` names, but for the command line; a package of modules is there by its modules."""
    public = {f"optlab.{name}" for name in optlab._SUBMODULES} - {"optlab.commands"}
    described = {".".join(module.split(".")[:2]) for module in _pages.MODULES}
    assert public <= described
    theory = {f"optlab.theory.{name}" for name in optlab.theory.__all__}
    assert theory <= set(_pages.MODULES)


@pytest.fixture
def written(tmp_path):
    """A folder with the pages that are written when the site is built."""
    (tmp_path / "docs").mkdir()
    (tmp_path / _pages.EXPERIMENTS).symlink_to(ROOT / _pages.EXPERIMENTS)
    _pages.write(tmp_path)
    return tmp_path


def test_every_experiment_with_a_page_is_in_the_gallery(written):
    gallery = (written / "docs/api/gallery.md").read_text()
    for page in (ROOT / _pages.EXPERIMENTS).glob("e*.md"):
        assert f"({page.stem}.png)" in gallery.replace("../experiments/", ""), page


def test_every_public_name_has_a_page(written):
    for (module, name), page in _pages.pages().items():
        home = ROOT if page.startswith("docs/optimizers/") else written
        assert re.search(rf":: optlab[\w.]*\.{name}\n", (home / f"{page}.md").read_text()), (module, name)


def test_every_public_name_of_optlab_has_a_page_somewhere():
    described = {name for _, name in _pages.pages()}
    assert set(optlab.__all__) - described - set(optlab._SUBMODULES) == set()


@pytest.mark.slow
def test_the_site_builds_without_a_warning_and_its_links_hold(tmp_path):
    pytest.importorskip("sphinx_book_theme")
    built = [sys.executable, "-m", "sphinx", "-q", "-j", "2", "-c", "docs", "-W", "--keep-going", ".", str(tmp_path)]
    done = subprocess.run(built, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    pages = [page for page in tmp_path.rglob("*.html") if "_static" not in page.parts]
    assert len(pages) > len(set(_pages.pages().values()))
    texts = {page.resolve(): page.read_text() for page in pages}
    anchors = {page: {"", *re.findall(r'id="([^"]+)"', text)} for page, text in texts.items()}
    for page, text in texts.items():
        for link, anchor in re.findall(r'(?:href|src)="([^"#:?]*)(?:[?][^"#]*)?#?([^":]*)"', text):
            found = (page.parent / link).resolve() if link else page
            assert found.exists(), f"{page.name} links to {link}"
            assert unquote(anchor) in anchors.get(found, [unquote(anchor)]), f"{page.name} links to {link}#{anchor}"


MOVE = """
<script>
document.getElementById("rate").value = 0.05;
document.getElementById("beta").value = 0.8;
document.getElementById("beta").dispatchEvent(new Event("input"));
document.body.dataset.requests = performance.getEntriesByType("resource").length;
</script>
"""


@pytest.mark.slow
def test_the_slider_page_takes_optlabs_steps(opened):
    dom = opened((ROOT / "docs/_extra/ravine.html").read_text().replace("</body>", MOVE + "</body>"))
    assert 'data-requests="0"' in dom
    end = json.loads(re.search(r'data-end="([^"]*)"', dom)[1])
    ravine = landscapes.ravine(25.0)
    ours = optlab.minimize(ravine.f, optlab.sgd(0.05, momentum=0.8), jnp.array(ravine.start), steps=60).final
    np.testing.assert_allclose(end, ours, atol=1e-5)


EXAMPLES = sorted(path for path in (ROOT / "optlab").rglob("*.py") if ">>>" in path.read_text())


@pytest.mark.slow
@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: str(path.relative_to(ROOT / "optlab")))
def test_the_examples_in_docstrings_run(path, tmp_path, monkeypatch):
    """With the names that a reader would have, and 20 steps for 300; what an example shows is what comes out."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "configs").symlink_to(ROOT / "configs")
    if '"runs/digits"' in path.read_text():
        assert main(["train", "configs/digits.py", "steps=20", "--run", "runs/digits"]) == 0
    module = importlib.import_module(".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"))
    names = {"optlab": optlab, "Workload": Workload, "Run": optlab.runs.Run, "mine": optlab.signum}
    names["images"] = jnp.zeros((2, 8, 8, 1))
    examples = [e for found in doctest.DocTestFinder().find(module) for e in found.examples]
    assert examples
    for example in examples:
        source = example.source.replace("steps=300, folder", "steps=20, trials=2, studies=2, folder")
        source = source.replace("steps=300", "steps=20").replace("experiment.config.steps", "20")
        if example.want:
            assert repr(eval(source, names)) == example.want.strip()
        else:
            exec(source, names)
