"""The documentation: every public name has a page, every page a place, and the site builds without a warning."""

import doctest
import importlib
import json
import re
import subprocess
import sys
from pathlib import Path
from urllib.parse import unquote

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import optlab
from optlab.commands import main
from optlab.theory import attention, landscapes
from optlab.training import Workload

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT / "docs"))

import _head  # noqa: E402
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


def test_types_are_shown_by_their_public_names():
    Layout = optlab.roles.Layout
    assert _pages.public(f"{Layout.__module__}.Layout | None") == "optlab.roles.Layout | None"
    assert _pages.public(f"tuple[{Layout.__module__}.Layout, ...]") == "tuple[optlab.roles.Layout, ...]"
    assert _pages.public("optlab.tuning._ramp.Ramp") == "Ramp"  # which isn't public
    assert _pages.public("optlab.__version__, optlab.roles.Layout") == "optlab.__version__, optlab.roles.Layout"


def test_every_public_name_of_optlab_has_a_page_somewhere():
    described = {name for _, name in _pages.pages()}
    assert set(optlab.__all__) - described - set(optlab._SUBMODULES) == set()


@pytest.mark.slow
@pytest.mark.usefixtures("processor_seconds")
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
        assert not re.search(r"optlab(\.\w+)*\._[a-z]\w*(\.\w+)*\.[A-Z]", text), f"{page.name} shows a private path"
        for link, anchor in re.findall(r'(?:href|src)="([^"#:?]*)(?:[?][^"#]*)?#?([^":]*)"', text):
            found = (page.parent / link).resolve() if link else page
            assert found.exists(), f"{page.name} links to {link}"
            assert unquote(anchor) in anchors.get(found, [unquote(anchor)]), f"{page.name} links to {link}#{anchor}"


@pytest.fixture
def moved(opened):
    """A function that opens a page of sliders, moves them, and returns what the page then notes in its body's data."""

    def moved(page, sliders, then=""):
        moves = [f"element({name!r}).value = {value}; element({name!r}).dispatchEvent(new Event('input'));"
                 for name, value in sliders.items()]  # fmt: skip
        ends = """document.documentElement.style.width = "390px";
            const rights = [...document.querySelectorAll("body *")].map(e => e.getBoundingClientRect().right);
            document.body.dataset.width = Math.max(...rights);
            document.body.dataset.requests = performance.getEntriesByType("resource").length;"""
        script = f"<script>{''.join(moves)}{then}{ends}</script></body>"
        dom = opened((ROOT / f"docs/_extra/{page}.html").read_text().replace("</body>", script))
        data = {name: json.loads(value) for name, value in re.findall(r'data-(\w+)="([^"]*)"', dom)}
        assert data.pop("requests") == 0
        assert data.pop("width") <= 390  # a telephone's
        return data

    return moved


@pytest.mark.slow
def test_the_page_of_the_ravine_takes_optlabs_steps(moved):
    end = moved("ravine", {"rate": 0.05, "beta": 0.8})["end"]
    ravine = landscapes.ravine(25.0)
    ours = optlab.minimize(ravine.f, optlab.sgd(0.05, momentum=0.8), jnp.array(ravine.start), steps=60).final
    np.testing.assert_allclose(end, ours, atol=1e-5)


def trained_head():
    numbers = json.loads(re.search("const trained = (.*);\n", _head.PAGE.read_text())[1])
    return {name: jnp.array(value) for name, value in numbers.items() if name not in ("vocabulary", "animals")}


@pytest.mark.slow
@pytest.mark.parametrize("masked", [True, False])
def test_the_page_of_attention_weighs_as_optlab(moved, masked):
    then = f"element('mask').checked = {json.dumps(masked)}; chosen = 7; draw();"
    data = moved("attention", {"temperature": 0.5, "share": 0.4}, then)
    params = trained_head()
    sentence = "the cat sat on the mat and the dog ran too"
    words = params["words"][jnp.array([_head.VOCABULARY.index(word) for word in sentence.split(" ")])]
    x = 0.6 * words + params["positions"]
    mask = attention.causal_mask(11) if masked else None
    Q, K, V = x @ params["Q"] / 10**0.5, x @ params["K"], words @ params["V"]
    mixed, weights = attention.attention(Q, K, V, mask=mask)
    np.testing.assert_allclose(data["weights"], weights[7], atol=1e-5)
    np.testing.assert_allclose(data["mixed"], mixed[7], atol=1e-5)


@pytest.mark.slow
def test_the_head_of_the_page_learned_its_task():
    sentences = jax.random.randint(jax.random.key(7), (500, _head.T), 0, len(_head.VOCABULARY))
    answers, there = jax.vmap(_head.last_animal)(sentences)
    said = jax.vmap(lambda sentence: _head.head(trained_head(), sentence)[0])(sentences).argmax(-1)
    assert np.mean((said == answers)[there]) > 0.99


@pytest.mark.slow
def test_training_the_head_changes_its_numbers_on_the_page_alone(tmp_path, monkeypatch):
    before = _head.PAGE.read_text()
    monkeypatch.setattr(_head, "PAGE", tmp_path / "page.html")
    _head.PAGE.write_text(before)
    _head.main(steps=2)
    lines = zip(before.splitlines(), _head.PAGE.read_text().splitlines(), strict=True)
    assert [old.split("{")[0] for old, new in lines if old != new] == ["const trained = "]
    assert {name: p.shape for name, p in trained_head().items()} == {
        name: p.shape for name, p in _head.init(jax.random.key(0)).items()
    }


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
