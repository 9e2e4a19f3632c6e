"""The pages of the API reference: one for each public name, written when the site is built."""

import importlib
import inspect
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
    "optlab.training": "Workloads, one pure step, strategies, the loop.",
    "optlab.runs": "The run folder.",
    "optlab.experiment": "Names become objects: a config's run.",
    "optlab.config": "A run as data.",
    "optlab.compare": "Fair comparisons.",
    "optlab.diagnosis": "What is wrong with a run.",
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


def public_names(module: str) -> list[str]:
    """The names that a module makes public itself, sorted; submodules and what another page describes are left out."""
    found = importlib.import_module(module)
    names = found.__all__ if hasattr(found, "__all__") else [n for n in dir(found) if not n.startswith("_")]
    elsewhere = _below("optlab.transforms", "optlab.optimizers") if module == "optlab" else set()
    return sorted(n for n in names if n not in elsewhere and not inspect.ismodule(getattr(found, n)))


def page_of(module: str, name: str) -> str:
    """The page of a public name, as a path below the repository without its ending."""
    return f"docs/optimizers/{name}" if module == "optlab.optimizers" else f"{HOME}/{module}.{name}"


def write(root: Path) -> None:
    """Writes a page for every module and every public name below `root`/docs/api."""
    (root / HOME).mkdir(exist_ok=True)
    wanted = {HOME / "index.md": _index()}
    for module, words in MODULES.items():
        pages = [page_of(module, name) for name in public_names(module)]
        wanted[HOME / f"{module}.md"] = _listing(module, words, pages)
        for name in public_names(module):
            if module != "optlab.optimizers":
                wanted[Path(page_of(module, name) + ".md")] = _symbol(module, name)
    for path in (root / HOME).glob("*.md"):
        if path.relative_to(root) not in wanted:
            path.unlink()
    for path, text in wanted.items():
        if not (root / path).is_file() or (root / path).read_text() != text:  # an unchanged page isn't built again
            (root / path).write_text(text)


def _below(*modules: str) -> set[str]:
    return {name for module in modules for name in public_names(module)}


def _toctree(pages: list[str]) -> str:
    return "\n".join(["```{toctree}", ":maxdepth: 1", "", *(f"/{page}" for page in pages), "```", ""])


def _index() -> str:
    return "# API reference\n\n" + _toctree([f"{HOME}/{module}" for module in MODULES])


def _listing(module: str, words: str, pages: list[str]) -> str:
    return f"# {module}\n\n{words}\n\n" + _toctree(pages)


def _symbol(module: str, name: str) -> str:
    value = getattr(importlib.import_module(module), name)
    directive = "\n".join(["```{eval-rst}", f".. {_kind(value)}:: {module}.{name}", *_options(value), "```", ""])
    return f"# {name}\n\n{directive}"


def _kind(value: Any) -> str:
    if inspect.isclass(value):
        return "autoexception" if issubclass(value, BaseException) else "autoclass"
    return "autofunction" if callable(value) else "autodata"


def _options(value: Any) -> list[str]:
    return ["   :members:"] if inspect.isclass(value) and not issubclass(value, BaseException) else []
