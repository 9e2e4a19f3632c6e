"""The documentation's settings. Build it from the repository:

    .venv/bin/pip install -q -e '.[docs]' && .venv/bin/sphinx-build -c docs -W . docs/_site

The source directory is the repository, so that the guides' links to results, notebooks and configs hold here as there.
"""

import re
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT / "docs"))

import _pages  # noqa: E402

import optlab  # noqa: E402

project, author, copyright = "optlab", "the optlab team", "the optlab team"
version = release = optlab.__version__

extensions = ["myst_nb", "sphinx.ext.autodoc", "sphinx.ext.napoleon"]
root_doc = "docs/index"
include_patterns = ["docs/**", "notebooks/*.ipynb", "benchmarks/results/*.md", "CHANGELOG.md", "CONTRIBUTING.md"]
exclude_patterns = ["docs/_site/**"]
suppress_warnings = [
    "toc.not_included",  # tables of results are linked to, and aren't in the contents
    "myst.header",  # nor do they all have a title
    "ref.python",  # `step` in a docstring may be several things: then it is no link
]

nb_execution_mode = "off"  # notebooks hold their outputs, and the tests execute them
myst_heading_anchors = 3

default_role = "py:obj"  # `optlab.muon` in a docstring is a link where there is such a page
autodoc_typehints = "none"
autodoc_member_order = "bysource"
autodoc_preserve_defaults = True  # `kind=Config`, and no address of a class
autoclass_content = "both"
napoleon_numpy_docstring = False

html_theme = "sphinx_book_theme"
html_title = "optlab"
html_theme_options = {
    "show_navbar_depth": 1,
    "collapse_navbar": True,  # else each of 450 pages links to all the others, which takes half of the build's time
    "use_download_button": False,
}
html_extra_path = ["_extra"]
html_static_path = ["_static"]
html_css_files = ["site.css"]
highlight_language = "none"  # a block without a language is a drawing


def escape_marks(app: Any, what: str, name: str, value: Any, options: Any, lines: list[str]) -> None:
    """|g| in a formula is a size and no substitution, and */kernel a pattern."""
    lines[:] = [
        re.sub(r"[|]|_?[*](?=/)|(?<=/)[*]", lambda found: "".join(f"\\{c}" for c in found[0]), line) for line in lines
    ]


def public_types(app: Any, what: str, name: str, value: Any, options: Any, lines: list[str]) -> None:
    """The types that napoleon takes from annotations are written where they are defined, in private modules."""
    lines[:] = map(_pages.public, lines)


def setup(app: Any) -> None:
    app.connect("autodoc-process-docstring", escape_marks, priority=0)
    app.connect("autodoc-process-docstring", public_types, priority=900)  # after napoleon
    app.connect("builder-inited", lambda app: _pages.write(ROOT))
