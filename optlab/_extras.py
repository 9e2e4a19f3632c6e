"""What isn't installed with `pip install optlab-jax` alone: a missing package is an error with the install line."""

import importlib.util


class MissingExtraError(ImportError):
    """A package that an extra of optlab's installs isn't there."""


def need(who: str, *packages: str, extra: str = "train") -> None:
    """Raises MissingExtraError for the first of the packages that can't be imported."""
    for package in packages:
        if importlib.util.find_spec(package) is None:
            raise MissingExtraError(f"{who} needs {package}: pip install 'optlab-jax[{extra}]'", name=package)
