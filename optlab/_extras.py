"""Packages that `pip install optlab-jax` alone doesn't install: a missing one is an error with the install line."""

import importlib.util


class MissingExtraError(ImportError):
    """A package that one of optlab's extras installs is missing."""


def need(who: str, *packages: str, extra: str = "train") -> None:
    """Raises MissingExtraError for the first of the packages that can't be imported."""
    for package in packages:
        if importlib.util.find_spec(package) is None:
            raise MissingExtraError(f"{who} needs {package}: pip install 'optlab-jax[{extra}]'", name=package)
