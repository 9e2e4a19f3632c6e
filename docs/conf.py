"""The documentation's settings. Build it from the repository:

    .venv/bin/pip install -q -e '.[docs]' && .venv/bin/sphinx-build -c docs -W . docs/_site

The source directory is the repository, so that the guides' links to results, notebooks and configs hold here as there.
"""

import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT / "docs"))

import _pages  # noqa: E402

import optlab  # noqa: E402

project, author, copyright = "optlab", "the optlab team", "the optlab team"  # noqa: A001
version = release = optlab.__version__

extensions = ["myst_nb", "sphinx.ext.autodoc", "sphinx.ext.napoleon"]
root_doc = "docs/index"
include_patterns = ["docs/**", "notebooks/*.ipynb", "benchmarks/results/*.md", "CHANGELOG.md", "CONTRIBUTING.md"]
exclude_patterns = ["docs/_site/**"]
suppress_warnings = ["toc.not_included"]  # tables of results are linked to, and aren't in the contents

nb_execution_mode = "off"  # notebooks hold their outputs, and the tests execute them
myst_enable_extensions = ["dollarmath", "deflist"]
myst_heading_anchors = 3

default_role = "py:obj"  # `optlab.muon` in a docstring is a link where there is such a page
autodoc_typehints = "none"
autodoc_member_order = "bysource"
autoclass_content = "both"
napoleon_numpy_docstring = False

html_theme = "sphinx_book_theme"
html_title = "optlab"
html_theme_options = {"show_navbar_depth": 1, "use_download_button": False}
html_extra_path = ["docs/_extra"]


def setup(app: Any) -> None:
    app.connect("builder-inited", lambda app: _pages.write(ROOT))
