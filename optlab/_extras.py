"""Packages that optlab alone doesn't install: a missing one is an error with the line that installs it."""

import importlib.util


class MissingExtraError(ImportError):
    """A package that one of optlab's extras installs is missing."""


def need(who: str, *packages: str, extra: str = "train") -> None:
    """Raises MissingExtraError for the first of the packages that can't be imported."""
    for package in packages:
        if importlib.util.find_spec(package) is None:
            raise MissingExtraError(f"{who} needs {package}: {_line(extra)}", name=package)


def _line(extra: str) -> str:
    """How an extra is installed: the package index doesn't have optlab, so from a clone or from a wheel's file."""
    return f"pip install -e '.[{extra}]' in a clone of optlab, or pip install 'FILE.whl[{extra}]' with its wheel"
