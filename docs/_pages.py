"""The pages of the API reference: one for each public name, written when the site is built."""

import functools
import importlib
import inspect
import re
import typing
from collections.abc import Mapping
from pathlib import Path
from typing import Any

# Where a name is public. An optimizer's own page, docs/optimizers/NAME.md, is written by hand.
MODULES = {
    "optlab": "What needs jax, optax and chex alone, or is asked for most.",
    "optlab.optimizers": "Named optimizers, each one visible chain of blocks.",
    "optlab.transforms": "Blocks: the gradient transformations that optimizers are chains of.",
    "optlab.transforms.matrices": "Functions of matrices, mapped over every matrix of a tree, over any mesh.",
    "optlab.roles": "The role and the matrix axes of every parameter.",
    "optlab.schedules": "Learning rates over the steps.",
    "optlab.models": "Flax models.",
    "optlab.data": "Sources of examples, and batches as functions of (seed, step).",
    "optlab.runs": "The run folder.",
    "optlab.training": "Workloads, one pure step, strategies, the loop.",
    "optlab.experiment": "Names become objects: a config's run.",
    "optlab.config": "A run as data.",
    "optlab.compare": "Fair comparisons.",
    "optlab.diagnosis": "What is wrong with a run.",
    "optlab.tuning": "Range tests of the learning rate and of the batch size.",
    "optlab.report": "Self-contained pages.",
    "optlab.testing": "The contract of a transformation.",
    "optlab.theory.least_squares": "Least squares: closed forms, paths, rates, noise.",
    "optlab.theory.landscapes": "Functions with known minima.",
    "optlab.theory.approximation": "What ReLU networks can represent.",
    "optlab.theory.attention": "Attention as a plain function.",
    "optlab.theory.linearize": "The linearized network and its kernel.",
    "optlab.theory.curvature": "Eigenvalues of Hessians.",
    "optlab.theory.noise": "The noise of gradients.",
    "optlab.theory.adam": "Adam's first step and its bounds.",
    "optlab.theory.measures": "Measurements of a run.",
}
HOME = Path("docs/api")  # below the repository; not committed
EXPERIMENTS = Path("docs/experiments")


def public_names(module: str) -> list[str]:
    """The names that a module makes public itself, sorted; submodules are left out."""
    found = importlib.import_module(module)
    names = found.__all__ if hasattr(found, "__all__") else [n for n in dir(found) if not n.startswith("_")]
    elsewhere = {*public_names("optlab.transforms"), *public_names("optlab.optimizers")} if module == "optlab" else ()
    return sorted(n for n in names if n not in elsewhere and not inspect.ismodule(getattr(found, n)))


@functools.cache
def pages() -> dict[tuple[str, str], str]:
    """(module, name) -> its page below the repository, without the ending; what two modules have has one page."""
    found: dict[tuple[str, str], str] = {}
    first: dict[int, str] = {}
    for module in MODULES:
        for name in public_names(module):
            value = getattr(importlib.import_module(module), name)
            page = f"docs/optimizers/{name}" if module == "optlab.optimizers" else f"{HOME}/{module}.{name}"
            found[module, name] = first.setdefault(id(value), page) if callable(value) else page
    return found


@functools.cache
def _public_types() -> dict[str, str]:
    """Where a class is defined -> its public name."""
    names = {}
    for module, name in pages():
        value = getattr(importlib.import_module(module), name)
        if inspect.isclass(value):
            names.setdefault(f"{value.__module__}.{value.__qualname__}", f"{module}.{name}")
    return names


def public(text: str) -> str:
    """`text` with each class of ours by its public name; of one that has none its own name alone is left."""
    private = r"\boptlab(?:\.\w+)*\._[a-z]\w*(?:\.\w+)*\.([A-Z]\w*)"
    return re.sub(private, lambda found: _public_types().get(found[0], found[1]), text)


def write(root: Path) -> None:
    """Writes a page for every module and every public name below `root`/docs/api."""
    (root / HOME).mkdir(parents=True, exist_ok=True)
    wanted = {HOME / "index.md": "# API reference\n\n" + _toctree([f"{HOME}/{module}" for module in MODULES])}
    for module, words in MODULES.items():
        of_module = [page for (home, _), page in pages().items() if home == module]
        wanted[HOME / f"{module}.md"] = f"# {module}\n\n{words}\n\n" + _toctree(of_module)
    wanted[HOME / "gallery.md"] = _gallery((root / EXPERIMENTS / "index.md").read_text())
    for (module, name), page in pages().items():
        if page == f"{HOME}/{module}.{name}":
            wanted[Path(page + ".md")] = _symbol(module, name)
    for path in (root / HOME).glob("*.md"):
        if path.relative_to(root) not in wanted:
            path.unlink()
    for path, text in wanted.items():
        if not (root / path).is_file() or (root / path).read_text() != text:  # an unchanged page isn't built again
            (root / path).write_text(text)


def _toctree(pages: list[str]) -> str:
    return "\n".join(["```{toctree}", ":maxdepth: 1", "", *(f"/{page}" for page in pages), "```", ""])


def _gallery(index: str) -> str:
    """A figure and a sentence for every experiment in the table of docs/experiments/index.md."""
    parts = ["# Gallery", "A figure of each of the course's experiments; its page has the table behind it."]
    row = r"^\| \[(E\d+)\]\((\w+)\.md\) \| (.*?) \| (.*?) \|$"
    for number, page, question, answer in re.findall(row, index, re.MULTILINE):
        home, answer = f"../experiments/{page}", answer[:1].upper() + answer[1:]
        parts += [f"## {number}: {question}", f"![{question}]({home}.png)", f"{answer} ([{number}]({home}.md))."]
    return "\n\n".join(parts) + "\n"


def _symbol(module: str, name: str) -> str:
    value = getattr(importlib.import_module(module), name)
    lines = [f".. {_kind(value)}:: {module}.{name}"]
    if _kind(value) == "autoclass":
        lines.append("   :members:")
    if _kind(value) == "py:data":  # autodoc would show the docstring of its type
        lines += ["", f"   {_contents(value)}"]
    return "\n".join([f"# {name}", "", "```{eval-rst}", *lines, "```", ""])


def _kind(value: Any) -> str:
    if typing.get_origin(value) is not None:  # an alias of a type
        return "py:data"
    if inspect.isclass(value):
        return "autoexception" if issubclass(value, BaseException) else "autoclass"
    return "autofunction" if callable(value) else "py:data"


def _contents(value: Any) -> str:
    if isinstance(value, Mapping):
        return f"A mapping of {', '.join(f'``{key}``' for key in value)}."
    if isinstance(value, tuple) and all(map(callable, value)):  # whose reprs have addresses, others in every process
        return f"The functions {', '.join(f'``{each.__name__}``' for each in value)}."
    return f"``{public(repr(value))}``"
